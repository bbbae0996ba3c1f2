"""`fsanet data speed`: images a second of a training pipeline, and where the time goes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fsanet.cli.parsing import Parser, quiet

if TYPE_CHECKING:
    from fsanet.data.batches import OrderedData
    from fsanet.data.speed import Rate, Stage

_EPILOG = """\
All other options are those of fsanet train: the data set comes from --config or --data.

examples:
  fsanet data speed --config configs/camvid.yaml
  fsanet data speed --config configs/camvid.yaml --data.init_args.cache false --workers 0 2 4
  fsanet data speed --data CamVidData --data.init_args.root /data/camvid --json speed.json

Reads only, and writes nothing but the JSON file. Files are timed once they are in memory: a disk
that is slower than the processor is not seen.
"""


def run(given: list[str]) -> int:
    quiet()
    options, rest = _parser().parse_known_args(given)
    data = _data(rest)

    from fsanet.data.speed import measure_rate, measure_stages
    from fsanet.files import environment

    with _bar() as bar:
        data.dataset("train")  # decodes everything where that is wanted
        stages = measure_stages(data, images=options.images, progress=bar("stages"))
        rates = [
            measure_rate(data, n, batches=options.batches, progress=bar(f"{n} workers"))
            for n in options.workers
        ]
    versions = environment()
    _print(data, stages, rates, versions)
    if options.json is not None:
        from fsanet.files import write_json

        about = {
            "data": type(data).__name__,
            "images": len(data.dataset("train")),
            "batch_size": data.batch_size,
            "cache": bool(getattr(data, "cache", False)),
        }
        found = {
            "rates": [asdict(rate) for rate in rates],
            "stages_ms": [asdict(stage) for stage in stages],
        }
        write_json(options.json, about | found | {"versions": versions})
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="fsanet data speed",
        description="Images a second of a training pipeline, and milliseconds of its stages.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    add("--batches", type=int, default=20, metavar="N", help="batches timed (default: 20)")
    add("--images", type=int, default=24, metavar="N", help="images timed by stage (default: 24)")
    add("--json", metavar="FILE", help="write the measurements to this file")
    return parser


def _data(given: list[str]) -> OrderedData:
    """The data module that options of `fsanet train` describe."""
    from fsanet.cli import options

    given = ["--steps=1", *given]  # needed by the parser; a file may say otherwise
    kind = options.kind_of(given)
    parser = options.train_parser(named_model=options.names_model(given), kind=kind)
    return options.make_data(parser, options.parse(parser, given, kind=kind))


def _print(
    data: OrderedData, stages: list[Stage], rates: list[Rate], versions: dict[str, str]
) -> None:
    from rich.console import Console
    from rich.table import Table

    batch = f"batches of {data.batch_size}"
    cached = ", decoded images kept in memory" if getattr(data, "cache", False) else ""
    table = Table(title=f"{type(data).__name__}: {batch}{cached}", title_justify="left")
    for name in ("workers", "images/s", "lowest", "highest"):
        table.add_column(name, justify="right")
    for rate in rates:
        numbers = (rate.images_per_second, rate.lowest, rate.highest)
        table.add_row(str(rate.workers), *(f"{number:.1f}" for number in numbers))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    table = Table(title="One image, one thread", title_justify="left")
    for name in ("stage", "ms (median)", "quartiles"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in stages:
        quartiles = f"{stage.lower:.2f} .. {stage.upper:.2f}"
        table.add_row(stage.name, f"{stage.median:.2f}", quartiles)
    console.print(table)
    console.print(" · ".join(f"{name} {value}" for name, value in versions.items()))


@contextmanager
def _bar() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A progress bar on the terminal; gives ``progress(done, total)`` for each part."""
    from fsanet.predict.progress import make_progress

    with make_progress() as progress:
        task: Any = progress.add_task("read", total=None, current="")

        def part(name: str) -> Callable[[int, int], None]:
            progress.reset(task, total=None, description=name)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield part
