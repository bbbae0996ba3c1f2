"""Threads that predict images beside each other, and read and write beside the network."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
        most: threads at most; with one, there is no pool, and each task runs at once.
    """

    def __init__(self, most: int = _MOST) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.count = min(max(2, min(_MOST, cores or 1)), most)
        self._threads = torch.get_num_threads()
        self._turn = threading.Condition()
        self._computing: tuple[Hashable, int] = None, 0  # what is computed, and by how many
        self._pool = None
        if self.count > 1:
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

    @contextmanager
    def computing(self, alike: Hashable, most: int) -> Iterator[None]:
        """Run a network in the block, beside at most ``most - 1`` others that are ``alike``.

        Each has an equal share of the cores that torch uses. Between images the cores need not wait
        for each other, as they do within a layer.
        """
        most = max(1, min(most, self.count, self._threads))
        with self._turn:
            self._turn.wait_for(
                lambda: (
                    self._computing[1] == 0
                    or (self._computing[0] == alike and self._computing[1] < most)
                )
            )
            self._computing = alike, self._computing[1] + 1
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads // most)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            with self._turn:
                self._computing = alike, self._computing[1] - 1
                self._turn.notify_all()


def _compute_alone() -> None:
    """Let this thread start no team of threads of its own."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call takes the number, later ones keep it
