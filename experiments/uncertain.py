"""Whether labelling the most uncertain images first helps, on CamVid.

    python experiments/uncertain.py             # train what is missing, print the table
    python experiments/uncertain.py --table

The frozen MobileNetV2 of real_context.py with a receptive field of 267 pixels, its cached features,
and heads with frequency attention (dot product, k = 8, two rounds). The first training images are
drawn at random. Then their number is doubled, again and again, with images that are drawn at
random, or with those of the highest mean entropy of the class probabilities, as
`fsanet predict --uncertain` lists them. Both choices of a seed start from the same images. After
each choice a head is trained anew on all images chosen so far, always with the same number of
steps, and scored on the test split.

Each training leaves one JSON file with all its figures in --scores, and is not repeated.
"""

# B batch, C classes, h x w feature grid (24 x 32), H x W label (360 x 480)

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import mean_and_spread, measure, print_environment, whole
from real_context import SIZE, Head, Split, cached_parser, load_split, score, train_head
from torch import Tensor

from fsanet.data import CamVid
from fsanet.files import environment, write_json, write_whole
from fsanet.inputs import read_json

FIELD, VARIANT = 267, "dot R=2"
CHOICES = ("random", "uncertain")


def main() -> int:
    parser = cached_parser(__doc__, scores="uncertain", steps=400)
    parser.add_argument("--figure", type=Path, default=Path("docs/images/uncertain.png"))
    parser.add_argument("--first", type=whole(1), default=20, help="images drawn at random")
    parser.add_argument("--doublings", type=whole(1), default=3)
    options, results = measure(parser, run_all)
    print_table(results)
    write_whole(options.figure, lambda stream: draw(results, stream))
    return 0


def run_all(options: argparse.Namespace) -> None:
    """Train and score every head that has no scores yet."""
    train, test = (load_split(options, FIELD, name) for name in ("train", "test"))
    count = len(train.labels)

    def trained(choice: str, images: list[int], seed: int) -> dict[str, Any]:
        """The figures of a head that is trained on these images, from its file if it is there."""
        file = options.scores / f"{choice}-{len(images)}-{seed}.json"
        if not file.is_file():
            labelled = Split(*(None if one is None else one[images] for one in train))
            head, times = train_head(VARIANT, seed, options.steps, labelled, len(CamVid.classes))
            found = {"choice": choice, "seed": seed, "steps": options.steps, "images": images}
            found |= {"miou": score(head, test)["miou"], **times}
            if choice not in ("random", "all"):
                found["entropy"] = [round(one, 5) for one in mean_entropy(head, train.features)]
            write_json(file, found | {"versions": environment()})
            print(f"{file.stem}: mIoU {100 * found['miou']:.2f} %", flush=True)
        return read_json(file, "scores of a training")

    for seed in options.seeds:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        first = trained("first", sorted(order[: options.first]), seed)
        for choice in CHOICES:
            found = first
            for _ in range(options.doublings):
                images = found["images"]
                if choice == "uncertain":
                    order = sorted(range(count), key=lambda i: -found["entropy"][i])
                new = [index for index in order if index not in images][: len(images)]
                found = trained(choice, sorted(images + new), seed)
        trained("all", list(range(count)), seed)


@torch.inference_mode()
def mean_entropy(head: Head, features: Tensor) -> list[float]:
    """Mean entropy of the class probabilities of each image, in nats."""
    found: list[float] = []
    for part in features.split(16):
        logits = F.interpolate(head(part.float()), SIZE, mode="bilinear")  # (B, C, *SIZE)
        found += torch.special.entr(logits.softmax(1)).sum(1).mean((1, 2)).tolist()
    return found


def neighbours(images: Sequence[int]) -> float:
    """Share of images whose neighbour in the sorted training split, often almost the same frame of
    a video, is among them, too."""
    return sum(one - 1 in images or one + 1 in images for one in images) / len(images)


# --- table and figure -------------------------------------------------------------------------


def curve(results: Sequence[dict[str, Any]], choice: str) -> dict[int, dict[int, dict[str, Any]]]:
    """Trainings of a choice, and the first, which all share, by number of images and seed."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for one in results:
        if one["choice"] in ("first", choice):
            found.setdefault(len(one["images"]), {})[one["seed"]] = one
    return dict(sorted(found.items()))


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Mean and sample standard deviation over seeds, in percent; gains are those within a seed."""
    print(
        "| labelled images | random | most uncertain | gain, seed by seed "
        "| with a neighbour: random | most uncertain |\n|" + " --- |" * 6
    )
    drawn, uncertain = (curve(results, choice) for choice in CHOICES)
    for number in sorted({*drawn, *uncertain}):
        one, other = drawn.get(number, {}), uncertain.get(number, {})
        gains = [
            100 * (other[seed]["miou"] - one[seed]["miou"]) for seed in sorted({*one} & {*other})
        ]
        near = [[100 * neighbours(run["images"]) for run in runs.values()] for runs in (one, other)]
        cells = [miou(one), miou(other), mean_and_spread(gains) if gains else ""]
        cells += [mean_and_spread(shares) if shares else "" for shares in near]
        print(f"| {number} | {' | '.join(cells)} |")
    everything = {one["seed"]: one for one in results if one["choice"] == "all"}
    print(f"\nAll training images: {miou(everything)}")
    minutes = sum(one["cpu_seconds_per_step"] * one["steps"] for one in results) / 60
    print(f"{len(results)} trainings of {results[0]['steps']} steps: {minutes:.0f} core-minutes")
    print_environment(results[0]["versions"])


def miou(runs: Mapping[int, dict[str, Any]]) -> str:
    """mIoU of trainings by seed, in percent; empty without any."""
    return mean_and_spread([100 * run["miou"] for run in runs.values()]) if runs else ""


def draw(results: Sequence[dict[str, Any]], stream: Any) -> None:
    """Test mIoU against the number of labelled images."""
    from fsanet.report.figures import LIGHT, new_figure, style

    figure, (axes,) = new_figure(6.4, 3.8, 1, LIGHT)
    for shift, choice in enumerate(CHOICES):
        found = curve(results, choice)
        scores = [[100 * run["miou"] for run in runs.values()] for runs in found.values()]
        axes.errorbar(
            [number * 1.03 ** (shift - 0.5) for number in found],  # so that bars do not overlap
            [statistics.mean(one) for one in scores],
            [statistics.stdev(one) if len(one) > 1 else 0.0 for one in scores],
            marker="o",
            capsize=3,
            label=choice if choice == "random" else "most uncertain",
        )
    everything = [100 * one["miou"] for one in results if one["choice"] == "all"]
    if everything:
        best = statistics.mean(everything)
        axes.axhline(best, color=LIGHT.ink, linewidth=1, linestyle="--", label="all images")
    numbers = list(curve(results, "random"))
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, map(str, numbers))
    axes.minorticks_off()
    axes.set_xlabel("labelled training images", color=LIGHT.ink)
    axes.set_ylabel("test mIoU in percent", color=LIGHT.ink)
    style(axes, "Which images to label next, CamVid", LIGHT)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor())


if __name__ == "__main__":
    sys.exit(main())
