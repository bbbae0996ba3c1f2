"""SegFormer with and without the block, and a trained one with low frequencies only.

    python experiments/segformer.py train --config camvid_segformer_b0 \
        --data.root ../shared/data/camvid
    python experiments/segformer.py table
    python experiments/segformer.py sweep runs/segformer/plain-seed0 --split val
    python experiments/segformer.py sweep nvidia/segformer-b0-finetuned-ade-512-512 --json b0.json \
        --split val --data Ade20kData --data.root data/ADEChallengeData2016 --resize 2048 512

`train` runs both variants with every seed, each in a process of its own, and prints the table.
`sweep` converts the encoder's attention of a trained network (a run, a folder as transformers saves
it, or a hub id, which is a download), with no retraining, and prints the mIoU for each stage with
k x k frequencies, and with the stage's attention removed. Both resume what was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    main,
    print_environment,
    print_miou_table,
    test_miou,
    train_all,
    train_options,
    whole,
)

from fsanet.errors import InputError
from fsanet.files import write_json
from fsanet.inputs import read_json

VARIANTS = {
    "plain": ["--model.init_args.attention=null"],
    "fsa": ["--model.init_args.attention=frequency"],
}
STAGES = ("1", "2", "3", "4", "all")


def train(arguments: argparse.Namespace) -> None:
    train_all(arguments, VARIANTS, {"test": ["--split=test"]}, test_miou)
    table(arguments)


def table(arguments: argparse.Namespace) -> None:
    print_miou_table(arguments.out, list(VARIANTS))


def sweep(arguments: argparse.Namespace) -> None:
    """mIoU of a trained SegFormer whose encoder attention sees only k x k low frequencies."""
    from token_mixers import without_attention

    from fsanet import convert_attention, load_model
    from fsanet.cli.main import silence_libraries
    from fsanet.cli.recipe import call_with_data

    silence_libraries()
    if arguments.json is None and not arguments.model.is_dir():
        raise InputError(f"{arguments.model} is no folder; give --json, where scores are kept")
    file = arguments.json or arguments.model / "sweep.json"
    about = {"model": str(arguments.model), "split": arguments.split}
    done = read_json(file, "a sweep") if file.is_file() else {**about, "miou": {}}
    if {name: done[name] for name in about} != about:
        raise InputError(f"{file}: holds another sweep; give another --json")

    def print_sweep(model: str, *, test: Any) -> int:
        network = load_model(model, task="semantic")

        def score(key: str, change: Callable[[Any], Any]) -> float:
            if key not in done["miou"]:
                done["miou"][key] = test.evaluate(change(network)).miou
                write_json(file, done)
            return 100 * done["miou"][key]

        def cell(stage: str, k: int | None) -> str:
            match = f"segformer.stages.{'*' if stage == 'all' else int(stage) - 1}.*"
            if k is None:
                found = score(f"stage {stage}, removed", lambda x: without_attention(x, match))
            else:
                convert = partial(convert_attention, k=k, match=match)
                found = score(f"stage {stage}, k {k}", lambda x: convert(x).model)
            return f"{found:.2f}"

        print(f"{arguments.split} split, as trained: mIoU {score('as trained', lambda x: x):.2f}\n")
        heads = [name if name == "all" else f"stage {name}" for name in arguments.stages]
        print(f"| k | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
        for k in (None, *arguments.k):
            cells = [cell(stage, k) for stage in arguments.stages]
            print(f"| {k or 'removed'} | {' | '.join(cells)} |", flush=True)
        print_environment()
        return 0

    options = [f"--split={arguments.split}", "--progress=false", *arguments.rest]
    call_with_data(print_sweep, [str(arguments.model), *options])


TRAIN = {
    **train_options("runs/segformer", list(VARIANTS)),
    "--jobs": {"type": whole(1), "default": 2},
}
COMMANDS = {
    "train": (train, TRAIN),
    "table": (table, {"--out": TRAIN["--out"]}),
    "sweep": (
        sweep,
        {
            "model": {"type": Path, "help": "run folder, model folder or hub id"},
            "--k": {"type": whole(1), "nargs": "+", "default": [2, 4, 8, 16]},
            "--stages": {"nargs": "+", "choices": STAGES, "default": list(STAGES)},
            "--split": {"default": "test"},
            "--json": {"type": Path, "help": "default: sweep.json in the run folder"},
        },
    ),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, COMMANDS))
