"""All layers on the same tensors: probed one by one, then timed in interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsanet.bench.cases import Case, find_cases, flops_by_hand
from fsanet.bench.probe import Findings, Subject, describe, run_probe
from fsanet.bench.results import Report, Row, Settings, Timing
from fsanet.bench.timing import (
    Clock,
    Timed,
    interleaved,
    quartiles,
    ratios,
    run_rounds,
    strides,
    timed_turn,
)
from fsanet.files import environment

__all__ = ["LayerJob", "Watch", "run_bench", "time_subjects"]

FLOOR = "floor"
_SETTLE_BELOW = 0.1  # seconds: what a longer run finds in the caches is soon its own

# Takes the title and the number of steps of a phase; gives what to call with a name at each step.
Watch = Callable[[str, int], Callable[[str], None]]


def no_watch(title: str, count: int) -> Callable[[str], None]:
    """For callers that show no progress."""
    return lambda name: None


@dataclass(frozen=True)
class LayerJob:
    """A layer and its input, as sent to a probe."""

    name: str
    height: int
    width: int
    channels: int
    batch: int
    dtype: str
    device: str
    backward: bool

    @classmethod
    def of(cls, settings: Settings, case: Case, size: tuple[int, int]) -> LayerJob:
        return cls(
            case.name,
            *size,
            channels=settings.channels,
            batch=settings.batch,
            dtype=settings.dtype,
            device=settings.device,
            backward=settings.backward,
        )

    def prepare(self) -> Subject:
        (case,) = find_cases([self.name])
        device, dtype = torch.device(self.device), getattr(torch, self.dtype)
        torch.manual_seed(0)
        module = case.build(self.channels, device, dtype)
        shape = self.batch, self.channels, self.height, self.width
        x = torch.randn(shape, device=device, dtype=dtype)
        call: Any = torch.compile(module, dynamic=False) if case.compiled else module
        return Subject(module, call, x, flops_by_hand(module, self.batch, self.height, self.width))


class Pass:
    """A layer's forward pass, or forward and backward, as the clock takes it."""

    def __init__(self, subject: Subject, *, training: bool) -> None:
        self.subject, self.training = subject, training
        self.seed = torch.ones_like(subject.x) if training else None

    def prepare(self) -> None:
        module, x = self.subject.module, self.subject.x
        module.train(self.training)
        x.requires_grad_(self.training)
        for tensor in (x, *module.parameters()):
            tensor.grad = None

    def run(self) -> Tensor:
        if not self.training:
            with torch.no_grad():
                return self.subject.call(self.subject.x)
        y = self.subject.call(self.subject.x)
        y.backward(self.seed)
        return y


def run_bench(
    settings: Settings,
    *,
    watch: Watch = no_watch,
    done: Callable[[Report, tuple[int, int]], None] = lambda report, size: None,
) -> Report:
    """Measure all layers at all sizes, the smallest first.

    Args:
        settings: what and how.
        watch: is told of each phase and each step in it.
        done: is called after each size, with all rows so far.

    Raises:
        InputError: for an unknown layer.
    """
    names = list(settings.layers)
    if settings.baseline not in names:
        names.append(settings.baseline)
    cases = find_cases(names)
    rows: list[Row] = []
    with threads(settings.threads):
        about = environment(settings.device)
        for size in sorted(set(settings.sizes), key=lambda size: (size[0] * size[1], size)):
            rows += _measure_size(settings, cases, size, rows, watch)
            done(Report(settings, about, tuple(rows)), size)
    return Report(settings, about, tuple(rows))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with so many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure_size(
    settings: Settings,
    cases: Sequence[Case],
    size: tuple[int, int],
    earlier: Sequence[Row],
    watch: Watch,
) -> list[Row]:
    title = f"{size[0]}x{size[1]}"
    found: dict[str, Findings] = {}
    step = watch(f"{title} probe", len(cases))
    for case in cases:
        known = _known_problem(case, size, earlier)
        found[case.name] = known or run_probe(LayerJob.of(settings, case, size), settings.limits())
        step(case.name)

    torch.compiler.reset()  # what was compiled for the last size would make this one dynamic
    subjects: dict[str, Subject] = {}
    x = None
    for case in cases:
        if found[case.name].problem is None:
            subject = LayerJob.of(settings, case, size).prepare()
            x = subject.x if x is None else x  # one and the same for all
            subjects[case.name] = replace(subject, x=x)
    shared: dict[str, Any] = {
        "device": torch.device(settings.device),
        "baseline": settings.baseline,
        "rounds": settings.rounds,
        "seconds": settings.seconds / 2 if settings.backward else settings.seconds,
    }
    forward, problems = time_subjects(
        {name: Pass(subject, training=False) for name, subject in subjects.items()},
        watch=lambda text, count: watch(f"{title} forward{text}", count),
        **shared,
    )
    training: dict[str, Timing] = {}
    training_problems: dict[str, str] = {}
    if settings.backward:
        training, training_problems = time_subjects(
            {
                name: Pass(subject, training=True)
                for name, subject in subjects.items()
                if name in forward and found[name].training_problem is None
            },
            watch=lambda text, count: watch(f"{title} forward + backward{text}", count),
            **shared,
        )
    return [
        Row(
            case,
            *size,
            _with_problems(
                found[case.name], problems.get(case.name), training_problems.get(case.name)
            ),
            forward.get(case.name),
            training.get(case.name),
        )
        for case in cases
    ]


def _known_problem(case: Case, size: tuple[int, int], earlier: Sequence[Row]) -> Findings | None:
    """What was too much on a smaller map is not tried on a larger one."""
    for row in earlier:
        problem = row.findings.problem
        smaller = row.positions < size[0] * size[1]
        if row.case is case and smaller and problem and not problem.startswith("failed"):
            text = problem if " at " in problem else f"{problem} at {row.height}x{row.width}"
            return Findings(problem=text, training_problem=text)
    return None


def _with_problems(findings: Findings, forward: str | None, training: str | None) -> Findings:
    return replace(
        findings,
        problem=findings.problem or forward,
        training_problem=findings.training_problem or forward or training,
    )


def time_subjects(
    subjects: Mapping[str, Timed],
    *,
    device: torch.device,
    baseline: str,
    rounds: int,
    seconds: float,
    watch: Watch = no_watch,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Warm up, plan, and time in interleaved rounds.

    Args:
        subjects: by name; ``baseline`` and "floor" among them are what ratios refer to.
        device: whose clock to read.
        rounds: at most.
        seconds: for the rounds, warming up not included.
        watch: is told of both phases.

    Returns:
        Timings, and problems of those that failed, by name.
    """
    clock = Clock(device)
    costs: dict[str, float] = {}
    problems: dict[str, str] = {}
    step = watch(": warm up", len(subjects))
    for name, subject in subjects.items():
        try:
            costs[name] = timed_turn(subject, clock, settle=False)
            if costs[name] < 1 or name.endswith("-compiled"):  # it may have been the compiler
                costs[name] = timed_turn(subject, clock, settle=False)
        except Exception as error:  # whatever it is, the others go on
            problems[name] = describe(error)
            costs.pop(name, None)
        step(name)
    settle = {name: cost < _SETTLE_BELOW for name, cost in costs.items()}
    planned = {name: cost * (2 if settle[name] else 1) for name, cost in costs.items()}
    stride_of = strides(planned, rounds, seconds)
    taken = run_rounds(
        {name: subjects[name] for name in costs},
        clock,
        stride_of=stride_of,
        settle=settle,
        rounds=rounds,
        progress=watch("", sum(1 for _ in interleaved(stride_of, rounds))),
    )
    timings = {}
    for name, by_round in taken.items():
        middle = quartiles(list(by_round.values()))
        if middle is None:
            continue
        base, floor = taken.get(baseline), taken.get(FLOOR)
        timings[name] = Timing(
            seconds=middle,
            speedup=None if base is None else quartiles(ratios(base, by_round)),
            over_floor=None if floor is None else quartiles(ratios(by_round, floor)),
            rounds=by_round,
        )
    return timings, problems
