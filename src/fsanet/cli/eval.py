"""`fsanet eval`: mIoU of a trained network on a split, class by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fsanet.cli.parsing import quiet, switches

if TYPE_CHECKING:
    from fsanet.metrics.confusion import Scores


# Options that are lists, and may be given number by number as for `fsanet predict`.
_LISTS = ("--scales", "--window", "--stride", "--resize", "--trimap")


def run(given: list[str]) -> int:
    quiet()
    given = listed(switches(given, ("--flip", "--boundary")), _LISTS)
    from fsanet.cli import instances, options
    from fsanet.files import first_process, write_json
    from fsanet.train import evaluate

    folders = [Path(text) for text in given if not text.startswith("-") and Path(text).is_dir()]
    run_data = next(filter(None, map(options.data_of_run, folders)), None)
    testing = next(filter(None, map(options.testing_of_run, folders)), None)
    if options.kind_of(given, run_data) is options.INSTANCES:
        return instances.evaluate(given, run_data, testing)
    parser = options.eval_parser(run_data, testing)
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="folder for tables by class (Markdown, CSV), the confusion matrix (PNG, CSV), JSON",
    )
    parsed = options.parse(parser, given)
    data = options.make_data(parser, parsed)
    others = ("model", "data", "json", "out")
    arguments = {key: value for key, value in vars(parsed).items() if key not in others}
    if parsed.out is not None and first_process():
        writable(Path(parsed.out))
    scores = evaluate(parsed.model, data, **arguments)
    if not first_process():
        return 0
    _print_scores(scores, f"{parsed.model}, {parsed.split} split")
    about = {"model": str(parsed.model), "split": parsed.split}
    if parsed.json is not None or parsed.out is not None:
        from fsanet.files import environment

        versions = {"versions": environment()}
        if parsed.json is not None:
            write_json(parsed.json, about | scores.as_dict() | versions)
        if parsed.out is not None:
            from fsanet.report.confusion import write_scores

            testing = {name: arguments[name] for name in TESTING}
            write_scores(scores, Path(parsed.out), about | {"testing": testing} | versions)
            print(f"tables and confusion matrix in {parsed.out}")
    return 0


# How a network was tested: what a figure has to be published with.
TESTING = ("resize", "window", "stride", "scales", "flip", "precision")


def writable(out: Path) -> None:
    """Raises `InputError` if the folder cannot be written to: before the work, not after it."""
    from fsanet.files import write_text

    probe = write_text(out / ".writable", "")
    probe.unlink()


def listed(given: list[str], names: tuple[str, ...]) -> list[str]:
    """Numbers that follow one of the options, as the one list that the parser takes.

    >>> listed(["--scales", "0.5", "1.0", "run", "--window", "769"], ("--scales", "--window"))
    ['--scales=[0.5,1.0]', 'run', '--window=769']
    """
    result: list[str] = []
    index = 0
    while index < len(given):
        name, numbers = given[index], []
        index += 1
        if name in names:
            while index < len(given) and _number(given[index]):
                numbers.append(given[index])
                index += 1
        several = len(numbers) > 1 or (numbers and name in ("--scales", "--trimap"))
        if several:
            result.append(f"{name}=[{','.join(numbers)}]")
        elif numbers:
            result.append(f"{name}={numbers[0]}")
        else:
            result.append(name)
    return result


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _print_scores(scores: Scores, title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def percent(value: float) -> str:
        return "no label" if value != value else f"{100 * value:.2f}"

    table = Table(title=escape(title), title_justify="left")
    table.add_column("class")
    edges = scores.boundary
    for name in ("IoU %", "accuracy %", *(["boundary IoU %"] if edges else []), "pixels"):
        table.add_column(name, justify="right")
    for index, name in enumerate(scores.classes):
        shares = [scores.iou[index], scores.accuracy[index]]
        if edges is not None:
            shares.append(edges.iou[index])
        table.add_row(escape(name), *map(percent, shares), f"{scores.pixels[index]:,}")
    console = Console()
    console.print(table)
    if edges is not None:
        bands = [f"{width} px {percent(miou)}" for width, miou in edges.trimap_miou.items()]
        print(
            f"boundary IoU {percent(edges.mean_iou)} % (bands of {edges.ratio:g} of the diagonal)"
        )
        print(f"trimap mIoU %: {', '.join(bands)}")
    print(
        f"mIoU {percent(scores.miou)} %, pixel accuracy {percent(scores.pixel_accuracy)} %, "
        f"mean accuracy {percent(scores.mean_accuracy)} %"
    )
