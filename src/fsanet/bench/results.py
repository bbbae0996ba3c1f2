"""What the bench is asked for, and what it found, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fsanet.bench.cases import Case
from fsanet.bench.probe import Findings, Limits
from fsanet.bench.timing import Quartiles, exponent

__all__ = ["DTYPES", "Report", "Row", "Settings", "Timing"]

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long.

    Attributes:
        layers: names of cases.
        sizes: (height, width) of the maps.
        dtype: of maps and parameters.
        threads: of torch's CPU operators.
        baseline: name of the layer that speed-ups refer to; it is measured in any case.
        rounds: at most; slow layers take part in fewer.
        seconds: to spend on the rounds of one size.
        backward: time forward + backward as well.
        limit_seconds: a layer that takes longer for one forward pass is left out.
        limit_memory: bytes a layer may take; None for 80 % of what is free (Linux).
    """

    layers: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    channels: int = 512
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)
    baseline: str = "sdpa"
    rounds: int = 20
    seconds: float = 60.0
    backward: bool = True
    limit_seconds: float = 20.0
    limit_memory: int | None = None

    def limits(self) -> Limits:
        """Limits of a probe that starts now."""
        return Limits.of(self.limit_seconds, self.limit_memory, self.threads)


@dataclass(frozen=True)
class Timing:
    """Of one layer, or network, at one size.

    Attributes:
        seconds: of a pass.
        speedup: the baseline's seconds over these, round by round; None without a baseline.
        over_floor: these seconds over the floor's, round by round; None without a floor.
        rounds: seconds by round.
    """

    seconds: Quartiles
    speedup: Quartiles | None
    over_floor: Quartiles | None
    rounds: dict[int, float]


@dataclass(frozen=True)
class Row:
    """One layer at one size: what the probe found, and times where it got through."""

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
class Report:
    """All rows, with what they were measured on."""

    settings: Settings
    environment: dict[str, str]
    rows: tuple[Row, ...]

    def sizes(self) -> list[tuple[int, int]]:
        """Measured sizes, in the order of measuring."""
        return list(dict.fromkeys((row.height, row.width) for row in self.rows))

    def at(self, size: tuple[int, int]) -> list[Row]:
        """The rows of one size (height, width)."""
        return [row for row in self.rows if (row.height, row.width) == size]

    def of(self, name: str) -> list[Row]:
        """The rows of one layer."""
        return [row for row in self.rows if row.case.name == name]

    def exponents(self) -> dict[str, float]:
        """p of ``forward seconds ~ N ** p`` for each layer that ran at two sizes or more."""
        found = {}
        for name in dict.fromkeys(row.case.name for row in self.rows):
            points = [
                (row.positions, row.forward.seconds.median)
                for row in self.of(name)
                if row.forward is not None
            ]
            p = exponent([n for n, _ in points], [seconds for _, seconds in points])
            if p is not None:
                found[name] = p
        return found

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes: settings, environment, exponents, rows."""
        return {
            "settings": asdict(self.settings),
            "environment": self.environment,
            "exponents": self.exponents(),
            "rows": [row.as_dict() for row in self.rows],
        }
