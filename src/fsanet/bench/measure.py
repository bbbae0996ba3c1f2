"""Measure calls: memory alone in a fresh process, then times together in interleaved rounds.

The fresh process finds the peak memory and what is kept for backward, which are the same every
time. A call that needs more memory or time than allowed fails there, and is left out of the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.cost import (
    START_SECONDS,
    Quartiles,
    Stage,
    Timed,
    Watch,
    available_memory,
    describe_error,
    kept_for_backward,
    no_watch,
    peak_memory,
    ratios,
    run_isolated,
    time_calls,
)
from fsanet.errors import InputError, check_ranges, one_line

__all__ = [
    "Findings",
    "Settings",
    "Subject",
    "Timing",
    "measure_alone",
    "measure_memory",
    "time_passes",
    "timed_pass",
    "torch_threads",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How layers or networks are measured.

    Attributes:
        batch: maps or images per call.
        dtype: dtype of input and parameters, by its name in torch.
        device: device, as torch writes it.
        threads: threads of torch's CPU operators.
        rounds: largest number of rounds; slow calls take part in fewer.
        seconds: time for all rounds of one size.
        limit_seconds: what takes longer than this for one forward pass is left out.
        limit_memory: bytes a call may take; None for 80 % of what is free (Linux).
    """

    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)
    rounds: int = 20
    seconds: float = 60.0
    limit_seconds: float = 20.0
    limit_memory: int | None = None

    def __post_init__(self) -> None:
        week = 604_800.0
        check_ranges(
            {
                "batch": (self.batch, 1, 1_000_000),
                "threads": (self.threads, 1, 1024),
                "rounds": (self.rounds, 1, 10_000),
                "seconds": (self.seconds, 0.001, week),
                "limit_seconds": (self.limit_seconds, 0.001, week),
                "limit_memory": (1 if self.limit_memory is None else self.limit_memory, 1, 2**50),
            }
        )

    def check_input(self, channels: int, size: tuple[int, int]) -> None:
        """Check that an input of ``(batch, channels, *size)`` fits into the memory limit.

        Raises:
            InputError: it does not, or a number makes no sense.
        """
        height, width = size
        limits = {"channels": channels, "height": height, "width": width}
        check_ranges({name: (value, 1, 1_000_000) for name, value in limits.items()})
        needed = self.batch * channels * height * width * self.torch_dtype.itemsize
        memory = self.memory()
        if memory is not None and needed > memory:
            raise InputError(
                f"an input of {self.batch}x{channels}x{height}x{width} takes "
                f"{needed / 2**30:,.1f} GiB, and {memory / 2**30:,.1f} may be used; give a smaller "
                "one, or --limit-memory"
            )
        try:
            torch.empty(1, dtype=self.torch_dtype, device=self.device)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise InputError(
                f"dtype={self.dtype}: not on {self.device} ({one_line(error)})"
            ) from error

    def memory(self) -> int | None:
        """Bytes that a call may take; None if that is not known."""
        if self.limit_memory is not None:
            return self.limit_memory
        device = torch.device(self.device)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
        return None if free is None else int(0.8 * free)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Findings:
    """Cost of a layer or network apart from its time; None where it is not known.

    Attributes:
        problem: why there is no forward pass ("out of memory", "over 20 s", ...), or None.
        training_problem: the same for forward + backward.
        parameters: number of learned values.
        flops: FLOPs of a forward pass, as counted by torch.utils.flop_counter.
        flops_by_hand: these plus the FLOPs that the counter cannot see, by formula.
        peak: bytes above the input in a forward pass without gradients.
        kept: bytes kept for backward in training mode.
        training_peak: bytes above input and parameters in forward + backward, including the
            gradients of both.
    """

    problem: str | None = None
    training_problem: str | None = None
    parameters: int | None = None
    flops: int | None = None
    flops_by_hand: int | None = None
    peak: int | None = None
    kept: int | None = None
    training_peak: int | None = None


@dataclass(frozen=True)
class Timing:
    """Times of one layer or network at one size.

    Attributes:
        seconds: seconds of a pass.
        speedup: the baseline's seconds over these, round by round; None without a baseline.
        over_floor: these seconds over the floor's, round by round; None without a floor.
        rounds: seconds by round.
    """

    seconds: Quartiles
    speedup: Quartiles | None
    over_floor: Quartiles | None
    rounds: dict[int, float]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        module: the module, for its parameters and its modes.
        call: the module, or its compiled form.
        x: its input, without gradient.
    """

    module: nn.Module
    call: Callable[[Tensor], Tensor]
    x: Tensor


def measure_alone(
    make: Callable[[], Subject], settings: Settings, findings: Findings, *, backward: bool
) -> Findings:
    """Measure memory in a fresh process, within the limits of the settings.

    Args:
        make: builds what is measured; can be pickled.
        settings: its limits and number of threads are used.
        findings: what is known already, to be completed.
        backward: whether forward + backward is measured as well.
    """
    # On a GPU it would limit the drivers' address space, not the device's memory.
    memory = settings.memory() if torch.device(settings.device).type == "cpu" else None
    outcome = run_isolated(
        measure_memory,
        *(make, settings.limit_seconds, backward),
        memory=memory,
        threads=settings.threads,
    )
    problem = outcome.problem
    if problem and problem.startswith("over") and outcome.stage in ("start", "compile"):
        problem = f"{problem} to {outcome.stage}"
    return replace(
        findings,
        problem=None if "peak" in outcome.found else problem,
        training_problem=problem,
        **outcome.found,
    )


def measure_memory(
    make: Callable[[], Subject], limit_seconds: float, backward: bool
) -> Iterator[Stage | dict[str, Any]]:
    """Find peak memory and what is kept for backward; for :func:`fsanet.cost.run_isolated`."""
    subject = make()
    module, call, x = subject.module, subject.call, subject.x
    peak_memory(lambda: None, x.device)  # starting the profiler is no part of the layer's time

    @torch.no_grad()
    def forward(function: Callable[[Tensor], Tensor]) -> None:
        function(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    module.eval()
    yield Stage("forward", limit_seconds)
    forward(module)
    if call is not module:
        yield Stage("compile", START_SECONDS)
        forward(call)
    yield Stage("forward", 2 * limit_seconds)  # recording it takes time
    yield {"peak": peak_memory(lambda: forward(call), x.device)}
    if not backward:
        return
    module.train()
    x.requires_grad_()
    if call is not module:
        yield Stage("compile", START_SECONDS)
        call(x).sum().backward()
    yield Stage("training", 4 * limit_seconds)
    _clear_gradients(module, x)
    kept = 0

    def step() -> None:
        nonlocal kept
        kept, y = kept_for_backward(module, call, x)
        y.backward(torch.ones_like(y))

    peak = peak_memory(step, x.device)
    yield {"kept": kept, "training_peak": peak}


def timed_pass(subject: Subject, *, training: bool) -> Timed:
    """A forward pass in evaluation mode, or forward + backward in training mode, to be timed."""
    gradient = torch.ones_like(subject.x) if training else None

    def prepare() -> None:
        subject.module.train(training)
        subject.x.requires_grad_(training)
        _clear_gradients(subject.module, subject.x)

    def run() -> Tensor:
        with torch.set_grad_enabled(training):
            y = subject.call(subject.x)
        if training:
            y.backward(gradient)
        return y

    return Timed(run, prepare)


def time_passes(
    passes: Mapping[str, Timed],
    settings: Settings,
    *,
    baseline: str,
    seconds: float,
    watch: Watch = no_watch,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time passes in interleaved rounds.

    Args:
        passes: passes by name; those named ``baseline`` and "floor" are what ratios refer to.
        settings: its device and number of rounds are used.
        baseline: name of the pass that speed-ups refer to.
        seconds: time for the rounds.
        watch: is notified of both phases.

    Returns:
        Timings of those that ran and problems of those that did not, by name.
    """
    problems: dict[str, str] = {}

    def note(name: str, error: Exception) -> None:
        problems[name] = describe_error(error)

    taken = time_calls(
        passes,
        device=torch.device(settings.device),
        rounds=settings.rounds,
        seconds=seconds,
        watch=watch,
        on_error=note,
    )
    base, floor = taken.get(baseline), taken.get("floor")
    timings = {
        name: Timing(
            Quartiles.of(list(rounds.values())),
            speedup=None if base is None else Quartiles.of(ratios(base, rounds)),
            over_floor=None if floor is None else Quartiles.of(ratios(rounds, floor)),
            rounds=rounds,
        )
        for name, rounds in taken.items()
    }
    return timings, problems


def _clear_gradients(module: nn.Module, x: Tensor) -> None:
    for tensor in (x, *module.parameters()):
        tensor.grad = None


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch's CPU operators on ``count`` threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
