"""The commands where data or network are of instances; train and eval hand over here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsanet.metrics.average_precision import ApScores


def evaluate(given: list[str], run_data: dict | None, testing: dict | None) -> int:
    """`fsanet eval`; ``run_data`` and ``testing`` are what the run says, where it is known."""
    from fsanet.cli import options
    from fsanet.files import environment, first_process, write_json
    from fsanet.train import evaluate as scores_of

    parser = options.eval_parser(run_data, testing, kind=options.INSTANCES)
    parsed = options.parse(parser, given, kind=options.INSTANCES)
    data = options.make_data(parser, parsed)
    arguments = {
        key: value for key, value in vars(parsed).items() if key not in ("model", "data", "json")
    }
    scores = scores_of(parsed.model, data, **arguments)
    if not first_process():
        return 0
    _print_scores(scores, f"{parsed.model}, {parsed.split} split")
    if parsed.json is not None:
        about = {"model": str(parsed.model), "split": parsed.split}
        write_json(parsed.json, about | scores.as_dict() | {"versions": environment()})
    return 0


def _print_scores(scores: ApScores, title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def percent(value: float) -> str:
        return "no label" if value != value else f"{100 * value:.2f}"

    table = Table(title=escape(title), title_justify="left")
    table.add_column("%")
    for name in scores.box:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row("box", *map(percent, scores.box.values()))
    table.add_row("mask", *map(percent, scores.mask.values()))
    console = Console()
    console.print(table)
    if len(scores.box_per_class) > 1:
        table = Table()
        for name in ("class", "box AP", "mask AP"):
            table.add_column(name, justify="left" if name == "class" else "right")
        for name, value in scores.box_per_class.items():
            table.add_row(escape(name), percent(value), percent(scores.mask_per_class[name]))
        console.print(table)
    print(
        f"box AP {percent(scores.box['AP'])} %, mask AP {percent(scores.mask['AP'])} % "
        f"({scores.images} images, {scores.instances} instances)"
    )
