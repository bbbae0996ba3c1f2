"""Progress on the console: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["LINE_EVERY", "ConsoleProgress"]

#: Seconds between lines where there is no terminal.
LINE_EVERY = 30.0


class ConsoleProgress(Progress):
    """Rich's progress bar on stderr, and lines of text where stderr is no terminal.

    The bar disappears when the work is done. Tasks take an optional field ``current``, a text
    shown at the end of the bar.

    Args:
        unit: what is counted, for the rate.
        shown: False shows nothing, for processes that leave the reporting to another.
        clock: seconds.
    """

    def __init__(
        self, unit: str = "", *, shown: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        console = Console(stderr=True, emoji=False)
        self._unit = f" {unit}" if unit else ""
        self._prints_lines = shown and not console.is_terminal
        self._last_line = clock()
        self._watched: TaskID | None = None
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(self._unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[current]}"),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            get_time=clock,
            disable=not (shown and console.is_terminal),
        )

    def add_task(self, description: str, *args: Any, **options: Any) -> TaskID:
        """As in rich, with an empty ``current`` by default."""
        return super().add_task(description, *args, **{"current": "", **options})

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As in rich; prints a line where there is no terminal and the last one is old."""
        super().update(task_id, **changes)
        now = self.get_time()
        if not self._prints_lines or now - self._last_line < LINE_EVERY:
            return
        self._last_line = now
        task = self._tasks[task_id]
        parts = [f"{task.description} {task.completed:g}/{task.total or 0:g}{self._unit}"]
        if task.speed:
            parts.append(f"{task.speed:.3g}{self._unit}/s")
        if task.time_remaining is not None:
            parts.append(f"{task.time_remaining / 60:.1f} min left")
        print(" · ".join(parts), file=sys.stderr, flush=True)

    def watch(self, title: str, count: int) -> Callable[[str], None]:
        """Show a phase of ``count`` steps, in place of the one before; see `fsanet.cost.Watch`."""
        if self._watched is None:
            self._watched = self.add_task(title, total=count)
        task = self._watched
        self.reset(task, total=count, description=title, current="")
        return lambda name: self.update(task, advance=1, current=name)


class _Rate(ProgressColumn):
    """Steps per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        text = "" if speed is None else f"{speed:.3g}{self.unit}/s"
        return Text(text, style="progress.data.speed")
