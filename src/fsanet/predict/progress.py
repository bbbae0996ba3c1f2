"""Progress on the console: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Rate", "image_progress", "make_progress"]

_EVERY = 30.0  # seconds between two lines


class Rate(ProgressColumn):
    """Steps a second."""

    def __init__(self, unit: str = "/s") -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}{self.unit}", style="progress.data.speed")


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


@contextlib.contextmanager
def image_progress(
    total: int, *, before: int = 0, shown: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Progress of work on images, on stderr: a bar that stays, or a line each half minute.

    Args:
        total: images.
        before: how many of them were done by an earlier run; they do not count for the rate.
        shown: say something at all.
        clock: seconds.

    Yields:
        a function that sets the number of images done, without those of before, and one that prints
        the reason why an image is left out. The second is silent where there is no terminal.
    """
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        set_lines = _lines(total, before, clock) if shown else lambda done: None
        yield set_lines, lambda line: None
        return
    columns = (
        TextColumn("predict"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(" images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("predict", total=total, completed=before)
        yield (
            lambda done: bar.update(task, completed=before + done),
            lambda line: console.print(f"skipped: {line}", markup=False, highlight=False),
        )


def _lines(total: int, before: int, clock: Callable[[], float]) -> Callable[[int], None]:
    start = told = clock()

    def show(done: int) -> None:
        nonlocal told
        now = clock()
        if now - told < _EVERY or not done:
            return
        told = now
        rate = done / (now - start)
        left = (total - before - done) / rate / 60
        print(
            f"{before + done}/{total} images · {rate:.3g} images/s · {left:.1f} min left",
            file=sys.stderr,
            flush=True,
        )

    return show
