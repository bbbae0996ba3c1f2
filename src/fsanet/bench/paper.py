"""The paper's claims on cost, measured again: frequency against materialised regular attention.

Source: FsaNet (arXiv 2211.15595): 87.29-90.04 % less memory, 96.13-98.07 % fewer FLOPs,
97.56-98.18 % less run time than regular self-attention.
"""

from __future__ import annotations

from fsanet.bench.results import Report, Row
from fsanet.bench.tables import Grid

__all__ = ["BASELINE", "CLAIMS", "LAYERS", "SIZES", "paper_grid"]

BASELINE = "softmax"
LAYERS = (
    "softmax",
    "sdpa",
    "paper-R1",
    "paper-R2",
    "dot-R1",
    "dot-R2",
    "linear_softmax-R1",
    "linear_softmax-R2",
    "floor",
)
SIZES = ((97, 97), (129, 129))
CLAIMS = {"memory": (87.29, 90.04), "FLOPs": (96.13, 98.07), "time": (97.56, 98.18)}


def saved(base: float | None, own: float | None) -> str:
    """Percent of ``base`` that ``own`` does without.

    >>> saved(200.0, 3.0)
    '98.50'
    """
    if not base or own is None:
        return ""
    return f"{100 * (1 - own / base):.2f}"


def paper_grid(report: Report) -> Grid:
    """Percent saved against the materialised layer, size by size, above the paper's ranges."""
    heading = (
        "layer",
        "memory saved %: forward",
        "training",
        "FLOPs saved %",
        "time saved %: forward",
        "fwd + bwd",
    )
    rows: list[tuple[str, ...]] = []
    strong = set()
    for size in report.sizes():
        by_name = {row.case.name: row for row in report.at(size)}
        base = by_name[BASELINE]
        for name, row in by_name.items():
            if name == BASELINE:
                continue
            if row.case.ours:
                strong.add(len(rows))
            rows.append((f"{size[0]}x{size[1]} {name}", *_cells(base, row)))
    claims = {name: f"{low:.2f} - {high:.2f}" for name, (low, high) in CLAIMS.items()}
    rows.append(("the paper", claims["memory"], "", claims["FLOPs"], claims["time"], ""))
    title = "The paper's claims: saved against materialised regular attention"
    return Grid(title, heading, tuple(rows), frozenset(strong))


def _cells(base: Row, row: Row) -> tuple[str, ...]:
    a, b = base.findings, row.findings
    if b.problem is not None:
        return (b.problem, "", "", "", "")
    return (
        saved(a.peak, b.peak),
        saved(a.training_peak, b.training_peak),
        saved(a.flops, b.flops),
        saved(_forward(base), _forward(row)),
        saved(_training(base), _training(row)),
    )


def _forward(row: Row) -> float | None:
    return None if row.forward is None else row.forward.seconds.median


def _training(row: Row) -> float | None:
    return None if row.training is None else row.training.seconds.median
