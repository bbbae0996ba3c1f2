"""The tables of docs/segformer.md: SegFormer B0 with and without the block; low k per stage.

    python experiments/segformer.py train --config configs/camvid_segformer_b0.yaml
    python experiments/segformer.py table
    python experiments/segformer.py sweep runs/segformer/plain-seed0 --split val

`train` runs both variants with every seed, each in a process of its own, and ends with the table.
`sweep` converts the encoder's attention of a trained network, with no retraining, and prints the
mIoU for each stage and k. Both go on where they were stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from compare import print_environment, print_table, train_all

from fsanet.errors import InputError
from fsanet.files import write_json

VARIANTS = {
    "plain": ["--model.init_args.attention=null"],
    "fsa": ["--model.init_args.attention=frequency"],
}
STAGES = ("1", "2", "3", "4", "all")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (("train", train), ("table", table), ("sweep", sweep)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        if name in ("train", "table"):
            command.add_argument("--out", type=Path, default=Path("runs/segformer"))
        if name == "train":
            command.add_argument("--config", required=True)
            command.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
            command.add_argument("--steps", type=int, help="in place of those of the config")
            command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
            command.add_argument("--jobs", type=int, default=2, help="runs at a time")
        if name == "sweep":
            command.add_argument("model", type=Path, help="run folder of a SegFormer")
            command.add_argument("--k", type=int, nargs="+", default=[2, 4, 8, 16])
            command.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
            command.add_argument("--split", default="test")
            command.add_argument("--json", type=Path, help="default: sweep.json in the run folder")
    arguments, rest = parser.parse_known_args()
    arguments.rest = rest  # further options of `fsanet train`
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"segformer: error: {error}", file=sys.stderr)
        return 2
    return 0


def train(arguments: argparse.Namespace) -> None:
    train_all(arguments, {name: VARIANTS[name] for name in arguments.variants})
    table(arguments)


def table(arguments: argparse.Namespace) -> None:
    print_table(arguments.out, list(VARIANTS))


def sweep(arguments: argparse.Namespace) -> None:
    """mIoU of a trained SegFormer whose encoder attention sees k x k low frequencies alone."""
    from fsanet import convert_attention, load_model
    from fsanet.cli import options
    from fsanet.cli.parsing import quiet
    from fsanet.train import evaluate

    quiet()
    parser = options.eval_parser(options.data_of_run(arguments.model))
    data = options.make_data(parser, options.parse(parser, [str(arguments.model)]))
    model = load_model(arguments.model)
    file = arguments.json or arguments.model / "sweep.json"
    about = {"model": str(arguments.model), "split": arguments.split}
    done = json.loads(file.read_text()) if file.is_file() else {**about, "miou": {}}
    if {name: done[name] for name in about} != about:
        raise InputError(f"{file}: holds another sweep; give another --json")

    def miou(stage: str, k: int | None) -> float:
        key = "as trained" if k is None else f"stage {stage}, k {k}"
        if key not in done["miou"]:
            network = model
            if k is not None:
                pattern = f"segformer.stages.{'*' if stage == 'all' else int(stage) - 1}.*"
                network = convert_attention(model, k=k, match=pattern).model
            scores = evaluate(network, data, split=arguments.split, progress=False)
            done["miou"][key] = scores.miou
            write_json(file, done)
        return 100 * done["miou"][key]

    print(f"{arguments.split} split, as trained: mIoU {miou('all', None):.2f}\n")
    heads = [name if name == "all" else f"stage {name}" for name in arguments.stages]
    print(f"| k | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
    for k in arguments.k:
        cells = [f"{miou(stage, k):.2f}" for stage in arguments.stages]
        print(f"| {k} | {' | '.join(cells)} |", flush=True)
    print_environment()


if __name__ == "__main__":
    sys.exit(main())
