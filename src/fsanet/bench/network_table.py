"""The table of whole networks."""

from __future__ import annotations

from fsanet.bench.network import NetworkReport, NetworkRow
from fsanet.bench.tables import Grid, gigaflop, mebibytes, significant, spread
from fsanet.bench.timing import Quartiles

__all__ = ["network_about", "network_grid", "network_markdown"]

CONVENTIONS = """\
One network whose attention layer alone is exchanged ("none": left out). Latency: median of
interleaved rounds of a forward pass without gradients, quartiles in brackets; "times that of none":
the median over rounds of the ratio within a round. Shares: time between entering and leaving the
module over the time of the whole pass, median of all passes. Peak: tensor memory above the weights
and the images. FLOPs as counted by `torch.utils.flop_counter`, 2 per multiply-add."""


def network_grid(report: NetworkReport) -> Grid:
    """One row a variant."""
    heading = (
        "attention",
        "parameters",
        "GFLOP",
        "peak MiB",
        "latency ms",
        "times that of none",
        "images/s",
        "head's share",
        "attention's share",
        "rounds",
    )
    s = report.settings
    title = f"{s.source}, {s.size[0]}x{s.size[1]}, batch {s.batch}"
    rows = tuple(_cells(row, s.batch) for row in report.rows)
    ours = frozenset(i for i, row in enumerate(report.rows) if row.variant == "frequency")
    return Grid(title, heading, rows, ours)


def network_about(report: NetworkReport) -> str:
    """One line on settings and machine."""
    s = report.settings
    line = f"frequency: {report.attention}; {s.dtype}; "
    return line + ", ".join(f"{name} {value}" for name, value in report.environment.items())


def network_markdown(report: NetworkReport, *, command: str) -> str:
    """The report as a section of a Markdown page; ``command`` is what prints it again."""
    parts = (f"    {command}", network_about(report), network_grid(report).markdown(), CONVENTIONS)
    return "\n\n".join(parts) + "\n"


def _cells(row: NetworkRow, batch: int) -> tuple[str, ...]:
    found, latency = row.findings, row.latency
    cost = (
        row.variant,
        "" if found.parameters is None else f"{found.parameters:,}",
        gigaflop(found.flops),
        mebibytes(found.peak),
    )
    rate = row.images_per_second(batch)
    if latency is None or rate is None:
        return (*cost, found.problem or "", "", "", "", "", "")
    return (
        *cost,
        spread(latency.seconds, 1e3),
        spread(row.over_none),
        significant(rate),
        _percent(row.head),
        _percent(row.attention),
        str(latency.seconds.count),
    )


def _percent(share: Quartiles | None) -> str:
    return "" if share is None else f"{100 * share.median:.2f} %"
