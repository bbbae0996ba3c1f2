"""The tables of docs/results.md: attention variants under one budget, and low k with no retraining.

    python experiments/compare.py train --out runs/compare
    python experiments/compare.py table --out runs/compare
    python experiments/compare.py cost
    python experiments/compare.py sweep runs/compare/softmax-seed0 --split test

`train` runs every variant with every seed in a process of its own, resumes what was interrupted,
and prints the table. `cost` times the variants in interleaved rounds, and takes the peak memory of
each in a fresh process. Both use the recipe of CamVid with a budget of a few minutes on one core;
with --config they use another recipe as it is. Options of `fsanet train` may follow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    main,
    print_environment,
    print_miou_table,
    test_miou,
    train_all,
    train_options,
    whole,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from fsanet.cost import Quartiles, Timed, peak_resident_memory, ratios, run_isolated, time_calls
from fsanet.errors import InputError

VARIANTS = {
    "none": ["--model.attention=null"],
    "softmax": ["--model.attention=spatial", "--model.similarity=softmax", "--model.recurrence=1"],
    **{
        f"{similarity}-R{recurrence}": [
            "--model.attention=frequency",
            f"--model.similarity={similarity}",
            f"--model.recurrence={recurrence}",
        ]
        for similarity in ("dot", "linear_softmax")
        for recurrence in (1, 2)
    },
}

CONFIGS = ["camvid", "experiments/camvid_files.yaml"]
BUDGET = [
    "--steps=150",
    "--data.init_args.batch_size=4",
    "--data.init_args.steps_per_epoch=150",
    "--data.init_args.crop=[180,240]",
    "--data.init_args.scale=[0.5,1.5]",
]


def train(arguments: argparse.Namespace) -> None:
    use_budget(arguments)
    train_all(arguments, VARIANTS, {"test": ["--split=test"]}, test_miou)
    table(arguments)


def table(arguments: argparse.Namespace) -> None:
    print_miou_table(arguments.out, list(VARIANTS))


def cost(arguments: argparse.Namespace) -> None:
    """Median time of forward + backward in interleaved rounds, and peak memory."""
    use_budget(arguments)
    steps = {variant: make_step(arguments, variant) for variant in arguments.variants}
    seconds = time_calls(
        {variant: Timed(step) for variant, (step, _) in steps.items()},
        device=torch.device("cpu"),
        rounds=arguments.rounds,
    )
    (_, shape), *_ = steps.values()
    print(f"batch {shape}, median of {arguments.rounds} interleaved rounds\n")
    print("| attention | s per step | ratio | quartiles | peak MiB above the network |")
    print("| --- | --- | --- | --- | --- |")
    base = seconds[arguments.variants[0]]
    for variant, by_round in seconds.items():
        threads = torch.get_num_threads()
        outcome = run_isolated(measure_peak, arguments, variant, memory=None, threads=threads)
        if outcome.problem is not None:
            raise InputError(f"{variant}: peak memory could not be measured: {outcome.problem}")
        q = Quartiles.of(list(by_round.values()))
        ratio = Quartiles.of(ratios(by_round, base)).median
        print(
            f"| {variant} | {q.median:.3f} | {ratio:.3f} | {q.low:.3f} - {q.high:.3f} | "
            f"{outcome.found['peak'] / 2**20:.0f} |"
        )
    print_environment()


def use_budget(arguments: argparse.Namespace) -> None:
    """Use the recipe of the comparison, if no other one is given."""
    if arguments.config is None:
        arguments.config, arguments.rest = CONFIGS, [*BUDGET, *arguments.rest]


def measure_peak(arguments: argparse.Namespace, variant: str) -> Iterator[dict[str, Any]]:
    """Peak resident memory of two training steps; runs in a fresh process."""
    step, _ = make_step(arguments, variant)
    yield {"peak": peak_resident_memory(lambda: [step() for _ in range(2)])}


def make_step(arguments: argparse.Namespace, variant: str) -> tuple[Any, tuple[int, ...]]:
    """A training step of a variant, built as `fsanet train` builds it, and the images' shape."""
    from fsanet.cli.recipe import Recipe

    configs = [f"--config={name}" for name in arguments.config]
    recipe = Recipe([*configs, *VARIANTS[variant], *arguments.rest])
    data = recipe.data()
    model = recipe.task(data).model.train()
    height, width = arguments.size or data.crop
    batch = arguments.batch or data.batch_size
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    masks = torch.randint(0, data.num_classes, (batch, height, width))
    return partial(training_step, model, images, masks), tuple(images.shape)


def training_step(model: Any, images: Tensor, masks: Tensor) -> None:
    logits, auxiliary = model.forward_with_auxiliary(model.normalise(images))
    loss = cross_entropy(logits, masks)
    if auxiliary is not None:
        loss = loss + 0.4 * cross_entropy(auxiliary, masks)
    loss.backward()
    model.zero_grad(set_to_none=True)


def sweep(arguments: argparse.Namespace) -> None:
    """A network trained with regular attention, reduced to its k x k lowest frequencies."""
    from fsanet.cli import main as cli

    call = ["sweep", str(arguments.model), "--split", arguments.split, "--k", *arguments.k]
    call += ["--json", str(arguments.json)] if arguments.json else []
    if cli.main([*call, *arguments.rest]):
        raise InputError("the sweep failed")


TRAIN = {
    **train_options("runs/compare", list(VARIANTS)),
    "--config": {"action": "append", "help": f"default: {CONFIGS} with a smaller budget"},
    "--jobs": {"type": whole(1), "default": 2, "help": "runs at a time"},
}
COMMANDS = {
    "train": (train, TRAIN),
    "table": (table, {"--out": TRAIN["--out"]}),
    "cost": (
        cost,
        {
            "--config": TRAIN["--config"],
            "--variants": TRAIN["--variants"],
            "--rounds": {"type": whole(1), "default": 10},
            "--size": {"type": whole(1), "nargs": 2, "metavar": ("H", "W")},
            "--batch": {"type": whole(1)},
        },
    ),
    "sweep": (
        sweep,
        {
            "model": {"type": Path, "help": "run trained with attention=spatial"},
            "--k": {"nargs": "+", "default": ["2", "4", "6", "8", "12", "16", "full"]},
            "--split": {"default": "test"},
            "--json": {"type": Path},
        },
    ),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, COMMANDS))
