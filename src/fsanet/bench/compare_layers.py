"""Attention layers side by side: cost and time at several sizes of the map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fsanet.bench.cases import Case, find_cases
from fsanet.bench.measure import (
    Findings,
    Settings,
    Subject,
    Timing,
    measure_alone,
    time_passes,
    timed_pass,
    torch_threads,
)
from fsanet.cost import Watch, count_flops, count_parameters, no_watch
from fsanet.files import environment

__all__ = [
    *("LayerReport", "LayerRow", "LayerSettings", "compare_layers", "exponent", "make_layer"),
    *("measure_size", "reason_to_skip", "with_baseline"),
]


@dataclass(frozen=True, kw_only=True)
class LayerSettings(Settings):
    """Which layers are measured, and how.

    Attributes:
        layers: names of cases.
        sizes: (height, width) of the maps.
        channels: channels of the maps.
        baseline: name of the layer that speed-ups refer to; it is always measured.
        backward: whether forward + backward is measured as well.
    """

    layers: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    channels: int = 512
    baseline: str = "sdpa"
    backward: bool = True


@dataclass(frozen=True)
class LayerRow:
    """One layer at one size: its findings, and its times if it could run."""

    case: Case
    height: int
    width: int
    findings: Findings
    forward: Timing | None = None
    training: Timing | None = None

    @property
    def positions(self) -> int:
        return self.height * self.width

    def as_dict(self) -> dict[str, Any]:
        return {
            "layer": self.case.name,
            "title": self.case.title,
            "height": self.height,
            "width": self.width,
            **asdict(self.findings),
            "forward": None if self.forward is None else asdict(self.forward),
            "training": None if self.training is None else asdict(self.training),
        }


@dataclass(frozen=True)
class LayerReport:
    """All rows, with the settings and the machine they were measured with."""

    settings: LayerSettings
    environment: dict[str, str]
    rows: tuple[LayerRow, ...]

    def sizes(self) -> list[tuple[int, int]]:
        """The measured sizes, in the order of measuring."""
        return list(dict.fromkeys((row.height, row.width) for row in self.rows))

    def at(self, size: tuple[int, int]) -> list[LayerRow]:
        """The rows of one size (height, width)."""
        return [row for row in self.rows if (row.height, row.width) == size]

    def of(self, name: str) -> list[LayerRow]:
        """The rows of one layer."""
        return [row for row in self.rows if row.case.name == name]

    def exponents(self) -> dict[str, float]:
        """The p of ``forward seconds ~ N ** p`` for each layer that ran at two sizes or more."""
        found = {}
        for name in dict.fromkeys(row.case.name for row in self.rows):
            points = [
                (row.positions, row.forward.seconds.median)
                for row in self.of(name)
                if row.forward is not None
            ]
            if len({n for n, _ in points}) > 1:
                found[name] = exponent([n for n, _ in points], [seconds for _, seconds in points])
        return found

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "settings": asdict(self.settings),
            "environment": self.environment,
            "exponents": self.exponents(),
            "rows": [row.as_dict() for row in self.rows],
        }


def exponent(positions: Sequence[int], seconds: Sequence[float]) -> float:
    """Fit p of ``seconds ~ positions ** p`` by least squares on logarithms.

    >>> round(exponent([10, 20, 40], [1.0, 4.0, 16.0]), 6)
    2.0
    """
    slope, _ = np.polyfit(np.log(positions), np.log(seconds), 1)
    return float(slope)


def compare_layers(
    settings: LayerSettings,
    *,
    watch: Watch = no_watch,
    on_size: Callable[[LayerReport, tuple[int, int]], None] = lambda report, size: None,
) -> LayerReport:
    """Measure all layers at all sizes, the smallest size first.

    Args:
        settings: what is measured, and how.
        watch: is notified of each phase and each step.
        on_size: is called after each size, with a report of all rows so far.

    Raises:
        InputError: for an unknown layer, or a map that does not fit into memory.
    """
    cases = find_cases(with_baseline(settings))
    for size in settings.sizes:
        settings.check_input(settings.channels, size)
    report = LayerReport(settings, {}, ())
    with torch_threads(settings.threads):
        report = replace(report, environment=environment(settings.device))
        for size in sorted(set(settings.sizes), key=lambda size: (size[0] * size[1], size)):
            skip: dict[str, str] = {}
            for row in report.rows:
                reason = reason_to_skip(row)
                if reason is not None and row.positions < size[0] * size[1]:
                    skip.setdefault(row.case.name, reason)
            rows = measure_size(settings, cases, size, skip=skip, watch=watch)
            report = replace(report, rows=(*report.rows, *rows))
            on_size(report, size)
    return report


def with_baseline(settings: LayerSettings) -> list[str]:
    """Names of the layers to measure, the baseline among them."""
    names = list(settings.layers)
    return names if settings.baseline in names else [*names, settings.baseline]


def measure_size(
    settings: LayerSettings,
    cases: Sequence[Case],
    size: tuple[int, int],
    *,
    skip: Mapping[str, str],
    watch: Watch,
    title: str | None = None,
) -> list[LayerRow]:
    """Measure layers at one size.

    Args:
        settings: all else; its layers and sizes are not used.
        cases: the layers.
        size: (height, width) of the map.
        skip: by name, why a layer is not tried.
        watch: is notified of each phase and each step.
        title: of the phases; by default the size.
    """
    title = title or f"{size[0]}x{size[1]}"
    rows: dict[str, LayerRow] = {}
    step = watch(f"{title} memory", len(cases))
    for case in cases:
        findings = _count(settings, case, size)
        problem = skip.get(case.name)
        if problem is None:
            make = partial(make_layer, settings, case.name, size)
            findings = measure_alone(make, settings, findings, backward=settings.backward)
        else:
            findings = replace(findings, problem=problem, training_problem=problem)
        rows[case.name] = LayerRow(case, *size, findings)
        step(case.name)

    torch.compiler.reset()  # otherwise what was compiled for the last size becomes dynamic
    subjects: dict[str, Subject] = {}
    for name, row in rows.items():
        if row.findings.problem is None:
            subject = make_layer(settings, name, size)
            first = next(iter(subjects.values()), subject)
            subjects[name] = replace(subject, x=first.x)  # one input for all

    def time(*, training: bool) -> None:
        label = f"{title} forward + backward" if training else f"{title} forward"
        timings, problems = time_passes(
            {
                name: timed_pass(subject, training=training)
                for name, subject in subjects.items()
                if not (training and rows[name].findings.training_problem)
            },
            settings,
            baseline=settings.baseline,
            seconds=settings.seconds / 2 if settings.backward else settings.seconds,
            watch=lambda phase, count: watch(f"{label} {phase}".strip(), count),
        )
        for name, timing in timings.items():
            row = rows[name]
            rows[name] = replace(row, training=timing) if training else replace(row, forward=timing)
        for name, problem in problems.items():
            findings = replace(rows[name].findings, training_problem=problem)
            if not training:
                findings = replace(findings, problem=problem)
            rows[name] = replace(rows[name], findings=findings)

    time(training=False)
    if settings.backward:
        time(training=True)
    return list(rows.values())


def _count(settings: LayerSettings, case: Case, size: tuple[int, int]) -> Findings:
    """Parameters and FLOPs, on the meta device: nothing is computed, so no layer is too large."""
    dtype = settings.torch_dtype
    layer = case.build(settings.channels, "meta", dtype).eval()
    x = torch.empty(settings.batch, settings.channels, *size, device="meta", dtype=dtype)
    with torch.no_grad():
        flops = count_flops(lambda: layer(x))
    uncounted = getattr(layer, "uncounted_flops", None)
    by_hand = flops if uncounted is None else flops + uncounted(settings.batch, *size)
    return Findings(parameters=count_parameters(layer), flops=flops, flops_by_hand=by_hand)


def reason_to_skip(row: LayerRow, where: str = "") -> str | None:
    """Why a layer is not tried on a larger input: its problem here, if size was the reason.

    Args:
        row: the layer on the smaller input.
        where: what that input was; by default its size.
    """
    problem = row.findings.problem
    if problem is None or problem.startswith("failed"):
        return None
    where = where or f"{row.height}x{row.width}"
    return problem if " at " in problem else f"{problem} at {where}"


def make_layer(settings: LayerSettings, name: str, size: tuple[int, int]) -> Subject:
    """Build a layer and its input."""
    (case,) = find_cases([name])
    torch.manual_seed(0)
    module = case.build(settings.channels, settings.device, settings.torch_dtype)
    shape = settings.batch, settings.channels, *size
    x = torch.randn(shape, device=settings.device, dtype=settings.torch_dtype)
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    call: Any = torch.compile(module, dynamic=False) if case.compiled else module
    return Subject(module, call, x)
