"""What attention on the pyramid of a frozen encoder is worth for instances: balloon in five folds.

    python experiments/balloon_folds.py            # train what is missing, print the tables
    python experiments/balloon_folds.py --table

All 74 photographs, squeezed to 192 x 192 pixels, in five folds; each variant is trained once per
fold, on the other four. The encoder is frozen: its features, and those of mirrored photographs, are
computed once. The rest is the Mask R-CNN of the recipe balloon_mask_rcnn with attention on the
pyramid's levels at strides 8, 16 and 32. The fold is also the seed: all variants of a fold see the
same images in the same order. AP belongs to the last weights and the fold that was left out.

Each training leaves one JSON file with all its figures in --scores, and is not repeated.
"""

# B batch, S side of the photographs in pixels

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    cost_of_training,
    evidence_parser,
    figures,
    mean_and_spread,
    measure,
    percent,
    print_cost,
)
from torch import Tensor, nn
from torchvision.transforms import v2

from fsanet import convert_attention
from fsanet.cli.recipe import recipe_file
from fsanet.cli.safe_yaml import read_yaml
from fsanet.data import InstanceDataset
from fsanet.files import environment, write_json
from fsanet.metrics.average_precision import AveragePrecision
from fsanet.models.mask_rcnn import MaskRcnnFsa, as_floats

FOLDS, SIDE, BATCH = 5, 192, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"attention": None},
    "frequency": {"attention": "frequency"},
    "regular": {"attention": "spatial", "similarity": "softmax"},
}
KEPT = (1, 4, 8, 16)  # lowest frequencies per axis


def main() -> int:
    parser = evidence_parser(
        __doc__, data="../shared/data/balloon", scores="docs/evidence/balloon_folds", steps=100
    )
    parser.add_argument("--config", default="balloon_mask_rcnn")
    parser.add_argument(
        "--folds", type=int, choices=range(FOLDS), nargs="+", default=list(range(FOLDS))
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    _, results = measure(parser, run_all)
    print_tables(results)
    return 0


# --- photographs and frozen features ----------------------------------------------------------


class Example(NamedTuple):
    """A photograph as cached.

    Attributes:
        image: uint8 (3, S, S).
        target: as in `InstanceDataset`.
        features: of the frozen encoder, by stage; float (C, h, w) each.
    """

    image: Tensor
    target: dict[str, Any]
    features: dict[str, Tensor]


class StoredFeatures(nn.Module):
    """Takes the place of the encoder: returns the features it was given for the next batch."""

    features: dict[str, Tensor]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.features


def build(options: argparse.Namespace, variant: str) -> MaskRcnnFsa:
    """The recipe's network with one of the variants of attention."""
    recipe = read_yaml(recipe_file(options.config))["model"]
    recipe |= read_yaml(Path(__file__).with_name("balloon_files.yaml"))["model"]
    recipe |= {"positions": ["p3", "p4", "p5"], "backbone_weights": str(options.weights)}
    recipe |= {"min_size": SIDE, "max_size": SIDE, "num_classes": 1}
    recipe["detector_options"] |= {"box_batch_size_per_image": 32}  # half, for time
    return MaskRcnnFsa(**recipe | VARIANTS[variant])


@torch.inference_mode()
def load_examples(options: argparse.Namespace) -> list[tuple[Example, Example]]:
    """Every photograph with its features, as it is and mirrored."""
    network = build(options, "none").eval()
    squeeze = v2.Compose([v2.Resize((SIDE, SIDE), antialias=True), v2.ClampBoundingBoxes()])
    mirror = v2.RandomHorizontalFlip(1.0)
    found = []
    for split in ("train", "val"):
        dataset = InstanceDataset(
            options.data / split / "images", options.data / split / "instances.json"
        )
        for index in range(len(dataset)):
            plain = squeeze(*dataset[index])
            plain[1]["image_id"] = len(found)  # ids of the two splits may coincide
            examples = []
            for image, target in (plain, mirror(*plain)):
                image = image.as_subclass(Tensor)
                batch, _ = network.transform(as_floats([image]))
                stages = network.backbone.body(batch.tensors)  # (1, C, h, w) each
                examples.append(Example(image, target, {n: x[0] for n, x in stages.items()}))
            found.append((examples[0], examples[1]))
    return found


def give(network: Any, batch: Sequence[Example]) -> list[Tensor]:
    """Hand a network the features of a batch; returns its images."""
    network.backbone.body.features = {
        name: torch.stack([one.features[name] for one in batch]) for name in batch[0].features
    }
    return [one.image for one in batch]


# --- trainings --------------------------------------------------------------------------------


def run_all(options: argparse.Namespace) -> None:
    """Train and score every variant and fold that has no scores yet."""
    todo = [
        (fold, variant, options.scores / f"{variant}-{fold}.json")
        for fold in options.folds
        for variant in options.variants
    ]
    todo = [one for one in todo if not one[-1].is_file()]
    if not todo:
        return
    print("features of all photographs", flush=True)
    examples = load_examples(options)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    for fold, variant, file in todo:
        left_out = set(order[fold::FOLDS])
        train = [pair for index, pair in enumerate(examples) if index not in left_out]
        test = [examples[index][0] for index in sorted(left_out)]
        torch.manual_seed(fold)
        network = build(options, variant)
        network.backbone.body = StoredFeatures()
        times = fit(network, fold, options.steps, train)
        found = {"variant": variant, "seed": fold, "steps": options.steps, **times}
        found |= {"images": len(test), "trained": score(network, test)}
        if variant != "none":
            without = copy.deepcopy(network)
            without.backbone.attention = nn.ModuleDict()
            found["removed"] = score(without, test)
        if variant == "regular":
            found["lowest k x k"] = {
                str(k): score(convert_attention(network, k).model, test) for k in KEPT
            }
        write_json(file, found | {"versions": environment()})
        print(f"{file.stem}: mask AP {100 * found['trained']['mask']['AP']:.1f} %", flush=True)


def fit(
    network: MaskRcnnFsa, seed: int, steps: int, train: Sequence[tuple[Example, Example]]
) -> dict[str, float]:
    """Train everything but the encoder; the seed decides order, mirroring and proposals."""
    draws = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # the sampling of anchors and proposals
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        chosen = torch.randint(len(train), (BATCH,), generator=draws).tolist()
        mirrored = torch.randint(2, (BATCH,), generator=draws).tolist()
        batch = [train[index][side] for index, side in zip(chosen, mirrored, strict=True)]
        losses = network(as_floats(give(network, batch)), [one.target for one in batch])
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    network.eval()
    return cost_of_training(began, cpu, steps, loss.item())


def score(network: Any, test: Sequence[Example]) -> dict[str, Any]:
    """COCO's box and mask metrics."""
    metric = AveragePrecision(network.classes)
    for one in test:
        metric.update(network.detect(give(network, [one])), [one.target])
    found = metric.compute().as_dict()  # type: ignore[union-attr]
    return {kind: found[kind] for kind in ("box", "mask")}


# --- tables -----------------------------------------------------------------------------------


def print_tables(results: list[dict[str, Any]]) -> None:
    """Mean and sample standard deviation over folds, in percent."""
    none = {one["seed"]: one for one in results if one["variant"] == "none"}
    print(
        "| attention | folds | box AP | mask AP | mask AP50 | mask AP75 | mask AP, then removed "
        "| gain in box AP, fold by fold | gain in mask AP, fold by fold | CPU ms per step |"
    )
    print("| --- " * 10 + "|")
    for variant in VARIANTS:
        runs = [one for one in results if one["variant"] == variant]
        if not runs:
            continue
        gains = [
            [
                100 * (one["trained"][kind]["AP"] - none[one["seed"]]["trained"][kind]["AP"])
                for one in runs
                if one["seed"] in none
            ]
            for kind in ("box", "mask")
        ]
        cells = [
            variant,
            str(len(runs)),
            percent(runs, "trained", "box", "AP"),
            *(percent(runs, "trained", "mask", name) for name in ("AP", "AP50", "AP75")),
            percent(runs, "removed", "mask", "AP"),
            *(mean_and_spread(some) if some and variant != "none" else "" for some in gains),
            mean_and_spread([1000 * one for one in figures(runs, "cpu_seconds_per_step")]),
        ]
        print(f"| {' | '.join(cells)} |")
    swapped = [one for one in results if "lowest k x k" in one]
    if swapped:
        print("\nRegular attention without retraining, lowest k x k:\n")
        print(f"| | {' | '.join(map(str, KEPT))} |\n{'| --- ' * (len(KEPT) + 1)}|")
        for kind in ("box", "mask"):
            cells = [percent(swapped, "lowest k x k", str(k), kind, "AP") for k in KEPT]
            print(f"| {kind} AP | {' | '.join(cells)} |")
    print_cost(results)


if __name__ == "__main__":
    sys.exit(main())
