"""Threads that read and write beside the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import torch

__all__ = ["Workers"]

T = TypeVar("T")

_MOST = 8  # decoding and compression of more images at once outrun any network


class Workers:
    """A pool of threads, each of which runs torch on one core.

    Where the block ends, by an exception as well, all tasks that have not been cancelled are waited
    for: what is predicted is written, and files are whole or absent.

    Args:
        inline: have no threads, and run each task at once.
    """

    def __init__(self, *, inline: bool = False) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.count = max(2, min(_MOST, cores or 1))
        self._threads = torch.get_num_threads()
        self._pool = None
        if not inline:
            self._pool = ThreadPoolExecutor(self.count, "fsanet", initializer=_compute_alone)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._threads)  # of threads that start later

    def do(self, task: Callable[..., T], *arguments: Any, here: bool = False) -> Future[T]:
        """Run a task in a thread, or at once if ``here`` is set; its exception is in the future."""
        if self._pool is not None and not here:
            return self._pool.submit(task, *arguments)
        future: Future[T] = Future()
        try:
            future.set_result(task(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def _compute_alone() -> None:
    """Let this thread start no team of threads of its own."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call takes the number, later ones keep it
