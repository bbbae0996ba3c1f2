"""`fsanet eval`: scores of a trained network on a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fsanet.cli.help import EVALUATION, Section

if TYPE_CHECKING:
    from fsanet.cli.recipe import Test
    from fsanet.metrics.average_precision import ApScores
    from fsanet.metrics.confusion import Scores

HELP = [Section("fsanet.cli.eval:evaluate_model", skip={"test"}), EVALUATION]


def run(arguments: list[str]) -> int:
    from fsanet.imports import import_lightning

    import_lightning()

    from fsanet.cli.recipe import call_with_data

    return call_with_data(evaluate_model, arguments, tested_as_recipe=True)


def evaluate_model(
    model: str,
    *,
    test: Test,
    json: str | None = None,
    out: str | None = None,
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
) -> int:
    """Print mIoU, or average precision for instances, of a trained network on a split.

    A run folder knows its own data and how its network is to be tested.

    Args:
        model: run folder, model folder, hub id, or an .onnx file of fsanet export.
        test: the data, and how the network is tested.
        json: file to write the scores to.
        out: folder for tables by class (Markdown, CSV), the confusion matrix (PNG, CSV) and JSON.
        runtime: what runs an .onnx file.
    """
    from fsanet.convert.saved import open_exported
    from fsanet.data.batches import InstanceData
    from fsanet.errors import InputError
    from fsanet.files import (
        check_writable,
        check_writable_file,
        environment,
        first_process,
        write_json,
    )
    from fsanet.metrics.confusion import Scores
    from fsanet.report.confusion import HOW_TESTED, write_scores

    if out is not None and isinstance(test.data, InstanceData):
        raise InputError("--out: for semantic segmentation; --json takes average precision")
    if json is not None and first_process():
        check_writable_file(json)
    if out is not None and first_process():
        check_writable(out)
    scores = test.evaluate(open_exported(model, runtime))
    if not first_process():
        return 0
    title = f"{model}, {test.options['split']} split"
    semantic = isinstance(scores, Scores)
    print_scores(scores, title) if semantic else print_precision(scores, title)
    about = {"model": model, "split": test.options["split"]}
    versions = {"versions": environment()}
    if json is not None:
        write_json(json, about | scores.as_dict() | versions)
    if out is not None:
        how = {"testing": {name: test.options[name] for name in HOW_TESTED}}
        write_scores(scores, Path(out), about | how | versions)
        print(f"tables and confusion matrix in {out}")
    return 0


def print_scores(scores: Scores, title: str) -> None:
    """Print a table of the classes, and the means below it."""
    edges = scores.boundary
    header = ["class", "IoU %", "accuracy %", *(["boundary IoU %"] if edges else []), "pixels"]
    rows = []
    for index, name in enumerate(scores.classes):
        shares = [scores.iou[index], scores.accuracy[index]]
        shares += [] if edges is None else [edges.iou[index]]
        rows.append([name, *map(_percent, shares), f"{scores.pixels[index]:,}"])
    print_table(title, header, rows)
    if edges is not None:
        bands = [f"{width} px {_percent(miou)}" for width, miou in edges.trimap_miou.items()]
        print(
            f"boundary IoU {_percent(edges.mean_iou)} % (bands of {edges.ratio:g} of the diagonal)"
        )
        print(f"trimap mIoU %: {', '.join(bands)}")
    print(
        f"mIoU {_percent(scores.miou)} %, pixel accuracy {_percent(scores.pixel_accuracy)} %, "
        f"mean accuracy {_percent(scores.mean_accuracy)} %"
    )


def print_precision(scores: ApScores, title: str) -> None:
    """Print average precision of boxes and masks, overall and by class."""
    header = ["%", *(name.replace("_", " ") for name in scores.box)]
    rows = [[kind, *map(_percent, values.values())]
            for kind, values in (("box", scores.box), ("mask", scores.mask))]  # fmt: skip
    print_table(title, header, rows)
    if len(scores.box_per_class) > 1:
        rows = [
            [name, _percent(value), _percent(scores.mask_per_class[name])]
            for name, value in scores.box_per_class.items()
        ]
        print_table("", ["class", "box AP", "mask AP"], rows)
    print(
        f"box AP {_percent(scores.box['AP'])} %, mask AP {_percent(scores.mask['AP'])} % "
        f"({scores.images} images, {scores.instances} instances)"
    )


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print rows of text; all columns but the first are aligned right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fsanet.errors import escaped

    table = Table(title=escape(escaped(title)) or None, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(escape(name), justify="right" if index else "left")
    for row in rows:
        table.add_row(*(escape(escaped(cell)) for cell in row))  # class names may hold anything
    Console(emoji=False).print(table)


def _percent(value: float) -> str:
    return "no label" if value != value else f"{100 * value:.2f}"
