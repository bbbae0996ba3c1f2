"""`fsanet eval`: mIoU of a trained network on a split, class by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fsanet.commands.parsing import quiet

if TYPE_CHECKING:
    from fsanet.tasks.scores import Scores


def run(given: list[str]) -> int:
    quiet()
    from fsanet import instance_options, options
    from fsanet.commands import instances
    from fsanet.files import write_json
    from fsanet.tasks.run_folder import first_process
    from fsanet.tasks.training import evaluate

    folders = [Path(text) for text in given if not text.startswith("-") and Path(text).is_dir()]
    known = [found for found in map(options.data_of_run, folders) if found is not None]
    run_data = known[0] if known else None
    named = (run_data or {}).get("class_path")
    if instance_options.names_instances(given) or instance_options.is_instance_data(named):
        return instances.evaluate(given, run_data)
    parser = options.eval_parser(run_data)
    parsed = options.parse(parser, given)
    data = options.make_data(parser, parsed)
    arguments = {
        key: value for key, value in vars(parsed).items() if key not in ("model", "data", "json")
    }
    scores = evaluate(parsed.model, data, **arguments)
    if not first_process():
        return 0
    _print_scores(scores, f"{parsed.model}, {parsed.split} split")
    if parsed.json is not None:
        from fsanet.provenance import environment

        about = {"model": str(parsed.model), "split": parsed.split}
        write_json(parsed.json, about | scores.as_dict() | {"versions": environment()})
    return 0


def _print_scores(scores: Scores, title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def percent(value: float) -> str:
        return "no label" if value != value else f"{100 * value:.2f}"

    table = Table(title=escape(title), title_justify="left")
    table.add_column("class")
    for name in ("IoU %", "accuracy %", "pixels"):
        table.add_column(name, justify="right")
    for name, iou, accuracy, pixels in zip(
        scores.classes, scores.iou, scores.accuracy, scores.pixels, strict=True
    ):
        table.add_row(escape(name), percent(iou), percent(accuracy), f"{pixels:,}")
    console = Console()
    console.print(table)
    print(
        f"mIoU {percent(scores.miou)} %, pixel accuracy {percent(scores.pixel_accuracy)} %, "
        f"mean accuracy {percent(scores.mean_accuracy)} %"
    )
