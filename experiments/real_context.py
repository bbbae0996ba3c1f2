"""What attention is worth on real images, against how far the convolutions see.

    python experiments/real_context.py             # train what is missing, print the tables
    python experiments/real_context.py --receptive-fields 19 --seeds 0 --variants none softmax

CamVid at 192 x 256. A MobileNetV2 with ImageNet weights is frozen and cut at four depths; its
features, brought to stride 8, are computed once and cached. Heads of 1x1 convolutions with one
attention layer between them are trained on these features, so that nothing but attention and the
encoder's own receptive field relates distant positions. Every trained head is scored on the test
split as it is and with its attention removed; heads with regular softmax attention also with
frequency attention in its place, without retraining.

Each training leaves one JSON file with all its figures in --scores, and is not repeated.
"""

# B batch, C channels of the head (64), h x w feature grid (24 x 32), H x W label (360 x 480)

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from common import (
    Parser,
    cost_of_training,
    evidence_parser,
    mean_and_spread,
    measure,
    percent,
    print_cost,
    whole,
)
from scipy import ndimage
from torch import Tensor, nn

from fsanet import BandTreatments, convert_attention
from fsanet.attention import make_attention
from fsanet.data import CamVid
from fsanet.errors import InputError
from fsanet.files import environment, read_weights, write_json, write_whole
from fsanet.metrics.boundary import BoundaryQuality
from fsanet.metrics.confusion import scores_of

SIZE, STRIDE, CHANNELS, BATCH = (192, 256), 8, 64, 8
GRID = (SIZE[0] // STRIDE, SIZE[1] // STRIDE)
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"kind": None},
    "softmax": {"kind": "spatial", "similarity": "softmax"},
    **{
        f"{similarity} R={rounds}": {
            "kind": "frequency",
            "k": 8,
            "similarity": similarity,
            "recurrence": rounds,
        }
        for similarity in ("dot", "linear_softmax")
        for rounds in (1, 2)
    },
}
KEPT = (1, 2, 4, 6, 8, 12, 16, None)  # lowest frequencies per axis; None keeps all
#: Square rings of the frequency plane, as rectangles.
RINGS: dict[str, list[Any]] = {
    "low (0-7)": [8],
    "middle (8-15)": [((0, 8), (8, 16)), ((8, 16), (0, 16))],
    "high (16-)": [((0, 16), (16, None)), ((16, None), (0, None))],
}


class Cut(NamedTuple):
    """Where the encoder is cut.

    Attributes:
        stages: whole stages of MobileNetV2.
        blocks: blocks of the stage after them.
    """

    stages: int
    blocks: int = 0


#: By receptive field in pixels, as `receptive_field` measures it.
CUTS = {19: Cut(2), 43: Cut(2, 2), 107: Cut(3, 2), 267: Cut(5)}


def cached_parser(description: str, *, scores: str, steps: int) -> Parser:
    """The options of experiments on the cached features of :func:`load_split`."""
    parser = evidence_parser(
        description, data="../shared/data/camvid", scores=f"docs/evidence/{scores}", steps=steps
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/real_context"))
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2])
    return parser


def main() -> int:
    parser = cached_parser(__doc__, scores="real_context", steps=400)
    parser.add_argument("--figure", type=Path, default=Path("docs/images/real_context.png"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--receptive-fields", type=int, nargs="+", choices=CUTS, default=list(CUTS), dest="fields"
    )
    options, results = measure(parser, run_all)
    print_tables(results)
    write_whole(options.figure, lambda stream: draw(results, stream))
    return 0


# --- data and encoder -------------------------------------------------------------------------


def encoder(weights: Path, cut: Cut) -> nn.Sequential:
    """The frozen beginning of MobileNetV2; maps images in -1..1 to features."""
    network = timm.create_model("mobilenetv2_100", pad_type="same")
    network.load_state_dict(read_weights(weights))
    parts = [network.conv_stem, network.bn1, *network.blocks[: cut.stages]]
    if cut.blocks:
        parts.append(network.blocks[cut.stages][: cut.blocks])
    return nn.Sequential(*parts).eval().requires_grad_(False)


def receptive_field(network: nn.Module) -> int:
    """Rows of the image that one position of the features depends on."""
    network = copy.deepcopy(network).double()
    for module in network.modules():  # so that no position is cut off by a ReLU
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0)
        elif isinstance(module, nn.ReLU6):
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.zeros(1, 3, 1024, 64, dtype=torch.double, requires_grad=True)
    features = network(image)
    features[0, :, features.shape[2] // 2, features.shape[3] // 2].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()  # type: ignore[union-attr]
    return int(rows.max() - rows.min()) + 1


class Split(NamedTuple):
    """A split as cached.

    Attributes:
        features: float16 (images, channels, h, w).
        mirrored: the same of mirrored images; None where it is not needed.
        labels: uint8 (images, H, W).
    """

    features: Tensor
    mirrored: Tensor | None
    labels: Tensor


def load_split(options: argparse.Namespace, field: int, name: str) -> Split:
    """Features of a split, computed at the first call."""
    file = options.cache / f"{field}-{name}.pt"
    if not file.is_file():
        network = encoder(options.weights, CUTS[field])
        found = receptive_field(network)
        if found != field:
            raise InputError(f"the encoder cut at {CUTS[field]} sees {found} pixels, not {field}")
        print(f"receptive field {field}: features of the {name} split", flush=True)
        dataset = CamVid(options.data, name)
        features, mirrored, labels = [], [], []
        for index in range(len(dataset)):
            image, label = dataset[index]
            x = F.interpolate(
                image[None].as_subclass(Tensor).float(), SIZE, mode="bilinear", antialias=True
            )
            x = x / 127.5 - 1
            features.append(at_stride_8(network(x)))
            if name == "train":
                mirrored.append(at_stride_8(network(x.flip(-1))))
            labels.append(label.as_subclass(Tensor).to(torch.uint8)[None])
        content = {
            "features": torch.cat(features).half(),
            "mirrored": torch.cat(mirrored).half() if mirrored else None,
            "labels": torch.cat(labels),
        }
        write_whole(file, lambda stream: torch.save(content, stream))
    return Split(**torch.load(file, weights_only=True, mmap=True))


def at_stride_8(features: Tensor) -> Tensor:
    """Features on the grid of the heads: averaged from stride 4, interpolated from stride 16."""
    if features.shape[-1] > GRID[1]:
        return F.adaptive_avg_pool2d(features, GRID)
    return F.interpolate(features, GRID, mode="bilinear")


# --- training ---------------------------------------------------------------------------------


class Head(nn.Module):
    """1x1 convolutions with one attention layer between them."""

    def __init__(self, in_channels: int, num_classes: int, kind: Any, **options: Any) -> None:
        super().__init__()
        self.reduce = pointwise(in_channels, CHANNELS)
        self.attention = make_attention(kind, CHANNELS, **options)
        self.classify = nn.Sequential(
            pointwise(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, num_classes, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.mixed(features))  # (B, classes, h, w)

    def mixed(self, features: Tensor) -> Tensor:
        """What the classifier sees: features after attention, (B, C, h, w)."""
        return self.attention(self.reduce(features))


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def train_head(variant: str, seed: int, steps: int, data: Split, classes: int) -> tuple[Head, dict]:
    """Train one head; the seed decides its weights."""
    torch.manual_seed(seed)
    head = Head(data.features.shape[1], classes, **VARIANTS[variant])
    return head, fit(head, seed, steps, data)


def fit(network: nn.Module, seed: int, steps: int, data: Split, rate: float = 3e-3) -> dict:
    """Train a network on features; a seed decides order and mirroring alike for all networks."""
    draws = torch.Generator().manual_seed(seed)
    targets = F.interpolate(data.labels[:, None], [2 * side for side in GRID], mode="nearest-exact")
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        chosen = torch.randint(len(targets), (BATCH,), generator=draws)
        mirror = torch.rand(BATCH, generator=draws) < 0.5
        features, labels = data.features[chosen].float(), targets[chosen, 0].long()
        features[mirror] = data.mirrored[chosen[mirror]].float()  # type: ignore[index]
        labels[mirror] = labels[mirror].flip(-1)
        logits = F.interpolate(network(features), labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    return cost_of_training(began, cpu, steps, loss.item())


# --- scores -----------------------------------------------------------------------------------


@torch.inference_mode()
def score(head: Any, data: Split, *, edges: bool = False) -> dict[str, Any]:
    """mIoU at the labels' size; with ``edges`` also boundary IoU, trimaps and uniformity."""
    classes = CamVid.classes
    count = len(classes)
    matrix = torch.zeros(count, count, dtype=torch.long)
    boundary = BoundaryQuality(classes)
    spread = {"features": np.zeros(2), "class scores": np.zeros(2)}
    for first in range(0, len(data.labels), 16):
        labels = data.labels[first : first + 16].long()  # (B, H, W)
        mixed = head.mixed(data.features[first : first + 16].float())  # (B, C, h, w)
        logits = head.classify(mixed)
        upsampled = F.interpolate(logits, labels.shape[1:], mode="bilinear")
        ids = upsampled.max(1).indices  # (B, H, W); several times as fast as argmax
        pairs = torch.where(labels == 255, count**2, labels * count + ids)
        matrix += torch.bincount(pairs.flatten(), minlength=count**2 + 1)[:-1].view(count, count)
        if edges:
            boundary.update(ids, labels)
            small = F.interpolate(labels[:, None].double(), GRID, mode="nearest-exact")[:, 0]
            for name, values in (("features", mixed), ("class scores", logits.softmax(1))):
                for label, value in zip(small.numpy(), values.double().numpy(), strict=True):
                    spread[name] += variance_in_regions(value, label)
    found: dict[str, Any] = {"miou": scores_of(matrix, classes).miou}
    if edges:
        quality = boundary.scores()
        found["boundary_iou"] = quality.mean_iou
        found["trimap"] = {str(width): value for width, value in quality.trimap_miou.items()}
        found["within_regions"] = {name: inside / all_ for name, (inside, all_) in spread.items()}
    return found


def variance_in_regions(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Sum of squared deviations from the mean of the own region, and from the image's mean.

    A region is a connected set of at least 4 positions with one label.

    Args:
        values: (C, h, w).
        label: class ids (h, w); 255 belongs to no region.
    """
    inside, used = 0.0, np.zeros(label.shape, bool)
    for class_ in np.unique(label[label != 255]):
        regions, count = ndimage.label(label == class_)
        for number in range(1, count + 1):
            chosen = regions == number
            if chosen.sum() >= 4:
                part = values[:, chosen]
                inside += ((part - part.mean(1, keepdims=True)) ** 2).sum()
                used |= chosen
    every = values[:, used]
    return np.array([inside, ((every - every.mean(1, keepdims=True)) ** 2).sum()])


def removed(head: Head) -> Head:
    """The same head without its attention, not retrained."""
    head = copy.deepcopy(head)
    head.attention = nn.Identity()
    return head


class OnFilteredMap(nn.Module):
    """Attention that sees some frequencies of the map only, added to the whole map."""

    def __init__(self, attention: nn.Module, bands: Sequence[Any], *, keep: bool) -> None:
        super().__init__()
        self.attention = attention
        treatments = [(band, "identity" if keep else "drop") for band in bands]
        self.filter = BandTreatments(treatments, rest="drop" if keep else "identity")

    def forward(self, x: Tensor) -> Tensor:
        seen = self.filter(x)
        return x + self.attention(seen) - seen


def without_retraining(head: Head, data: Split) -> dict[str, dict[str, float]]:
    """mIoU of a head with regular attention when that sees fewer frequencies."""
    lowest, kept, dropped = {}, {}, {}
    for k in KEPT:
        lowest[str(k or "full")] = score(convert_attention(head, k).model, data)["miou"]  # type: ignore[arg-type]
    for name, bands in RINGS.items():
        for keep, found in ((True, kept), (False, dropped)):
            changed = copy.deepcopy(head)
            changed.attention = OnFilteredMap(head.attention, bands, keep=keep)
            found[name] = score(changed, data)["miou"]
    return {"lowest k x k": lowest, "one band kept": kept, "one band dropped": dropped}


def run_all(options: argparse.Namespace) -> None:
    """Train and score every head that has no scores yet."""
    for field in options.fields:
        todo = [
            (seed, variant, options.scores / f"{field}-{variant.replace(' ', '-')}-{seed}.json")
            for seed in options.seeds
            for variant in options.variants
        ]
        todo = [(seed, variant, file) for seed, variant, file in todo if not file.is_file()]
        if not todo:
            continue
        train, test = (load_split(options, field, name) for name in ("train", "test"))
        for seed, variant, file in todo:
            head, times = train_head(variant, seed, options.steps, train, len(CamVid.classes))
            found = {
                "receptive_field": field,
                "variant": variant,
                "seed": seed,
                "steps": options.steps,
                **times,
                "trained": score(head, test, edges=True),
            }
            if variant != "none":
                found["removed"] = score(removed(head), test, edges=True)
            if variant == "softmax":
                found["without_retraining"] = without_retraining(head, test)
            write_json(file, found | {"versions": environment()})
            print(f"{file.stem}: mIoU {100 * found['trained']['miou']:.2f} %", flush=True)


# --- tables and figure ------------------------------------------------------------------------


def print_tables(results: list[dict[str, Any]]) -> None:
    """Mean and sample standard deviation over seeds, in percent."""
    for field in sorted({one["receptive_field"] for one in results}):
        here = [one for one in results if one["receptive_field"] == field]
        seeds = sorted({one["seed"] for one in here})
        print(f"\n### Receptive field {field} pixels, seeds {', '.join(map(str, seeds))}\n")
        print(
            "| attention | mIoU | gain over none | then removed | boundary IoU | then removed "
            "| trimap 4 px | variance within regions: features | class scores | CPU ms per step |"
        )
        print("| --- |" + " --- |" * 9)
        for variant in VARIANTS:
            runs = [one for one in here if one["variant"] == variant]
            if runs:
                gained = gains(here, variant)
                cells = [
                    percent(runs, "trained", "miou"),
                    mean_and_spread(gained) if gained else "",
                    percent(runs, "removed", "miou"),
                    percent(runs, "trained", "boundary_iou"),
                    percent(runs, "removed", "boundary_iou"),
                    percent(runs, "trained", "trimap", "4"),
                    percent(runs, "trained", "within_regions", "features"),
                    percent(runs, "trained", "within_regions", "class scores"),
                    mean_and_spread([1000 * one["cpu_seconds_per_step"] for one in runs]),
                ]
                print(f"| {variant} | {' | '.join(cells)} |")
        swapped = [one for one in here if "without_retraining" in one]
        for title in swapped[0]["without_retraining"] if swapped else ():
            names = list(swapped[0]["without_retraining"][title])
            cells = [percent(swapped, "without_retraining", title, name) for name in names]
            print(f"\nSoftmax attention without retraining, {title}, mIoU:\n")
            print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n| {' | '.join(cells)} |")
    print_cost(results)


def gains(results: Sequence[dict[str, Any]], variant: str) -> list[float]:
    """mIoU of a variant minus that of no attention with the same seed, in points, by seed.

    Args:
        results: trainings at one receptive field.
        variant: "none" itself gains nothing.
    """
    miou = {(one["variant"], one["seed"]): 100 * one["trained"]["miou"] for one in results}
    return [
        value - miou["none", seed]
        for (name, seed), value in miou.items()
        if name == variant != "none" and ("none", seed) in miou
    ]


def losses(results: Sequence[dict[str, Any]], variant: str) -> list[float]:
    """mIoU of each training of a variant minus that of the same head without its attention."""
    return [
        100 * (one["trained"]["miou"] - one["removed"]["miou"])
        for one in results
        if one["variant"] == variant and "removed" in one
    ]


def draw(results: list[dict[str, Any]], stream: Any) -> None:
    """What attention is worth, and how far heads rely on it, against the receptive field.

    Worth: the gain over the head trained without attention with the same seed.
    """
    from fsanet.report.figures import LIGHT, new_figure, style

    figure, panels = new_figure(9.6, 3.8, 2, LIGHT)
    fields = sorted({one["receptive_field"] for one in results})
    titles = {"Gain over training without attention": gains, "Loss when it is removed": losses}
    for axes, (title, differences) in zip(panels, titles.items(), strict=True):
        for number, variant in enumerate(name for name in VARIANTS if name != "none"):
            points = []
            for index, field in enumerate(fields):
                here = [one for one in results if one["receptive_field"] == field]
                found = differences(here, variant)
                if found:
                    spread = statistics.stdev(found) if len(found) > 1 else 0.0
                    points.append((index + 0.06 * (number - 2), statistics.mean(found), spread))
            if points:
                x, y, errors = zip(*points, strict=True)
                axes.errorbar(x, y, errors, marker="o", capsize=3, label=variant)
        axes.axhline(0, color=LIGHT.ink, linewidth=1)
        axes.set_xticks(range(len(fields)), [f"{field} px" for field in fields])
        axes.set_xlabel("receptive field of the frozen convolutions", color=LIGHT.ink)
        axes.set_ylabel("points of mIoU, CamVid test split", color=LIGHT.ink)
        style(axes, title, LIGHT)
    panels[0].legend(frameon=False)
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor())


if __name__ == "__main__":
    sys.exit(main())
