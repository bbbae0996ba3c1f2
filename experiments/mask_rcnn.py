"""Mask R-CNN with and without frequency attention, one budget.

    python experiments/mask_rcnn.py train --config balloon_mask_rcnn \
        --config experiments/balloon_files.yaml --out runs/balloon
    python experiments/mask_rcnn.py table --out runs/balloon

`train` runs every variant with every seed in a process of its own, resumes what was interrupted,
and prints the table. AP belongs to the last weights, so that nothing is selected by the images that
are scored.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import (
    figures,
    finished_runs,
    main,
    percent,
    print_environment,
    train_all,
    train_options,
)

from fsanet.cli.recipe import read_recipe, recipe_file
from fsanet.errors import InputError

VARIANTS = {
    "plain": ["--model.attention=null"],
    "frequency-res4": ["--model.attention=frequency", "--model.positions=[res4]"],
    "frequency-fpn": ["--model.attention=frequency", "--model.positions=[fpn]"],
    "spatial-res4": ["--model.attention=spatial", "--model.positions=[res4]"],
}
COLUMNS = (
    ("val", "box", "AP"),
    ("val", "mask", "AP"),
    ("val", "mask", "AP50"),
    ("val", "mask", "AP75"),
    ("train", "mask", "AP"),
    ("removed", "mask", "AP"),  # on val
)


def train(arguments: argparse.Namespace) -> None:
    init: dict[str, str] = {}
    for name in arguments.config:
        init |= read_recipe(recipe_file(name)).get("data", {}).get("init_args", {})
    if not {"train_annotations", "train_images"} <= init.keys():
        raise InputError(f"--config {' '.join(arguments.config)}: not a recipe of COCO files")
    annotations, images = init["train_annotations"], init["train_images"]
    seen = [
        f"--data.init_args.test_annotations={annotations}",
        f"--data.init_args.test_images={images}",
        "--split=test",
    ]
    train_all(arguments, VARIANTS, {"val": ["--split=val"], "train": seen}, mask_ap)
    table(arguments)


def mask_ap(out: Path) -> str:
    return f"mask AP {100 * json.loads((out / 'val.json').read_text())['mask']['AP']:.1f}"


def table(arguments: argparse.Namespace) -> None:
    """Mean and sample standard deviation over seeds."""
    runs = finished_runs(arguments.out, list(VARIANTS), ["val", "train"])
    heads = " | ".join(map(" ".join, COLUMNS))
    print(f"| variant | seeds | {heads} | val mask AP of each |")
    print("| --- " * (len(COLUMNS) + 3) + "|")
    for variant, scores in runs.items():
        cells = " | ".join(percent(scores, *column) for column in COLUMNS)
        each = ", ".join(f"{100 * ap:.1f}" for ap in figures(scores, "val", "mask", "AP"))
        print(f"| {variant} | {len(scores)} | {cells} | {each} |")
    print_environment(next(reversed(runs.values()))[-1]["val"]["versions"])


OPTIONS = train_options("runs/balloon", list(VARIANTS), ["plain", "frequency-res4"])

if __name__ == "__main__":
    commands = {"train": (train, OPTIONS), "table": (table, {"--out": OPTIONS["--out"]})}
    sys.exit(main(__doc__, commands))
