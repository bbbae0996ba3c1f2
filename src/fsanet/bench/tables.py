"""Tables of a report: the same cells on the console and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from fsanet.bench.cases import PAPER_CLAIMS, PAPER_LAYERS
from fsanet.bench.compare_layers import LayerReport, LayerRow
from fsanet.bench.compare_networks import NetworkReport, NetworkRow
from fsanet.bench.compare_prediction import PredictionReport
from fsanet.bench.grow_layers import Growth, GrowthReport
from fsanet.bench.measure import Findings, Timing
from fsanet.cost import Quartiles
from fsanet.metrics.confusion import markdown_table

__all__ = [
    *("Grid", "cost_grid", "describe_layers", "describe_network", "layers_markdown"),
    *("network_grid", "network_markdown", "paper_grid", "prediction_grid", "prediction_markdown"),
    *("describe_growth", "describe_prediction", "growth_grids", "growth_markdown"),
    *("scaling_grid", "steps_grid", "time_grid"),
]

LAYER_CONVENTIONS = """\
FLOPs: 2 per multiply-add, matrix products and convolutions of a forward pass, counted by
`torch.utils.flop_counter`; FFTs, which it cannot see, by formula. Peak: tensor memory above the
input, "forward" without gradients, "training" in forward + backward with the gradients of input and
parameters. Kept: storages that autograd holds for backward, without parameters and input. Times:
median of interleaved rounds (evaluation mode without gradients; training mode for forward +
backward), quartiles in brackets; speed-up and ratio to the floor are medians over rounds of the
ratio within a round. Floor: `x.sum()`, then `x + x` into fresh memory."""

NETWORK_CONVENTIONS = """\
One network of which only the attention layer is exchanged ("none": left out). Latency: median of
interleaved rounds of a forward pass without gradients, quartiles in brackets; "times that of none":
median over rounds of the ratio within a round. Shares: time between entering and leaving the module
over the time of the whole pass, median of all passes. Peak: tensor memory above the weights and the
images. FLOPs as counted by `torch.utils.flop_counter`, 2 per multiply-add."""


@dataclass(frozen=True)
class Grid:
    """A table of text, its first column aligned left and the rows ``strong`` in bold."""

    title: str
    heading: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    strong: frozenset[int] = frozenset()

    def rich(self) -> Table:
        """The table for the console."""
        table = Table(title=escape(self.title), title_justify="left")
        for index, name in enumerate(self.heading):
            table.add_column(escape(name), justify="right" if index else "left", no_wrap=not index)
        for index, row in enumerate(self.rows):
            style = "bold" if index in self.strong else None
            table.add_row(*(escape(cell) for cell in row), style=style)
        return table

    def markdown(self) -> str:
        """The table in Markdown, under its title as a heading of the third level."""
        table = markdown_table([list(self.heading), *map(list, self.rows)])
        return f"### {self.title}\n\n{table}\n"


def cost_grid(report: LayerReport, size: tuple[int, int]) -> Grid:
    """Parameters, FLOPs and memory of the layers at one size."""
    heading = "layer, parameters, GFLOP, peak MiB forward, training, kept MiB"
    rows = report.at(size)
    cells = [(row.case.name, *_cost_cells(row.findings)) for row in rows]
    return Grid(f"{_name(size)}: cost", tuple(heading.split(", ")), cells, _ours(rows))


def _cost_cells(found: Findings) -> tuple[str, ...]:
    return (
        thousands(found.parameters),
        gigaflop(found.flops_by_hand),
        mebibytes(found.peak) or found.problem or "",
        mebibytes(found.training_peak) or found.training_problem or "",
        mebibytes(found.kept),
    )


def time_grid(report: LayerReport, size: tuple[int, int]) -> Grid:
    """Time of forward, and of forward + backward if measured, at one size."""
    rows, settings = report.at(size), report.settings
    ratios = (f"times faster than {settings.baseline}", "times the floor", "rounds")
    heading: tuple[str, ...] = ("layer", "forward ms", *ratios)
    cells = [(row.case.name, *_time_cells(row.forward, row.findings.problem)) for row in rows]
    if settings.backward:
        heading += ("fwd + bwd ms", *ratios)
        for index, row in enumerate(rows):
            cells[index] += _time_cells(row.training, row.findings.training_problem)
    return Grid(f"{_name(size)}: time", heading, cells, _ours(rows))


def _time_cells(timing: Timing | None, problem: str | None) -> tuple[str, ...]:
    if timing is None:
        return (problem or "", "", "", "")
    return (
        spread(timing.seconds, 1e3),
        spread(timing.speedup),
        spread(timing.over_floor),
        str(timing.seconds.count),
    )


def scaling_grid(report: LayerReport) -> Grid | None:
    """Exponent of the forward time over N; None if no layer ran at two sizes."""
    rows, ours = [], []
    for name, p in report.exponents().items():
        measured = [row for row in report.of(name) if row.forward is not None]
        sizes = ", ".join(_name((row.height, row.width)) for row in measured)
        rows.append((name, f"{p:.2f}", sizes))
        ours.append(measured[0])
    if not rows:
        return None
    heading = ("layer", "exponent p of time ~ N^p", "fitted over")
    return Grid("Scaling of the forward pass", heading, rows, _ours(ours))


def paper_grid(report: LayerReport) -> Grid:
    """Percent saved against the materialised layer at each size, above the paper's claims."""
    heading = (
        "layer, memory saved %: forward, training, FLOPs saved %, time saved %: forward, fwd + bwd"
    )
    rows: list[tuple[str, ...]] = []
    shown = []
    for size in report.sizes():
        base, *others = sorted(report.at(size), key=lambda row: row.case.name != PAPER_LAYERS[0])
        for row in others:
            a, b = base.findings, row.findings
            cells: tuple[str, ...] = (
                saved(a.peak, b.peak),
                saved(a.training_peak, b.training_peak),
                saved(a.flops, b.flops),
                saved(_median(base.forward), _median(row.forward)),
                saved(_median(base.training), _median(row.training)),
            )
            if b.problem is not None:
                cells = (b.problem, "", "", "", "")
            rows.append((f"{_name(size)} {row.case.name}", *cells))
            shown.append(row)
    claims = {name: f"{low:.2f} - {high:.2f}" for name, (low, high) in PAPER_CLAIMS.items()}
    rows.append(("the paper", claims["memory"], "", claims["FLOPs"], claims["time"], ""))
    title = "The paper's claims: saved against materialised regular attention"
    return Grid(title, tuple(heading.split(", ")), rows, _ours(shown))


def describe_layers(report: LayerReport) -> str:
    """Settings and machine, on one line."""
    s = report.settings
    return (
        f"C={s.channels}, batch {s.batch}, {s.dtype}, k=8, at most {s.rounds} rounds in "
        f"{s.seconds:g} s a size, limit {s.limit_seconds:g} s; {_machine(report.environment)}"
    )


def layers_markdown(report: LayerReport, *, command: str) -> str:
    """The whole report as a section of a Markdown page; ``command`` is what writes it again."""
    parts = [f"    {command}\n", describe_layers(report) + "\n"]
    for size in report.sizes():
        parts += [cost_grid(report, size).markdown(), time_grid(report, size).markdown()]
    scaling = scaling_grid(report)
    if scaling is not None:
        parts.append(scaling.markdown())
    titles = dict.fromkeys((row.case.name, row.case.title) for row in report.rows)
    parts.append("\n".join(f"- `{name}`: {title}" for name, title in titles) + "\n")
    parts.append(LAYER_CONVENTIONS + "\n")
    return "\n".join(parts)


def growth_grids(growth: Growth) -> list[Grid]:
    """Time, speed-up over the baseline, and memory of each layer along an axis."""
    s = growth.settings
    exponents = {name: f"{p:.2f}" for name, p in growth.exponents().items()}
    labels = tuple(point.label for point in growth.points)

    def grid(what: str, cell: Callable[[LayerRow], str], **last: Mapping[str, str]) -> Grid:
        rows = [
            (name, *(cell(row) for _, row in line), *(one.get(name, "") for one in last.values()))
            for name, line in growth.lines().items()
        ]
        strong = _ours(growth.points[0].rows.values())
        return Grid(f"{what} against {growth.axis}", ("layer", *labels, *last), rows, strong)

    def time(row: LayerRow) -> str:
        if row.forward is None:
            return _stop(row)
        times = [row.forward, *([row.training] if row.training is not None else [])]
        return " / ".join(significant(1e3 * timing.seconds.median) for timing in times)

    def memory(row: LayerRow) -> str:
        if row.findings.peak is None:
            return _stop(row)
        peaks = row.findings.peak, row.findings.training_peak
        return " / ".join(mebibytes(peak) for peak in peaks if peak is not None)

    passes = "forward / forward + backward" if s.backward else "forward"
    return [
        grid(f"Time in ms, {passes},", time, exponent=exponents),
        grid(
            f"Forward, times faster than {s.baseline},",
            lambda row: "" if row.forward is None else spread(row.forward.speedup),
        ),
        grid(f"Peak memory in MiB, {passes},", memory),
    ]


def _stop(row: LayerRow) -> str:
    """Why a layer did not run, without where that was first so."""
    return (row.findings.problem or "").split(" at ")[0]


def describe_growth(report: GrowthReport) -> str:
    """Settings and machine, on one line."""
    s = report.growths[0].settings
    size = _name(s.sizes[0])
    return (
        f"but for the axis of a table: {size} map, C={s.channels}, batch {s.batch}, {s.dtype}, "
        f"k=8; at most {s.rounds} rounds in {s.seconds:g} s a value, limit {s.limit_seconds:g} s; "
        f"{_machine(report.environment)}"
    )


def growth_markdown(report: GrowthReport, *, command: str) -> str:
    """The whole report as a section of a Markdown page; ``command`` is what writes it again."""
    grids = [grid.markdown() for growth in report.growths for grid in growth_grids(growth)]
    about = f"{LAYER_CONVENTIONS} The exponent p: forward time ~ value^p along the axis.\n"
    return "\n".join([f"    {command}\n", describe_growth(report) + "\n", *grids, about])


def network_grid(report: NetworkReport) -> Grid:
    """Cost and time of the network with each kind of attention."""
    heading = (
        *("attention", "parameters", "GFLOP", "peak MiB", "latency ms", "times that of none"),
        *("images/s", "head's share", "attention's share", "rounds"),
    )
    s = report.settings
    title = f"{s.source}, {_name(s.size)}, batch {s.batch}"
    rows = [_network_cells(row, s.batch) for row in report.rows]
    ours = frozenset(i for i, row in enumerate(report.rows) if row.variant == "frequency")
    return Grid(title, heading, rows, ours)


def _network_cells(row: NetworkRow, batch: int) -> tuple[str, ...]:
    found, latency, rate = row.findings, row.latency, row.images_per_second(batch)
    cost = thousands(found.parameters), gigaflop(found.flops), mebibytes(found.peak)
    if latency is None or rate is None:
        return (row.variant, *cost, found.problem or "", "", "", "", "", "")
    shares = (row.head, row.attention)
    return (
        row.variant,
        *cost,
        spread(latency.seconds, 1e3),
        spread(row.over_none),
        significant(rate),
        *("" if share is None else f"{100 * share.median:.2f} %" for share in shares),
        str(latency.seconds.count),
    )


def describe_network(report: NetworkReport) -> str:
    """Settings and machine, on one line."""
    attention, dtype = report.attention, report.settings.dtype
    return f"frequency: {attention}; {dtype}; {_machine(report.environment)}"


def network_markdown(report: NetworkReport, *, command: str) -> str:
    """The whole report as a section of a Markdown page; ``command`` is what writes it again."""
    grid = network_grid(report).markdown()
    parts = (f"    {command}", describe_network(report), grid, NETWORK_CONVENTIONS)
    return "\n\n".join(parts) + "\n"


def prediction_grid(report: PredictionReport) -> Grid:
    """Images a second of the network alone and of the whole prediction."""
    times = {f"network alone, {report.settings.dtype}": report.network}
    if report.float32 is not None:
        times["network alone, float32"] = report.float32
    times["prediction, files written"] = report.pipeline
    rows = []
    for name, taken in times.items():
        low, middle, high = (report.images / t for t in (taken.high, taken.median, taken.low))
        rate = Quartiles(low, middle, high, taken.count)
        ratio = spread(report.ratio) if taken is report.pipeline else ""
        rows.append((name, spread(rate), ratio, str(taken.count)))
    heading = ("what", "images/s", "times the network alone", "rounds")
    s = report.settings
    return Grid(f"{s.model}: {report.images} images, batch {s.batch}", heading, rows)


def steps_grid(report: PredictionReport) -> Grid:
    """What each step of prediction takes by itself, in one thread but for the network."""
    total = sum(report.steps.values())
    rows = [
        (name, significant(1e3 * seconds), f"{100 * seconds / total:.1f} %")
        for name, seconds in report.steps.items()
    ]
    rows.append(("all, one after the other", significant(1e3 * total), ""))
    return Grid("Where the time goes", ("step", "ms an image", "share"), rows)


def describe_prediction(report: PredictionReport) -> str:
    """Agreement with float32, if it was measured, and machine."""
    same = report.agreement
    words = "" if same is None else f"{100 * same:.3f} % of pixels have the class of float32; "
    return f"{words}threads {report.settings.threads}; {_machine(report.environment)}"


def prediction_markdown(report: PredictionReport, *, command: str) -> str:
    """The whole report as a section of a Markdown page; ``command`` is what writes it again."""
    grids = prediction_grid(report).markdown(), steps_grid(report).markdown()
    return "\n\n".join((f"    {command}", describe_prediction(report), *grids)) + "\n"


def saved(base: float | None, own: float | None) -> str:
    """Percent of ``base`` that ``own`` saves; "" if either is not known.

    >>> saved(200.0, 3.0)
    '98.50'
    """
    return "" if not base or own is None else f"{100 * (1 - own / base):.2f}"


def thousands(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def gigaflop(count: int | None) -> str:
    return "" if count is None else significant(count / 1e9)


def mebibytes(count: int | None) -> str:
    """Bytes in MiB, with two decimals below 100."""
    if count is None:
        return ""
    value = count / 2**20
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def significant(value: float) -> str:
    """Three significant digits, no exponent.

    >>> [significant(v) for v in (0.01234, 1.5, 123.4, 12345.6)]
    ['0.0123', '1.50', '123', '12,346']
    """
    if value < 1:
        return f"{value:.3g}"
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def spread(values: Quartiles | None, factor: float = 1.0) -> str:
    """ "median (low - high)"; of a single measurement the median alone."""
    if values is None:
        return ""
    middle = significant(factor * values.median)
    if values.count < 2:
        return middle
    return f"{middle} ({significant(factor * values.low)} - {significant(factor * values.high)})"


def _median(timing: Timing | None) -> float | None:
    return None if timing is None else timing.seconds.median


def _machine(environment: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in environment.items())


def _ours(rows: Iterable[LayerRow]) -> frozenset[int]:
    return frozenset(index for index, row in enumerate(rows) if row.case.ours)


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
