"""The processes that share the work of one command: who is who, and what they tell each other.

Lightning's Fabric starts them, or finds those that torchrun or SLURM have started. One process on
one device needs none of it, and does not wait for its import.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import distributed

from fsanet.errors import InputError

__all__ = ["Processes", "Pulse", "start_processes", "started_outside"]

T = TypeVar("T")


class Processes:
    """The processes of this command, on all machines.

    Attributes:
        rank: number of this one, from 0.
        count: how many there are.
        device: where this one computes; None leaves the model where it is.
    """

    def __init__(
        self, *, rank: int = 0, count: int = 1, device: torch.device | str | None = None
    ) -> None:
        self.rank = rank
        self.count = count
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this is the process that plans, sums up and speaks."""
        return self.rank == 0

    def together(self, action: Callable[[], T]) -> T:
        """Run ``action`` in every process; an `InputError` of one is raised in all."""
        value, problem = _attempt(action)
        self.raise_first(self.collect(problem))
        return value  # type: ignore[return-value]

    def by_first(self, action: Callable[[], T]) -> T:
        """Run ``action`` in the first process; all get its value, or its `InputError`."""
        answer: list[Any] = [_attempt(action) if self.first else None]
        if self.count > 1:
            _exchange(lambda: distributed.broadcast_object_list(answer, src=0))
        value, problem = answer[0]
        if problem is not None:
            raise InputError(problem)
        return value

    def collect(self, value: T) -> list[T]:
        """The values of all processes, in all of them."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            _exchange(lambda: distributed.all_gather_object(values, value))
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the first one, an empty list in the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.first else None
        _exchange(lambda: distributed.gather_object(value, values, dst=0))
        return values or []

    @staticmethod
    def raise_first(problems: list[str | None]) -> None:
        """Raise an `InputError` with the first problem, if there is one."""
        for problem in problems:
            if problem is not None:
                raise InputError(problem)


class Pulse:
    """Tells every process, about twice a second, how far all are, and whether one has stopped.

    A thread of each process takes part in rounds, while the main threads work. So one that fails is
    noticed by the others between two images, and nobody waits for it at the end. A process that is
    gone closes its connections, which ends the round at once; one that is silent ends it after the
    timeout of the process group, 30 minutes.

    Args:
        processes: who takes part.
        on_change: called with the sum of ``done`` of all processes.

    Attributes:
        stopped: a process has left with an exception.
        lost: what was noticed of a process that is gone.
    """

    EVERY = 0.5  # seconds
    _WORKING, _FINISHED, _STOPPED = range(3)

    def __init__(self, processes: Processes, on_change: Callable[[int], object]) -> None:
        self.stopped = False
        self.lost: str | None = None
        self._count = processes.count
        self._on_change = on_change
        self._done = 0
        self._state = self._WORKING
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._rounds, daemon=True)

    @property
    def ended(self) -> bool:
        """Whether there is no use in going on."""
        return self.stopped or self.lost is not None

    def advance(self, count: int) -> None:
        """So many more are done by this process."""
        self._done += count
        if self._count == 1:
            self._on_change(self._done)

    def __enter__(self) -> Self:
        if self._count > 1:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for the others to finish, or tells them not to."""
        self._state = self._FINISHED if kind is None else self._STOPPED
        self._leaving.set()
        if not self._thread.is_alive():
            return
        try:
            self._thread.join()
        except KeyboardInterrupt:
            # Nobody else may talk to the other processes before the rounds have ended.
            self._state = self._STOPPED
            self._thread.join()
            raise

    def _rounds(self) -> None:
        while True:
            self._leaving.wait(self.EVERY)
            mine = torch.tensor([self._state, self._done])  # the state first: done is final then
            rows = [torch.empty_like(mine) for _ in range(self._count)]
            try:
                distributed.all_gather(rows, mine)
            except RuntimeError as error:
                self.lost = _gone(error)
                return
            states, done = torch.stack(rows).unbind(1)  # (processes,), (processes,)
            self._on_change(int(done.sum()))
            if bool((states == self._STOPPED).any()):
                self.stopped = True
                return
            if bool((states == self._FINISHED).all()):
                return


def start_processes(
    *,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    device: torch.device | str | None = None,
) -> Processes:
    """Start the other processes of this command, or join those a launcher has started.

    Without a launcher, Lightning runs this very command again for each further device of this
    machine, and other machines are given ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``.

    Args:
        accelerator: "cpu", "gpu", or "auto"; with one process "auto" leaves the model alone.
        devices: processes on each machine, "auto" for one a device, or a list such as "0,2".
        num_nodes: machines.
        strategy: "auto" or "ddp".
        device: torch's name of the device of a single process.

    Raises:
        InputError: options that do not fit each other, the machine, or the launcher.
    """
    if strategy not in ("auto", "ddp"):
        raise InputError(f"strategy {strategy}: prediction knows auto and ddp")
    alone = str(devices) == "1" and num_nodes == 1 and strategy == "auto"
    if alone and started_outside() == 1:
        return Processes(device=_device(accelerator) if device is None else device)
    if device is not None:
        raise InputError(
            f"device {device}: is of a single process; give accelerator and devices for several"
        )
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        # Messages are few and small and none is of a tensor on a GPU: gloo is enough, and notices
        # at once when a process is gone.
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=DDPStrategy(process_group_backend="gloo"),
        )
        expected = started_outside()
        if expected > 1 and expected != fabric.world_size:
            raise InputError(
                f"{expected} processes were started, but devices x num_nodes is "
                f"{fabric.world_size}; make them equal"
            )
        fabric.launch()
        # Left to the end of the interpreter, gloo's threads are now and then still there when what
        # they belong to is gone, and the process aborts with its work done.
        atexit.unregister(_leave)
        atexit.register(_leave)
    except InputError:
        raise
    except (ValueError, RuntimeError, TypeError, MisconfigurationException) as error:
        raise InputError(f"processes: {' '.join(str(error).split())}") from error
    return Processes(rank=fabric.global_rank, count=fabric.world_size, device=fabric.device)


def _leave() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def started_outside() -> int:
    """How many processes torchrun or srun have started for this command; 1 without them."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment.get("WORLD_SIZE", "1"))
    # Set by srun for a step, not by sbatch for the script in which a single process may run.
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))


def _device(accelerator: str) -> str | None:
    if accelerator == "auto":
        return None
    if accelerator == "cpu":
        return "cpu"
    for name, known in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if accelerator in (name, "gpu") and known.is_available():
            return name
    raise InputError(f"accelerator {accelerator}: not on this machine; give cpu, gpu or auto")


def _attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return action(), None
    except InputError as error:
        return None, str(error)


def _exchange(talk: Callable[[], object]) -> None:
    try:
        talk()
    except RuntimeError as error:
        raise InputError(_gone(error)) from error


def _gone(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"another process is gone ({line[:200]}); see what it said last"
