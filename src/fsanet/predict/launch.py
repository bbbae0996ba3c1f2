"""The processes that share a prediction: which one this is, and how to start several.

torch's elastic launcher starts and watches them; they share only the output folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fsanet.errors import InputError
from fsanet.files import check_writable, lock_folder
from fsanet.signals import Interrupted

__all__ = [
    "Process",
    "choose_devices",
    "is_launched",
    "launch",
    "process_device",
    "report_error",
    "this_process",
]

_MOST_DEVICES = 1024  # on one machine
_MOST_NODES = 65536
_FEW_PROCESSES = 16  # allowed on any CPU
_RUN_ID = "fsanet-predict"  # marks the processes that `launch` has started


class Process(NamedTuple):
    """Rank of a process, number of processes, and rank on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def this_process() -> Process:
    """This process among those that torchrun, SLURM or `launch` has started for one command.

    Raises:
        InputError: the variables of the environment that say so make no sense.
    """
    variables = os.environ
    if {"RANK", "WORLD_SIZE"} <= variables.keys():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif variables.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        # Set by srun for each task, not by sbatch for the script itself.
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Process()
    given = [variables.get(name, "0") for name in names]
    numbers = [int(text) for text in given if text.isdecimal()]
    if len(numbers) < len(names) or numbers[0] >= numbers[1]:
        found = ", ".join(f"{name}={text}" for name, text in zip(names, given, strict=True))
        raise InputError(
            f"{found}: expected numbers from 0, the first below the second; unset them"
        )
    return Process(*numbers)


def is_launched() -> bool:
    """Whether `launch` has started this process."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == _RUN_ID


def choose_devices(accelerator: str, devices: str) -> list[str]:
    """The device of each process on this machine.

    Args:
        accelerator: "cpu", "gpu", "cuda", "mps", or "auto" for GPUs if there are any.
        devices: number of processes, "auto" for one per GPU, or numbers of GPUs such as "0,2".

    Raises:
        InputError: this machine does not have these devices.
    """
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    kind = {"auto": "cuda" if gpus else "cpu", "gpu": "mps" if mps and not gpus else "cuda"}
    accelerator = kind.get(accelerator, accelerator)
    available = {"cpu": 1, "cuda": gpus, "mps": int(mps)}.get(accelerator, 0)
    if not available:
        raise InputError(
            f"accelerator {accelerator}: not available on this machine; give cpu, gpu or auto"
        )
    indices: list[int] = []
    with contextlib.suppress(ValueError):
        if devices in ("auto", "-1"):
            indices = list(range(available))
        elif "," in devices:
            indices = [int(number) for number in devices.split(",") if number]
        else:
            indices = list(range(min(int(devices), _MOST_DEVICES + 1)))
    if not 0 < len(indices) <= _MOST_DEVICES or min(indices) < 0:
        raise InputError(
            f"devices {devices}: give a number of processes, auto, or numbers of GPUs (0,2)"
        )
    if accelerator == "cpu":
        most = max(_FEW_PROCESSES, os.cpu_count() or 1)
        if len(indices) > most:
            raise InputError(f"devices {devices}: at most {most} processes on this machine's CPU")
        return ["cpu"] * len(indices)
    if max(indices) >= available:
        raise InputError(f"devices {devices}: this machine has {available} for {accelerator}")
    return [f"{accelerator}:{index}" for index in indices]


def process_device(accelerator: str, devices: str) -> str:
    """The device of this process; the arguments are those of `choose_devices`."""
    process = this_process()
    if process.world_size > 1 and devices == "1":
        devices = "auto"  # torchrun and SLURM say how many there are
    chosen = choose_devices(accelerator, devices)
    return chosen[process.local_rank % len(chosen)]


def launch(
    arguments: Sequence[str], out: Path, *, accelerator: str, devices: str, num_nodes: int = 1
) -> bool:
    """Run an ``fsanet`` command in several processes on this machine, and wait for them.

    With ``num_nodes`` above 1 the command has to be started on each machine, with ``NODE_RANK``,
    ``MASTER_ADDR`` and ``MASTER_PORT`` in the environment.

    Args:
        arguments: of the command.
        out: folder that the processes write to; other commands are kept out until they have ended.
        accelerator, devices: as for `choose_devices`.
        num_nodes: number of machines.

    Returns:
        False if one process is enough, or if this is one of the processes.

    Raises:
        InputError: devices that this machine does not have, the folder is in use, or a process
            has failed.
        KeyboardInterrupt: the command was interrupted.
    """
    if not 1 <= num_nodes <= _MOST_NODES:
        raise InputError(f"num_nodes is {num_nodes}; give a number of machines from 1 on")
    processes, started = len(choose_devices(accelerator, devices)), this_process().world_size
    if started > 1 and processes * num_nodes not in (1, started):
        raise InputError(
            f"{started} processes were started, but devices x num_nodes is "
            f"{processes * num_nodes}; make them equal"
        )
    if started > 1 or processes * num_nodes == 1:
        return False
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # failures are reported below
        logging.getLogger(f"torch.distributed.elastic.{name}").disabled = True
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    check_writable(out)
    # Held here, not by one of the processes: others could write before it locks and after it ends.
    with lock_folder(out, "is being written"), tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=num_nodes,
            max_nodes=num_nodes,
            nproc_per_node=processes,
            run_id=_RUN_ID,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            **_rendezvous(num_nodes),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "fsanet", *arguments)
        except SignalException as stop:
            raise Interrupted(stop.sigval) from stop
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            message: Any = failure.error_file_data["message"]
            if failure.exitcode == 2 and isinstance(message, dict):  # from `report_error`
                raise InputError(message["message"].removeprefix("InputError: ")) from error
            raise InputError(
                f"process {rank} failed with exit code {failure.exitcode}, see its message above; "
                "the same command with --resume goes on"
            ) from error
    return True


def report_error(error: InputError) -> None:
    """Pass the error of this process on to the one that called `launch`."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def _rendezvous(num_nodes: int) -> dict[str, Any]:
    """Where the launchers of all machines meet, as arguments of torch's launcher."""
    if num_nodes == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    try:
        node, address, port = (
            os.environ[name] for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
        )
    except KeyError as error:
        raise InputError(
            f"num_nodes {num_nodes}: {error.args[0]} is not set; use torchrun or SLURM, or set "
            "NODE_RANK, MASTER_ADDR and MASTER_PORT on each machine"
        ) from error
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": int(node)},
    }
