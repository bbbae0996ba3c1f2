"""Run a measurement in a fresh process, within limits of memory and time.

A call that needs more than the machine has then fails there, and the program that measures it goes
on. Fresh processes also make memory figures independent of what was measured before.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from fsanet.cost.memory import is_out_of_memory, limit_memory
from fsanet.errors import InputError
from fsanet.files import check_sockets

__all__ = ["START_SECONDS", "Outcome", "Stage", "describe_error", "run_isolated"]

START_SECONDS = 300.0  # to import and build what is measured


@dataclass(frozen=True)
class Stage:
    """Announces the next part of a measurement, and how many seconds it may take."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What an isolated measurement found.

    Attributes:
        found: its results, as far as it got.
        stage: the last stage it announced; "start" before the first.
        problem: why it did not finish ("out of memory", "over 20 s", ...), or None.
    """

    found: dict[str, Any]
    stage: str
    problem: str | None


def run_isolated(
    measure: Callable[..., Iterable[Stage | dict[str, Any]]],
    *arguments: Any,
    memory: int | None,
    threads: int,
) -> Outcome:
    """Run ``measure(*arguments)`` in a fresh process; what goes wrong there is not raised.

    Args:
        measure: a generator function that can be pickled. It yields dictionaries of results, and a
            :class:`Stage` before each part that has a time limit.
        *arguments: its arguments, which can be pickled.
        memory: bytes the process may take from the first stage on; None for no limit.
        threads: number of threads of torch's CPU operators.

    Raises:
        InputError: the path of the temporary folder is too long.
    """
    check_sockets()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _fresh_process(sender, measure, arguments, memory, threads)
    process.start()
    sender.close()  # so that the end of the process closes the pipe
    found: dict[str, Any] = {}
    stage = Stage("start", START_SECONDS)
    deadline = time.monotonic() + stage.seconds
    problem: str | None = None
    try:
        while True:
            if not receiver.poll(max(deadline - time.monotonic(), 0)):
                problem = f"over {stage.seconds:g} s"
                break
            try:
                message = receiver.recv()
            except (EOFError, OSError):
                process.join(10)
                problem = _cause_of_death(process.exitcode)
                break
            if isinstance(message, Stage):
                stage, deadline = message, time.monotonic() + message.seconds
            elif isinstance(message, dict):
                found |= message
            else:
                problem = message
                process.join(10)
                break
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        receiver.close()
    return Outcome(found, stage.name, problem)


def describe_error(error: Exception) -> str:
    """Why a measurement failed, on one short line."""
    if is_out_of_memory(error):
        return "out of memory"
    first = (str(error).splitlines() or [""])[0]
    text = first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
    return f"failed ({text[:160]})"


def _fresh_process(
    sender: Connection, measure: Callable[..., Any], *arguments: object
) -> BaseProcess:
    if sys.platform == "win32":
        context: Any = multiprocessing.get_context("spawn")
    else:
        context = multiprocessing.get_context("forkserver")
        _end_server_at_exit()
        # Imported once for all processes: this module, that of the measurement (which the fork
        # server finds only if it is installed), and what autograd imports at the first backward.
        lazy = "torch.fx.experimental.symbolic_shapes"
        context.set_forkserver_preload([__name__, measure.__module__, lazy])
    return context.Process(target=_child, args=(sender, measure, *arguments), daemon=True)


@functools.cache
def _end_server_at_exit() -> None:
    """End the fork server with this process; by itself, it would need seconds to notice and end."""
    from multiprocessing import forkserver

    def end() -> None:
        server: Any = forkserver._forkserver
        process = getattr(server, "_forkserver_pid", None)
        if process is not None and os.getpid() == owner:
            os.kill(process, signal.SIGKILL)
            server._stop()  # waits for it, and removes its socket

    owner = os.getpid()
    atexit.register(end)


def _child(
    sender: Connection,
    measure: Callable[..., Iterable[Stage | dict[str, Any]]],
    arguments: tuple[Any, ...],
    memory: int | None,
    threads: int,
) -> None:
    """Send each message of the measurement, then its problem, None if there is none."""
    if sys.platform != "win32":  # PyTorch's profiler logs to stderr
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(threads)
    problem: str | None = None
    try:
        for message in measure(*arguments):
            if isinstance(message, Stage) and memory is not None:
                limit_memory(memory)
                memory = None  # once: the limit is relative to what the process holds
            sender.send(message)
    except Exception as error:
        problem = describe_error(error)
    sender.send(problem)
    sender.close()


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code == -9:
        return "out of memory (killed by the system)"
    return f"failed (exit code {exit_code})"
