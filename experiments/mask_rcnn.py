"""The table of docs/mask_rcnn.md: Mask R-CNN with and without frequency attention, one budget.

    python experiments/mask_rcnn.py train --config configs/balloon_mask_rcnn.yaml --out runs/balloon
    python experiments/mask_rcnn.py table --out runs/balloon

`train` runs every variant with every seed in a process of its own, goes on where it was stopped,
and ends with the table. AP is that of the last weights, so nothing is chosen by the images that
are scored; that of the training images tells how far a run has learned them by heart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from fsanet.errors import InputError

VARIANTS = {
    "plain": {"attention": "null"},
    "frequency-res4": {"attention": "frequency", "positions": "[res4]"},
    "frequency-fpn": {"attention": "frequency", "positions": "[fpn]"},
    "spatial-res4": {"attention": "spatial", "positions": "[res4]"},
}
COLUMNS = (
    ("val", "box", "AP"),
    ("val", "mask", "AP"),
    ("val", "mask", "AP50"),
    ("val", "mask", "AP75"),
    ("train", "mask", "AP"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (("train", train), ("table", table)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--out", type=Path, default=Path("runs/balloon"))
        if name == "train":
            command.add_argument("--config", required=True)
            command.add_argument(
                "--variants", nargs="+", choices=VARIANTS, default=["plain", "frequency-res4"]
            )
            command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments, rest = parser.parse_known_args()
    arguments.rest = rest  # further options of `fsanet train`
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"mask_rcnn: error: {error}", file=sys.stderr)
        return 2
    return 0


def train(arguments: argparse.Namespace) -> None:
    """Every variant with every seed, one after the other, then the table."""
    init = yaml.safe_load(Path(arguments.config).read_text())["data"]["init_args"]
    learned = [
        f"--data.init_args.test_annotations={init['train_annotations']}",
        f"--data.init_args.test_images={init['train_images']}",
        "--split=test",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            out = arguments.out / f"{variant}-seed{seed}"
            if (out / "train.json").is_file():
                continue
            again = ["--resume=true"] if (out / "checkpoints" / "last.ckpt").is_file() else []
            options = [f"--model.{key}={value}" for key, value in VARIANTS[variant].items()]
            base = [f"--config={arguments.config}", f"--seed={seed}", f"--out={out}"]
            began = time.monotonic()
            with (arguments.out / f"{out.name}.log").open("a") as log:
                for command in (
                    ["train", *base, *options, *again, *arguments.rest],
                    ["eval", str(out), "--split=val", f"--json={out / 'val.json'}"],
                    ["eval", str(out), *learned, f"--json={out / 'train.json'}"],
                ):
                    call = [sys.executable, "-m", "fsanet", *command]
                    if subprocess.run(call, stdout=log, stderr=log).returncode:
                        raise InputError(f"{variant} seed {seed} failed; see {log.name}")
            minutes = (time.monotonic() - began) / 60
            print(f"{variant} seed {seed}: {minutes:.1f} min", flush=True)
    table(arguments)


def table(arguments: argparse.Namespace) -> None:
    """Mean and sample standard deviation over seeds, from the runs' val.json and train.json."""
    found: dict[str, dict[tuple[str, str, str], list[float]]] = {}
    versions: dict[str, str] = {}
    for path in sorted(arguments.out.glob("*-seed*/train.json")):
        scores = {s: json.loads((path.parent / f"{s}.json").read_text()) for s in ("val", "train")}
        columns = found.setdefault(path.parent.name.rsplit("-seed", 1)[0], {})
        for split, kind, name in COLUMNS:
            columns.setdefault((split, kind, name), []).append(100 * scores[split][kind][name])
        versions = scores["val"]["versions"]
    if not found:
        raise InputError(f"{arguments.out}: no finished run; give the --out of train")
    heads = " | ".join(f"{split} {kind} {name}" for split, kind, name in COLUMNS)
    print(f"| variant | seeds | {heads} | val mask AP of each |")
    print("| --- " * (len(COLUMNS) + 3) + "|")
    for variant in sorted(found, key=list(VARIANTS).index):
        cells = []
        for values in found[variant].values():
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        each = found[variant]["val", "mask", "AP"]
        listed = ", ".join(f"{value:.1f}" for value in each)
        print(f"| {variant} | {len(each)} | {' | '.join(cells)} | {listed} |")
    print("\n" + ", ".join(f"{name} {value}" for name, value in versions.items()))


if __name__ == "__main__":
    sys.exit(main())
