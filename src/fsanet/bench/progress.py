"""Progress of the bench on the console."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import Progress

__all__ = ["watch_on"]


def watch_on(progress: Progress) -> Callable[[str, int], Callable[[str], None]]:
    """A watch for :func:`fsanet.bench.harness.run_bench`: one bar, reset at each phase."""
    task = progress.add_task("", total=None, current="")

    def watch(title: str, count: int) -> Callable[[str], None]:
        progress.reset(task, total=count, description=title, current="")

        def step(name: str) -> None:
            progress.update(task, advance=1, current=name)

        return step

    return watch
