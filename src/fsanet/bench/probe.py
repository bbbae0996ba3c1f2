"""One layer, one size, in a process of its own, within limits of memory and time.

What is found there once - FLOPs, peak memory, bytes kept for backward - is the same each time; and
a layer that needs more than the machine has fails there, while the bench goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fsanet.bench.memory import (
    available_bytes,
    kept_for_backward,
    limit_memory,
    out_of_memory,
    peak_of,
)
from fsanet.cost import counted_flops, parameters_of
from fsanet.errors import InputError

__all__ = ["Findings", "Job", "Limits", "Subject", "run_probe"]

_START_SECONDS = 300.0  # to import, build and compile: not the layer's own time


@dataclass(frozen=True)
class Subject:
    """What a job makes.

    Attributes:
        module: for its parameters and modes.
        call: the module, or its compiled form.
        x: input, without gradient.
        flops_by_hand: of a forward pass, where known.
    """

    module: nn.Module
    call: Callable[[Tensor], Tensor]
    x: Tensor
    flops_by_hand: int | None = None


class Job(Protocol):
    """Something to be probed; has to survive pickling."""

    @property
    def device(self) -> str: ...

    @property
    def backward(self) -> bool: ...

    def prepare(self) -> Subject: ...


@dataclass(frozen=True)
class Limits:
    """Of a probe.

    Attributes:
        seconds: for one forward pass; forward + backward may take four times that.
        memory: bytes beyond what the started process holds; None for no limit.
        threads: of torch's CPU operators.
    """

    seconds: float
    memory: int | None
    threads: int

    @classmethod
    def of(cls, seconds: float, memory: int | None, threads: int) -> Limits:
        """With 80 % of the memory that is free now where ``memory`` is None."""
        if memory is None:
            free = available_bytes()
            memory = None if free is None else int(0.8 * free)
        return cls(seconds, memory, threads)


@dataclass(frozen=True)
class Findings:
    """What a probe found; None where it did not come so far.

    Attributes:
        problem: why there is no forward pass ("out of memory", "over 20 s", ...), or None.
        training_problem: the same of forward + backward.
        parameters: learned values.
        flops: of a forward pass, as counted by torch.utils.flop_counter.
        flops_by_hand: the same by formula.
        peak: bytes above the input in a forward pass without gradients.
        kept: bytes kept for backward in training.
        training_peak: bytes above the input and parameters in forward + backward, gradients of
            both among them.
    """

    problem: str | None = None
    training_problem: str | None = None
    parameters: int | None = None
    flops: int | None = None
    flops_by_hand: int | None = None
    peak: int | None = None
    kept: int | None = None
    training_peak: int | None = None


@dataclass
class _Progress:
    """What the parent knows of the child: how far it is, until when it may take."""

    stage: str = "start"
    deadline: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)


def run_probe(job: Job, limits: Limits) -> Findings:
    """Probe a job; never raises for what goes wrong inside it."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _fresh_process(sender, job, limits)
    process.start()
    sender.close()  # so that the end of the child is the end of the pipe
    progress = _Progress(deadline=time.monotonic() + _START_SECONDS)
    problem: str | None = "interrupted"
    try:
        problem = _listen(receiver, progress, limits)
    finally:
        if problem is None or problem == "":  # it is on its way out by itself
            process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        receiver.close()
    if problem == "":
        problem = _cause_of_death(process.exitcode)
    findings = Findings(**progress.found)
    if problem is None:
        return findings
    if progress.stage == "training":
        return replace(findings, training_problem=problem)
    return replace(findings, problem=problem, training_problem=problem)


def _fresh_process(sender: Connection, job: Job, limits: Limits) -> BaseProcess:
    arguments = (sender, job, limits)
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn").Process(target=_probe, args=arguments)
    context = multiprocessing.get_context("forkserver")
    # Imported once for all probes; and all of them run the code that was there at the start.
    context.set_forkserver_preload([type(job).__module__])
    return context.Process(target=_probe, args=arguments, daemon=True)


def _listen(receiver: Connection, progress: _Progress, limits: Limits) -> str | None:
    """Take in messages until the child is done; what went wrong, "" if it died without a word."""
    while True:
        if not receiver.poll(max(progress.deadline - time.monotonic(), 0)):
            seconds = {"forward": limits.seconds, "training": 4 * limits.seconds}
            if progress.stage in seconds:
                return f"over {seconds[progress.stage]:g} s"
            return f"over {_START_SECONDS:g} s to {progress.stage}"
        try:
            kind, content = receiver.recv()
        except (EOFError, OSError):
            return ""
        if kind == "stage":
            progress.stage, seconds_left = content
            progress.deadline = time.monotonic() + seconds_left
        elif kind == "found":
            progress.found.update(content)
        elif kind == "problem":
            return str(content)
        else:
            return None


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code == -9:
        return "out of memory (killed by the system)"
    return f"failed (exit code {exit_code})"


def _probe(sender: Connection, job: Job, limits: Limits) -> None:
    """The child: sends ("stage", ...), ("found", {...}), then ("problem", text) or ("done", 0)."""
    if sys.platform != "win32":  # the profiler talks of its own affairs
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        _work(sender, job, limits)
        sender.send(("done", 0))
    except Exception as error:
        sender.send(("problem", describe(error)))
    sender.close()


def describe(error: Exception) -> str:
    """One short line on why a layer could not run."""
    if out_of_memory(error):
        return "out of memory"
    lines = str(error).splitlines()
    first = lines[0] if lines else ""
    text = first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
    return f"failed ({text[:160]})"


def _work(sender: Connection, job: Job, limits: Limits) -> None:
    torch.set_num_threads(limits.threads)
    device = torch.device(job.device)
    subject = job.prepare()
    module, call, x = subject.module, subject.call, subject.x
    sender.send(
        (
            "found",
            {"parameters": parameters_of(module), "flops_by_hand": subject.flops_by_hand},
        )
    )
    counted_flops(lambda: None)  # the tools' own start is not the layer's time
    _peak(lambda: None, device)
    if device.type == "cpu" and limits.memory is not None:
        limit_memory(limits.memory)
    module.eval()
    with torch.no_grad():
        sender.send(("stage", ("forward", limits.seconds)))
        sender.send(("found", {"flops": counted_flops(lambda: _finish(module(x), device))}))
        if call is not module:
            sender.send(("stage", ("compile", _START_SECONDS)))
            call(x)
        sender.send(("stage", ("forward", 2 * limits.seconds)))  # a profile takes its time
        sender.send(("found", {"peak": _peak(lambda: call(x), device)}))
    if not job.backward:
        return
    module.train()
    if call is not module:
        sender.send(("stage", ("compile", _START_SECONDS)))
        call(x.requires_grad_()).sum().backward()
    sender.send(("stage", ("training", 4 * limits.seconds)))
    x.requires_grad_()
    for tensor in (x, *module.parameters()):
        tensor.grad = None
    kept: list[int] = []

    def step() -> None:
        count, y = kept_for_backward(module, call, x)
        kept.append(count)
        y.backward(torch.ones_like(y))

    training_peak = _peak(step, device)
    sender.send(("found", {"kept": kept[0], "training_peak": training_peak}))


def _peak(run: Callable[[], object], device: torch.device) -> int | None:
    return peak_of(run, device)[0] if device.type in ("cpu", "cuda") else None


def _finish(y: Tensor, device: torch.device) -> Tensor:
    """Wait for it, so that its time is inside the limit."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return y
