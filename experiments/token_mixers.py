"""Converting networks in which attention alone relates distant positions, without retraining.

    python experiments/token_mixers.py            # train what is missing, print the tables
    python experiments/token_mixers.py --table

A small ViT (timm) and a SegFormer encoder of two stages (transformers) on features of a frozen
MobileNetV2 that sees 19 pixels, cached as in real_context.py; a token is a position at stride 8.
Beside attention, the ViT has nothing that relates positions; the SegFormer has the 3 x 3 depthwise
convolutions of its perceptrons and the 2 x 2 patches of its second stage. Each network is trained
on CamVid without attention, with its own, and with its own on the 8 x 8 lowest frequencies
(`fsanet.convert_attention`). It is scored as trained and with the attention of single layers or
stages, and of all, removed; the network with its own attention also with k x k frequencies in
them, without retraining.

Each training leaves one JSON file with all its figures in --scores, and is not repeated.
"""

# B batch, C features of the encoder, N = h*w tokens, h x w grid at stride 8 (24 x 32)

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from common import (
    figures,
    mean_and_spread,
    measure,
    percent,
    print_cost,
)
from real_context import (
    CHANNELS,
    CUTS,
    GRID,
    KEPT,
    Split,
    cached_parser,
    fit,
    load_split,
    pointwise,
    score,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

from fsanet import convert_attention
from fsanet.data import CamVid
from fsanet.files import environment, write_json


def main() -> int:
    parser = cached_parser(__doc__, scores="token_mixers", steps=2000)
    parser.add_argument("--receptive-field", type=int, choices=CUTS, default=19, dest="field")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    _, results = measure(parser, run_all)
    print_tables(results)
    return 0


# --- networks ---------------------------------------------------------------------------------


class Vit(nn.Module):
    """Three blocks of timm's ViT with learned positions; every position of the grid is a token."""

    #: Patterns of module names, by the name of the part that is converted.
    parts: ClassVar = {f"layer {number + 1}": f"*blocks.{number}.*" for number in range(3)}

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = VisionTransformer(
            img_size=GRID,
            patch_size=1,
            in_chans=in_channels,
            embed_dim=CHANNELS,
            depth=len(self.parts),
            num_heads=2,
            mlp_ratio=2,
            class_token=False,
            global_pool="",
            num_classes=0,
        )
        self.classify = nn.Conv2d(CHANNELS, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.mixed(features))  # (B, classes, h, w)

    def mixed(self, features: Tensor) -> Tensor:
        tokens = self.encoder(features)  # (B, N, channels)
        return tokens.mT.unflatten(2, features.shape[-2:])  # (B, channels, h, w)


class Segformer(nn.Module):
    """Two stages of two SegFormer blocks at strides 8 and 16; keys reduced 2 x 2 in the first."""

    parts: ClassVar = {f"stage {number + 1}": f"*stages.{number}.*" for number in range(2)}

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        widths = (CHANNELS, 96)
        self.encoder = SegformerModel(
            SegformerConfig(
                num_channels=in_channels,
                num_encoder_blocks=2,
                depths=(2, 2),
                sr_ratios=(2, 1),
                hidden_sizes=widths,
                patch_sizes=(1, 2),
                strides=(1, 2),
                num_attention_heads=(2, 3),
                mlp_ratios=(2, 2),
                drop_path_rate=0.0,
            )
        )
        for stage in self.encoder.stages:  # patches that do not overlap
            stage.patch_embeddings.proj.padding = (0, 0)
        self.classify = nn.Sequential(
            pointwise(sum(widths), CHANNELS), nn.Conv2d(CHANNELS, classes, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.mixed(features))  # (B, classes, h, w)

    def mixed(self, features: Tensor) -> Tensor:
        stages = self.encoder(features, output_hidden_states=True).hidden_states
        return torch.cat(
            [F.interpolate(x, features.shape[-2:], mode="bilinear") for x in stages], 1
        )


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"vit": Vit, "segformer": Segformer}
TRAINED_K = 8  # frequencies per axis in the networks that are converted before training


class NoAttention(nn.Module):
    """Leaves only the residual around an attention module.

    Args:
        pair: whether the module returns a pair, its weights second, as SegFormer's does.
    """

    def __init__(self, *, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, tokens: Tensor, *rest: Any, **options: Any) -> Any:
        zero = torch.zeros_like(tokens)
        return (zero, None) if self.pair else zero


def without_attention(
    network: nn.Module, match: str = "*", *, original: nn.Module | None = None
) -> nn.Module:
    """A copy of a network without the attention that a pattern of module names matches.

    Args:
        network: network with its own attention, or one converted before training.
        match: glob pattern.
        original: the network before its conversion, if it was converted.
    """
    originals = convert_attention(original or network, match=match).originals
    network = copy.deepcopy(network)
    for name, module in originals.items():
        pair = type(module).__name__ == "SegformerAttention"
        network.set_submodule(name, NoAttention(pair=pair))
    return network


# What each attention makes of a network before it is trained.
ATTENTIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": without_attention,
    "softmax": copy.deepcopy,
    "frequency": lambda network: convert_attention(network, TRAINED_K).model,
}


# --- trainings --------------------------------------------------------------------------------


def run_all(options: argparse.Namespace) -> None:
    """Train and score every network that has no scores yet."""
    todo = [
        (seed, name, attention, options.scores / f"{name}-{attention}-{seed}.json")
        for seed in options.seeds
        for name in options.networks
        for attention in ATTENTIONS
    ]
    todo = [one for one in todo if not one[-1].is_file()]
    if not todo:
        return
    train, test = (load_split(options, options.field, split) for split in ("train", "test"))
    for seed, name, attention, file in todo:
        torch.manual_seed(seed)
        original: Any = NETWORKS[name](train.features.shape[1], len(CamVid.classes))
        network = ATTENTIONS[attention](original)
        times = fit(network, seed, options.steps, train, rate=2e-3)
        found = {
            "receptive_field": options.field,
            "network": name,
            "attention": attention,
            "seed": seed,
            "steps": options.steps,
            **times,
            "trained": score(network, test, edges=True),
        }
        parts = {**original.parts, "all": "*"}
        if attention != "none":
            found["removed"] = {
                part: score(without_attention(network, match, original=original), test)["miou"]
                for part, match in parts.items()
            }
        if attention == "softmax":
            found["lowest k x k"] = {
                part: without_retraining(network, match, test) for part, match in parts.items()
            }
        write_json(file, found | {"versions": environment()})
        print(f"{file.stem}: mIoU {100 * found['trained']['miou']:.2f} %", flush=True)


def without_retraining(network: nn.Module, match: str, data: Split) -> dict[str, float]:
    """mIoU by the number of frequencies per axis that a part of the attention keeps."""
    return {
        str(k or "full"): score(convert_attention(network, k, match=match).model, data)["miou"]
        for k in KEPT
    }


# --- tables -----------------------------------------------------------------------------------


def print_tables(results: list[dict[str, Any]]) -> None:
    """Mean and sample standard deviation over seeds, in percent."""
    print(
        "| network | attention in training | seeds | mIoU | attention then removed "
        "| boundary IoU | variance within regions: class scores | CPU ms per step |"
    )
    print("| --- " * 8 + "|")
    trained = {
        (name, attention): [
            one for one in results if (one["network"], one["attention"]) == (name, attention)
        ]
        for name in NETWORKS
        for attention in ATTENTIONS
    }
    for (name, attention), runs in trained.items():
        if not runs:
            continue
        milliseconds = [1000 * value for value in figures(runs, "cpu_seconds_per_step")]
        cells = [
            name,
            attention,
            ", ".join(str(one["seed"]) for one in runs),
            percent(runs, "trained", "miou"),
            percent(runs, "removed", "all"),
            percent(runs, "trained", "boundary_iou"),
            percent(runs, "trained", "within_regions", "class scores"),
            mean_and_spread(milliseconds),
        ]
        print(f"| {' | '.join(cells)} |")
    names = [str(k or "full") for k in KEPT]
    for name in NETWORKS:
        runs, converted = trained[name, "softmax"], trained[name, "frequency"]
        if not runs:
            continue
        print(f"\n{name}, lowest k x k frequencies without retraining, mIoU:\n")
        trained_k = f"trained with {TRAINED_K} x {TRAINED_K}, removed"
        print(f"| attention of | removed | {' | '.join(names)} | {trained_k} |")
        print("| --- " * (len(names) + 3) + "|")
        for part in runs[0]["removed"]:
            swept = set.intersection(*(set(one["lowest k x k"][part]) for one in runs))
            cells = [
                percent(runs, "removed", part),
                *(percent(runs, "lowest k x k", part, k) if k in swept else "" for k in names),
                percent(converted, "removed", part),
            ]
            print(f"| {part} | {' | '.join(cells)} |")
    print_cost(results)


if __name__ == "__main__":
    sys.exit(main())
