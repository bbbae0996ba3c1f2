"""Tables of a report: the same cells on the console and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from fsanet.bench.results import Report, Row, Timing
from fsanet.bench.timing import Quartiles

__all__ = ["Grid", "about", "cost_grid", "markdown", "scaling_grid", "time_grid"]

CONVENTIONS = """\
FLOPs: 2 per multiply-add, matrix products and convolutions of a forward pass; "counted" by
`torch.utils.flop_counter`, which sees no FFT, "by hand" from the layer's formula. Peak: tensor
memory above the input, "forward" without gradients, "training" in forward + backward with the
gradients of input and parameters. Kept: storages that autograd holds for backward, without
parameters and input. Times: median of interleaved rounds (evaluation mode without gradients;
training mode for forward + backward), quartiles in brackets; speed-up and ratio to the floor are
medians over rounds of the ratio within a round. Floor: `x.sum()`, then
`x + x` into fresh memory."""


@dataclass(frozen=True)
class Grid:
    """A title, a heading and rows of text; the first column is flush left."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()

    def rich(self) -> Table:
        """For the console; ``strong`` rows in bold."""
        table = Table(title=escape(self.title), title_justify="left")
        for index, name in enumerate(self.heading):
            table.add_column(escape(name), justify="right" if index else "left", no_wrap=not index)
        for index, row in enumerate(self.rows):
            table.add_row(
                *(escape(cell) for cell in row), style="bold" if index in self.strong else None
            )
        return table

    def markdown(self) -> str:
        """With the title as a heading of the third level."""
        lines = [
            f"| {' | '.join(self.heading)} |",
            f"| --- |{' ---: |' * (len(self.heading) - 1)}",
            *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in self.rows),
        ]
        return f"### {self.title}\n\n" + "\n".join(lines) + "\n"


def cost_grid(report: Report, size: tuple[int, int]) -> Grid:
    """Parameters, FLOPs and memory at one size."""
    rows = report.at(size)
    heading = (
        "layer",
        "parameters",
        "GFLOP counted",
        "by hand",
        "peak MiB forward",
        "training",
        "kept MiB",
    )
    cells = tuple(_cost_cells(row) for row in rows)
    return Grid(f"{_name(size)}: cost", heading, cells, _ours(rows))


def time_grid(report: Report, size: tuple[int, int]) -> Grid:
    """Forward, and forward + backward if measured, at one size."""
    rows, settings = report.at(size), report.settings
    part = ("ms", f"times faster than {settings.baseline}", "times the floor", "rounds")
    heading: tuple[str, ...] = ("layer", f"forward {part[0]}", *part[1:])
    if settings.backward:
        heading += (f"fwd + bwd {part[0]}", *part[1:])
    cells = []
    for row in rows:
        line = (row.case.name, *_time_cells(row.forward, row.findings.problem))
        if settings.backward:
            line += _time_cells(row.training, row.findings.training_problem)
        cells.append(line)
    return Grid(f"{_name(size)}: time", heading, tuple(cells), _ours(rows))


def scaling_grid(report: Report) -> Grid | None:
    """Exponent of the forward time over N; None where no layer ran at two sizes."""
    exponents = report.exponents()
    if not exponents:
        return None
    rows, strong = [], set()
    for index, (name, p) in enumerate(exponents.items()):
        measured = [row for row in report.of(name) if row.forward is not None]
        sizes = ", ".join(_name((row.height, row.width)) for row in measured)
        rows.append((name, f"{p:.2f}", sizes))
        if measured[0].case.ours:
            strong.add(index)
    heading = ("layer", "exponent p of time ~ N^p", "fitted over")
    return Grid("Scaling of the forward pass", heading, tuple(rows), frozenset(strong))


def about(report: Report) -> str:
    """One line on settings and machine."""
    s = report.settings
    line = (
        f"C={s.channels}, batch {s.batch}, {s.dtype}, k=8, "
        f"at most {s.rounds} rounds in {s.seconds:g} s a size, limit {s.limit_seconds:g} s; "
    )
    return line + ", ".join(f"{name} {value}" for name, value in report.environment.items())


def markdown(report: Report, *, command: str) -> str:
    """The whole report as a Markdown page section.

    Args:
        command: what prints it again.
    """
    parts = [f"    {command}\n", about(report) + "\n"]
    for size in report.sizes():
        parts += [cost_grid(report, size).markdown(), time_grid(report, size).markdown()]
    scaling = scaling_grid(report)
    if scaling is not None:
        parts.append(scaling.markdown())
    titles = dict.fromkeys((row.case.name, row.case.title) for row in report.rows)
    parts.append("\n".join(f"- `{name}`: {title}" for name, title in titles) + "\n")
    parts.append(CONVENTIONS + "\n")
    return "\n".join(parts)


def mebibytes(count: int | None) -> str:
    """Bytes as MiB with two digits or more; "" for None."""
    if count is None:
        return ""
    value = count / 2**20
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def significant(value: float) -> str:
    """Three digits, no exponent.

    >>> [significant(v) for v in (0.01234, 1.5, 123.4, 12345.6)]
    ['0.0123', '1.50', '123', '12,346']
    """
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}"


def spread(values: Quartiles | None, factor: float = 1.0) -> str:
    """ "median (low - high)"; the median alone of one measurement, "" of none."""
    if values is None:
        return ""
    middle = significant(factor * values.median)
    if values.count < 2:
        return middle
    return f"{middle} ({significant(factor * values.low)} - {significant(factor * values.high)})"


def gigaflop(count: int | None) -> str:
    return "" if count is None else significant(count / 1e9)


def _cost_cells(row: Row) -> tuple[str, ...]:
    found = row.findings
    parameters = "" if found.parameters is None else f"{found.parameters:,}"
    return (
        row.case.name,
        parameters,
        gigaflop(found.flops),
        gigaflop(found.flops_by_hand),
        mebibytes(found.peak) or found.problem or "",
        mebibytes(found.training_peak) or found.training_problem or "",
        mebibytes(found.kept),
    )


def _time_cells(timing: Timing | None, problem: str | None) -> tuple[str, ...]:
    if timing is None:
        return (problem or "", "", "", "")
    return (
        spread(timing.seconds, 1e3),
        spread(timing.speedup),
        spread(timing.over_floor),
        str(timing.seconds.count),
    )


def _ours(rows: Sequence[Row]) -> frozenset[int]:
    return frozenset(index for index, row in enumerate(rows) if row.case.ours)


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
