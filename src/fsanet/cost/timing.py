"""Time of several calls side by side, in interleaved rounds.

Every round runs each call once and starts with another one, so that slow drifts of the machine
affect all of them alike. Ratios are taken within a round, where such drifts mostly cancel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = [
    "Clock",
    "Quartiles",
    "Timed",
    "Watch",
    "has_bfloat16",
    "no_watch",
    "ratios",
    "time_calls",
]

_SETTLE_BELOW = 0.1  # seconds; a longer call soon fills the caches with its own data
_WARM_UP_TWICE_BELOW = 1.0  # seconds

# Reports progress: takes the title and the number of steps of a phase, and returns a function to
# call with a name after each step.
Watch = Callable[[str, int], Callable[[str], None]]


def no_watch(title: str, count: int) -> Callable[[str], None]:
    """A watch that reports nothing."""
    return lambda name: None


class Clock:
    """Marks on the time line of a device, and the seconds between them.

    On CUDA marks are events in the stream, so that nothing waits before :meth:`seconds` is called;
    elsewhere they are readings of the process's clock, taken once the device has finished.
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
        """Seconds from one mark to a later one."""
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        if isinstance(start, float) and isinstance(end, float):
            return end - start
        raise TypeError("the two marks were taken by different kinds of clock")


@dataclass(frozen=True)
class Timed:
    """A call to time.

    Attributes:
        run: what is timed.
        prepare: called before each run, outside the measured time.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def time_calls(
    calls: Mapping[str, Timed],
    *,
    device: torch.device,
    rounds: int,
    seconds: float = math.inf,
    watch: Watch = no_watch,
    on_error: Callable[[str, Exception], object] | None = None,
) -> dict[str, dict[int, float]]:
    """Warm up, then time calls in interleaved rounds.

    Args:
        calls: calls by name.
        device: the device they run on, whose clock is read.
        rounds: number of rounds; a slow call takes part in fewer of them where time is short.
        seconds: time for all rounds, warm-up not included.
        watch: is notified of the warm-up and the rounds.
        on_error: is given the name and the exception of a call that fails in the warm-up, which is
            then left out; by default the exception is raised.

    Returns:
        Seconds by name and by round, counted from 0.

    >>> seconds = time_calls({"a": Timed(int)}, device=torch.device("cpu"), rounds=3)
    >>> list(seconds["a"])
    [0, 1, 2]
    """
    clock = Clock(device)
    costs: dict[str, float] = {}
    step = watch("warm-up", len(calls))
    for name, call in calls.items():
        try:
            cost = _time(call, clock)
            if cost < _WARM_UP_TWICE_BELOW or name.endswith("-compiled"):  # was it the compiler?
                cost = _time(call, clock)
            costs[name] = cost
        except Exception as error:
            if on_error is None:
                raise
            on_error(name, error)
        step(name)
    settle = {name: cost < _SETTLE_BELOW for name, cost in costs.items()}
    planned = {name: cost * (2 if settle[name] else 1) for name, cost in costs.items()}
    order = list(interleaved(strides(planned, rounds, seconds), rounds))
    taken: dict[str, dict[int, float]] = {name: {} for name in costs}
    step = watch("", len(order))
    for round_, name in order:
        if settle[name]:
            # The caches then hold what this call left there, not the previous one; on CUDA the
            # launches of this run hide the first ones of the timed run, as in a network.
            calls[name].prepare()
            calls[name].run()
        taken[name][round_] = _time(calls[name], clock)
        step(name)
    return taken


def _time(call: Timed, clock: Clock) -> float:
    call.prepare()
    start = clock.mark()
    result = call.run()
    end = clock.mark()
    del result  # not before the end: releasing memory is not part of the time
    return clock.seconds(start, end)


def strides(costs: Mapping[str, float], rounds: int, budget: float) -> dict[str, int]:
    """Choose the rounds each call takes part in: those divisible by its stride, a power of two.

    The budget is shared evenly, and what quick calls leave of their share goes to the slow ones.
    As strides are powers of two, the rounds of a slow call are rounds of every quicker one.

    Args:
        costs: seconds of one run, by name.
        rounds: number of rounds.
        budget: seconds for all of them. Every call takes part in round 0, whatever it costs.

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
    """(round, name) in the order of measuring: each round starts with the next call.

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
    """Median of several measurements, and the range of the half around it."""

    low: float
    median: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Quartiles of one or more values, with linear interpolation.

        >>> Quartiles.of([3.0, 1.0, 2.0])
        Quartiles(low=1.5, median=2.0, high=2.5, count=3)
        """
        low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
        return cls(low, median, high, len(values))


def ratios(over: Mapping[int, float], under: Mapping[int, float]) -> list[float]:
    """``over / under`` for every round that both took part in.

    >>> ratios({0: 8.0, 1: 9.0}, {1: 3.0, 2: 1.0})
    [3.0]
    """
    return [over[round_] / under[round_] for round_ in sorted(over.keys() & under.keys())]


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; True where torch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    names = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
    return capabilities is None or any(capabilities().get(name) for name in names)
