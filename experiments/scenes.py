"""Does the head need attention on the built-in scenes? Each kind of head, seeds, one budget.

    python experiments/scenes.py --steps 300 --seeds 0 1 2

The demo's network and data (look-alike classes that only a distant sign distinguishes), with no
attention, with frequency attention and with regular attention. Prints a table; runs are kept under
--out and not repeated. Then the networks trained with regular attention are reduced to their k x k
lowest frequencies, with no retraining.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common import Parser, mean_and_spread, print_environment, whole
from torch import nn

from fsanet.cli.main import silence_libraries
from fsanet.errors import InputError
from fsanet.files import check_writable, write_json
from fsanet.models import FsaNet
from fsanet.predict.predictor import Predictor
from fsanet.report.demo import score_look_alikes
from fsanet.report.demo_recipe import demo_data, demo_network, train_demo
from fsanet.train import evaluate

HEADS: dict[str, dict[str, Any]] = {
    "no attention": {"attention": None},
    "frequency, dot, R=1": {"attention": "frequency"},
    "frequency, dot, R=2": {"attention": "frequency", "recurrence": 2},
    "regular, softmax": {"attention": "spatial", "similarity": "softmax"},
}
SWEPT = "regular, softmax"


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=whole(1), default=300)
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    options = parser.parse_args()
    try:
        check_writable(options.out)
    except InputError as error:
        parser.error(str(error))
    silence_libraries()
    results: dict[str, list[dict]] = {head: [] for head in options.heads}
    for seed in options.seeds:
        for head in options.heads:
            scores = run(folder(options.out, head, seed), HEADS[head], seed, options.steps)
            results[head].append(scores)
            print(f"seed {seed}, {head}: mIoU {100 * scores['miou']:.1f}", flush=True)
    print(f"\n{options.steps} steps, batch 8, {len(options.seeds)} seeds: mean ± std\n")
    print(
        "| head | mIoU | IoU of look-alikes | look-alikes distinguished "
        "| mIoU, attention then removed |\n| --- | --- | --- | --- | --- |"
    )
    for head, runs in results.items():
        keys = ("miou", "look_alikes", "told_apart", "removed")
        columns = [percent([one[key] for one in runs]) if key in runs[0] else "" for key in keys]
        print(f"| {head} | {' | '.join(columns)} |")
    if SWEPT in results:
        sweep(options)
    print_environment()


def sweep(options: argparse.Namespace) -> None:
    """mIoU against k, with no retraining; means over the seeds."""
    print("\n| k | mIoU | look-alikes distinguished |\n| --- | --- | --- |")
    for k in ("regular", 1, 2, 3, 4, 6, 8, 12, 16, "full"):
        change: dict[str, Any] = {}
        if k != "regular":
            change = {"attention": "frequency", "k": None if k == "full" else k}
        scores = []
        for seed in options.seeds:
            model = folder(options.out, SWEPT, seed) / "run" / "model"
            scores.append(score(FsaNet.from_pretrained(model, **change), seed, options.steps))
        columns = [percent([s[key] for s in scores]) for key in ("miou", "told_apart")]
        print(f"| {k} | {' | '.join(columns)} |", flush=True)


def folder(out: Path, head: str, seed: int) -> Path:
    name = head.replace(", ", "-").replace(" ", "-").replace("=", "")
    return out / f"{name}-seed{seed}"


def score(model: FsaNet, seed: int, steps: int) -> dict[str, float]:
    data = demo_data(seed, steps)
    scores = evaluate(model, data, split="test", progress=False, accelerator="cpu")
    return {
        "miou": scores.miou,
        "look_alikes": statistics.mean(scores.iou[3:7]),
        "told_apart": score_look_alikes(Predictor(model, batch_size=10), data),
    }


def run(out: Path, head: dict[str, Any], seed: int, steps: int) -> dict[str, float]:
    file = out / "scores.json"
    if file.is_file():
        known = json.loads(file.read_text())
        if known["steps"] == steps:
            return known
    data = demo_data(seed, steps)
    trained = train_demo(
        demo_network(seed, **head),
        data,
        out / "run",
        seed=seed,
        steps=steps,
        progress=False,
        accelerator="cpu",
    )
    model = FsaNet.from_pretrained(trained.model)
    result = {"steps": steps, **score(model, seed, steps)}
    if head["attention"] is not None:
        model.head.attention = nn.Identity()
        result["removed"] = score(model, seed, steps)["miou"]
    write_json(file, result)
    return result


def percent(values: list[float]) -> str:
    return mean_and_spread([100 * value for value in values]) + " %"


if __name__ == "__main__":
    main()
