"""How the cost of attention layers grows: one axis at a time, all else as it is.

Axes are the number of positions N of the map, the batch, the channels, and for frequency attention
k, the frequencies kept per axis of the map, and R, the number of rounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fsanet.bench.cases import find_cases, rename
from fsanet.bench.compare_layers import (
    LayerRow,
    LayerSettings,
    exponent,
    measure_size,
    reason_to_skip,
    with_baseline,
)
from fsanet.bench.measure import torch_threads
from fsanet.cost import Watch, no_watch
from fsanet.errors import InputError
from fsanet.files import environment

__all__ = ["AXES", "LAYERS", "Growth", "GrowthReport", "Point", "Value", "grow_layers"]

Value = int | tuple[int, int]  # an axis' value; of N, (height, width)

#: The axes in words, and the values that are measured by default.
AXES: dict[str, tuple[str, tuple[Value, ...]]] = {
    "N": (
        "positions N = H x W",
        (*((32, 32), (64, 64), (97, 97), (128, 128)), *((128, 256), (256, 512), (512, 1024))),
    ),
    "batch": ("maps per batch", (1, 2, 4, 8, 16, 32)),
    "channels": ("channels C", (64, 128, 256, 512, 1024)),
    "k": ("k, frequencies kept per axis", (1, 2, 4, 8, 16, 32)),
    "R": ("rounds R", (1, 2, 4, 8, 16)),
}
LAYERS = ("softmax", "sdpa", "paper-R1", "dot-R1", "linear_softmax-R1", "floor")


@dataclass(frozen=True)
class Point:
    """All layers at one value of an axis.

    Attributes:
        value: the value.
        rows: what was measured, by the name of the line it belongs to.
    """

    value: Value
    rows: dict[str, LayerRow]

    @property
    def number(self) -> int:
        """The place on the axis."""
        return self.value if isinstance(self.value, int) else self.value[0] * self.value[1]

    @property
    def label(self) -> str:
        return str(self.value) if isinstance(self.value, int) else "x".join(map(str, self.value))


@dataclass(frozen=True)
class Growth:
    """Layers along one axis.

    Attributes:
        axis: one of `AXES`.
        settings: all else, with a single size.
        points: by ascending value.
    """

    axis: str
    settings: LayerSettings
    points: tuple[Point, ...]

    def lines(self) -> dict[str, list[tuple[Point, LayerRow]]]:
        """The points of each line."""
        names = self.points[0].rows
        return {name: [(point, point.rows[name]) for point in self.points] for name in names}

    def exponents(self) -> dict[str, float]:
        """The p of ``forward seconds ~ value ** p`` for each line with two points or more."""
        found = {}
        for name, line in self.lines().items():
            times = [(p.number, r.forward.seconds.median) for p, r in line if r.forward is not None]
            if len({number for number, _ in times}) > 1:
                found[name] = exponent([n for n, _ in times], [seconds for _, seconds in times])
        return found

    def as_dict(self) -> dict[str, Any]:
        points = [
            {"value": p.label, "rows": {name: row.as_dict() for name, row in p.rows.items()}}
            for p in self.points
        ]
        settings = asdict(self.settings)
        return {"settings": settings, "exponents": self.exponents(), "points": points}


@dataclass(frozen=True)
class GrowthReport:
    """One growth for each axis, and the machine that they were measured on."""

    environment: dict[str, str]
    growths: tuple[Growth, ...]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        axes = {growth.axis: growth.as_dict() for growth in self.growths}
        return {"environment": self.environment, "axes": axes}


def grow_layers(
    settings: LayerSettings,
    axes: Mapping[str, Sequence[Value]],
    *,
    watch: Watch = no_watch,
    on_axis: Callable[[GrowthReport], None] = lambda report: None,
) -> GrowthReport:
    """Measure layers along each axis, the smallest value first.

    A layer that runs out of memory or time is not tried at larger values of the same axis.

    Args:
        settings: the layers, and all that an axis does not change; its first size is the size of
            the map along all axes but N.
        axes: values by name of the axis, see `AXES`; none for those given there.
        watch: is notified of each phase and each step.
        on_axis: is called after each axis, with a report of all axes so far.

    Raises:
        InputError: for an unknown axis or layer, or a map that does not fit into memory.
    """
    plans = {axis: _plan(settings, axis, values) for axis, values in axes.items()}
    with torch_threads(settings.threads):
        report = GrowthReport(environment(settings.device), ())
        for axis, plan in plans.items():
            points: list[Point] = []
            skip: dict[str, str] = {}  # by line
            for value, changed, names in plan:
                point = Point(value, {})
                rows = measure_size(
                    changed,
                    find_cases(list(names.values())),
                    changed.sizes[0],
                    skip={name: skip[line] for line, name in names.items() if line in skip},
                    watch=watch,
                    title=f"{axis} = {point.label}",
                )
                point.rows.update(zip(names, rows, strict=True))
                points.append(point)
                for line, row in point.rows.items():
                    reason = reason_to_skip(row, point.label if axis == "N" else f"{axis}={value}")
                    if reason is not None:
                        skip.setdefault(line, reason)
            growth = Growth(axis, replace(settings, sizes=settings.sizes[:1]), tuple(points))
            report = replace(report, growths=(*report.growths, growth))
            on_axis(report)
    return report


def _plan(
    settings: LayerSettings, axis: str, values: Sequence[Value]
) -> list[tuple[Value, LayerSettings, dict[str, str]]]:
    """Values in ascending order, each with its settings and the layer of each line."""
    if axis not in AXES:
        raise InputError(f"no axis '{axis}' to grow along; choose from {', '.join(AXES)}")
    plan = []
    for value in sorted(set(values or AXES[axis][1]), key=lambda v: Point(v, {}).number):
        changed, names = replace(settings, sizes=settings.sizes[:1]), with_baseline(settings)
        lines, baseline = names, settings.baseline
        if isinstance(value, tuple):
            changed = replace(changed, sizes=(value,))
        elif axis in ("batch", "channels"):
            changed = replace(changed, **{axis: value})  # type: ignore[arg-type]
        else:
            option = {"k": "k", "R": "recurrence"}[axis]
            names = [rename(name, **{option: value}) for name in lines]
            baseline = rename(baseline, **{option: value})
            lines = [_line(name, axis) for name in lines]
        changed.check_input(changed.channels, changed.sizes[0])
        changed = replace(changed, baseline=baseline)
        layers = dict(zip(lines, names, strict=True))
        find_cases(list(layers.values()))
        plan.append((value, changed, layers))
    return plan


def _line(name: str, axis: str) -> str:
    """The name of a layer without the number that grows: "dot-R1" along k, "dot" along R."""
    return re.sub(rf"-{axis}\d+", "", name)
