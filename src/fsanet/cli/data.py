"""`fsanet data check`: whether a data set on disk is what was published."""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fsanet.cli.parsing import Parser
from fsanet.errors import InputError

if TYPE_CHECKING:
    from fsanet.data.check import Report

_LAYOUTS = ("cityscapes", "ade20k", "voc", "coco", "camvid", "folder")
_EPILOG = """\
examples:
  fsanet data check /data/cityscapes             reads every file, compares with what is published
  fsanet data check /data/voc --layout voc       if it is not there: what to download, and where to
  fsanet data check /data/mine --num-classes 5   a folder of one's own
  fsanet data check /data/coco --quick           names and numbers alone

Nothing is ever downloaded. Exit code 0: nothing wrong; 2: something is, the first in one line.
"""


def run(given: list[str]) -> int:
    options = _parser().parse_args(given)
    root = Path(options.root)

    from fsanet.data.check import check_data
    from fsanet.data.datasets.base import MissingData

    try:
        with _bar() as progress:
            report = check_data(
                root,
                options.layout,
                quick=options.quick,
                subset=options.subset,
                sbd=options.sbd,
                num_classes=options.num_classes,
                workers=options.workers,
                progress=progress,
            )
    except MissingData as error:
        print(error.guide)
        raise
    if options.json is not None:
        from fsanet.files import write_json

        write_json(options.json, report.as_json())
    _print(report, options.show)
    if not report.ok:
        count = len(report.problems)
        problems = "1 problem" if count == 1 else f"{count} problems, the first"
        raise InputError(f"{problems}: {report.problems[0].message}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="fsanet data",
        description="Verify a data set: numbers, pairs, sizes, ids, unreadable files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("action", choices=["check"])
    add("root", metavar="DIR", help="folder of the data set")
    add("--layout", choices=_LAYOUTS, help="default: told from the folder")
    add("--quick", action="store_true", help="names and numbers alone; no image is read")
    add("--subset", action="store_true", help="part of the published data is enough")
    add("--sbd", metavar="DIR", help="voc: SBD's folder, if it is not in DIR")
    add("--num-classes", type=int, metavar="N", help="folder: ids 0..N-1 and 255 are right")
    add("--workers", type=int, metavar="N", help="processes that read (default: cores, up to 8)")
    add("--show", type=int, default=10, metavar="N", help="problems to print (default: 10)")
    add("--json", metavar="FILE", help="write all that was found to this file")
    return parser


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
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for problem in report.problems[: max(show, 0)]:
        console.print(f"  {problem.kind}: {problem.message}")
    if len(report.problems) > show >= 0:
        kinds = Counter(problem.kind for problem in report.problems)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        console.print(f"  {len(report.problems)} problems in all: {counts}")
    for note in report.notes[:show]:
        console.print(f"  note: {note}")
    console.print(f"{report.seconds:.1f} s: {'nothing wrong' if report.ok else 'not as it should'}")


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal with rate and time left; gives ``progress(done, total)``."""
    from fsanet.progress import ConsoleProgress

    with ConsoleProgress() as bar:
        task = bar.add_task("check", total=None, current="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
