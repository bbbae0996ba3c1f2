"""Time: clocks, interleaved rounds, and what is made of them.

Every round runs each layer once, and the next round starts with another one, so that slow drifts
of the machine fall on all alike; ratios are of the same round, so that they mostly cancel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

__all__ = [
    "Clock",
    "Quartiles",
    "exponent",
    "interleaved",
    "quartiles",
    "ratios",
    "strides",
]


class Clock:
    """Marks on the time line of a device, and the seconds between them.

    CUDA: events in the stream, so nothing waits until :meth:`seconds` is asked. Other devices:
    the process's clock, once their work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> float | torch.cuda.Event:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        if self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def seconds(self, start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
        """From one mark to a later one."""
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        if isinstance(start, float) and isinstance(end, float):
            return end - start
        raise TypeError("marks of two kinds of clock")


class Timed(Protocol):
    """Something to be timed: ``prepare()`` is not part of the time, ``run()`` is."""

    def prepare(self) -> None: ...

    def run(self) -> object: ...


def timed_turn(subject: Timed, clock: Clock, *, settle: bool) -> float:
    """Seconds of one run.

    Args:
        settle: run once before, not timed, so that the caches hold what this layer left there and
            not what the one before it did; on CUDA the launches of that run hide the first ones of
            the timed run, as other layers would in a network.
    """
    if settle:
        subject.prepare()
        subject.run()
    subject.prepare()
    start = clock.mark()
    result = subject.run()
    end = clock.mark()
    del result  # not before the end: giving memory back is not part of the time
    return clock.seconds(start, end)


def strides(costs: Mapping[str, float], rounds: int, budget: float) -> dict[str, int]:
    """In which rounds each layer takes part: those divisible by its stride, a power of two.

    The budget is shared evenly, and what quick layers leave of their share goes to the slow ones.
    Powers of two, so that of two layers the slower one's rounds are all the other's, too.

    Args:
        costs: seconds of one turn by name.
        rounds: number of rounds, from 0.
        budget: seconds for all of it. A layer takes part in round 0 even where that costs more.

    >>> strides({"quick": 0.1, "slow": 5.0}, rounds=8, budget=16.0)
    {'quick': 1, 'slow': 4}
    """
    found: dict[str, int] = {}
    left = budget
    for index, name in enumerate(sorted(costs, key=lambda name: costs[name])):
        share = left / (len(costs) - index)
        stride = 1
        while stride < rounds and math.ceil(rounds / stride) * costs[name] > share:
            stride *= 2
        found[name] = stride
        left -= math.ceil(rounds / stride) * costs[name]
    return {name: found[name] for name in costs}


def interleaved(stride_of: Mapping[str, int], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name) in the order of measuring: each round starts one layer further.

    >>> list(interleaved({"a": 1, "b": 2}, 3))
    [(0, 'a'), (0, 'b'), (1, 'a'), (2, 'a'), (2, 'b')]
    """
    names = list(stride_of)
    for round_ in range(rounds):
        first = round_ % max(len(names), 1)
        for name in names[first:] + names[:first]:
            if round_ % stride_of[name] == 0:
                yield round_, name


@dataclass(frozen=True)
class Quartiles:
    """The middle of several measurements, and the half of them around it."""

    low: float
    median: float
    high: float
    count: int


def quartiles(values: Sequence[float]) -> Quartiles | None:
    """Quartiles with linear interpolation; None of nothing.

    >>> quartiles([3.0, 1.0, 2.0])
    Quartiles(low=1.5, median=2.0, high=2.5, count=3)
    """
    if not values:
        return None
    low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return Quartiles(low, median, high, len(values))


def ratios(over: Mapping[int, float], under: Mapping[int, float]) -> list[float]:
    """``over / under`` of every round that both took part in.

    >>> ratios({0: 8.0, 1: 9.0}, {1: 3.0, 2: 1.0})
    [3.0]
    """
    return [over[round_] / under[round_] for round_ in sorted(over.keys() & under.keys())]


def exponent(positions: Sequence[int], seconds: Sequence[float]) -> float | None:
    """The p of ``seconds ~ positions ** p``: least squares on logarithms; None of one size.

    >>> round(exponent([10, 20, 40], [1.0, 4.0, 16.0]), 6)
    2.0
    """
    if len(set(positions)) < 2:
        return None
    slope, _ = np.polyfit(np.log(positions), np.log(seconds), 1)
    return float(slope)


def run_rounds(
    subjects: Mapping[str, Timed],
    clock: Clock,
    *,
    stride_of: Mapping[str, int],
    settle: Mapping[str, bool],
    rounds: int,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[int, float]]:
    """Seconds by name and round."""
    seconds: dict[str, dict[int, float]] = {name: {} for name in subjects}
    for round_, name in interleaved(stride_of, rounds):
        seconds[name][round_] = timed_turn(subjects[name], clock, settle=settle[name])
        progress(name)
    return seconds
