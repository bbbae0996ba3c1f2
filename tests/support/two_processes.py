"""Run a function in two connected processes."""

import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_two_processes(work, *arguments, seconds=120):
    """Results of ``work(rank, *arguments)`` for ranks 0 and 1, which share a gloo process group.

    The processes are forks of this one, because importing torch and lightning again takes most of
    the time of such a test; where there is a GPU, which forks cannot use, they are spawned.
    """
    method = "spawn" if torch.cuda.is_available() else "fork"
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _enter, (work, folder, arguments), nprocs=2, join=False, start_method=method
        )
        stop = time.monotonic() + seconds
        while not context.join(timeout=1):
            if time.monotonic() > stop:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{work.__name__} takes more than {seconds} s")
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]


def _enter(rank, work, folder, arguments):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        torch.save(work(rank, *arguments), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()
