"""`fsanet data check`: whether a data set on disk is complete and readable."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fsanet.cli.help import Section
from fsanet.errors import InputError

if TYPE_CHECKING:
    from fsanet.data.check import Report

HELP = [Section("fsanet.cli.data:data")]

Layout = Literal["cityscapes", "ade20k", "voc", "coco", "camvid", "folder"]


def run(arguments: list[str]) -> int:
    from fsanet.cli.parsing import call

    return call(data, arguments)


def data(
    action: Literal["check"],
    root: str,
    *,
    layout: Layout | None = None,
    quick: bool = False,
    subset: bool = False,
    sbd: str | None = None,
    num_classes: int | None = None,
    workers: int | None = None,
    show: int = 10,
    json: str | None = None,
) -> int:
    """Check a data set on disk: counts, pairs, sizes, label ids, unreadable files.

    Published data sets are compared with what was published; where one is missing, the command
    says what to download, but never downloads it. The exit code is 0 if nothing is wrong, else 2.

    Args:
        action: check.
        root: folder of the data set.
        layout: kind of data set; by default recognised from the folder.
        quick: compare names and numbers only, without reading an image.
        subset: accept a part of the published data.
        sbd: for voc, the folder of SBD if it is elsewhere.
        num_classes: for folder, ids 0 to N-1 and 255 are valid.
        workers: processes that read; by default one per core, up to 8.
        show: number of problems to print.
        json: file to write all findings to.
    """
    from fsanet.data.check import check_data
    from fsanet.data.datasets.base import MissingData

    try:
        with _bar() as progress:
            report = check_data(
                Path(root),
                layout,
                quick=quick,
                subset=subset,
                sbd=sbd,
                num_classes=num_classes,
                workers=workers,
                progress=progress,
            )
    except MissingData as error:
        print(error.guide)
        raise
    if json is not None:
        from fsanet.files import write_json

        write_json(json, report.as_json())
    _print(report, show)
    if not report.ok:
        count = len(report.problems)
        problems = "1 problem" if count == 1 else f"{count} problems, the first"
        raise InputError(f"{problems}: {report.problems[0].message}")
    return 0


def _print(report: Report, show: int) -> None:
    from rich.console import Console
    from rich.table import Table

    what = "names only" if report.quick else f"{report.read} pairs read"
    table = Table(title=f"{report.root}: {report.layout}, {what}", title_justify="left")
    for name in ("split", "images", "published", "label values", "problems"):
        table.add_column(name, justify="left" if name in ("split", "label values") else "right")
    for split in report.splits:
        table.add_row(
            split.name,
            str(split.images) if split.found else "not there",
            "" if split.expected is None else str(split.expected),
            split.ids,
            str(split.problems),
        )
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(table)
    for problem in report.problems[: max(show, 0)]:
        console.print(f"  {problem.kind}: {problem.message}")
    if len(report.problems) > show >= 0:
        kinds = Counter(problem.kind for problem in report.problems)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        console.print(f"  {len(report.problems)} problems in all: {counts}")
    for note in report.notes[:show]:
        console.print(f"  note: {note}")
    console.print(f"{report.seconds:.1f} s: {'nothing wrong' if report.ok else 'problems found'}")


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal with rate and time left; gives ``progress(done, total)``."""
    from fsanet.progress import ConsoleProgress

    with ConsoleProgress() as bar:
        task = bar.add_task("check", total=None, current="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
