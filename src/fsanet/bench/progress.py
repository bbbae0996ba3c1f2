"""Progress of the bench on the console."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Rate", "make_progress", "watch_on"]


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")


def make_progress() -> Progress:
    """A bar on stderr that leaves nothing behind; silent where nobody watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[current]}"),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )


def watch_on(progress: Progress) -> Callable[[str, int], Callable[[str], None]]:
    """A watch for :func:`fsanet.bench.harness.run_bench`: one bar, reset at each phase."""
    task = progress.add_task("", total=None, current="")

    def watch(title: str, count: int) -> Callable[[str], None]:
        progress.reset(task, total=count, description=title, current="")

        def step(name: str) -> None:
            progress.update(task, advance=1, current=name)

        return step

    return watch
