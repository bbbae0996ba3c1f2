"""FsaNet beside DeepLabV3+, FPN, PSPNet and Unet of segmentation_models_pytorch, on the same work.

    python experiments/peers.py train                      # resumes; one JSON file per training
    python experiments/peers.py cost                       # latency side by side, FLOPs, parameters
    python experiments/peers.py step                       # time and memory of a training step
    python experiments/peers.py table                      # tables, and the figure
    python experiments/peers.py train --steps 500 --seeds 0 --networks FsaNet FPN

Everything but the network is that of one recipe: encoder and its weights, data, augmentation, loss,
optimiser, budget, seeds; no network has an auxiliary head. Options of `fsanet train` may follow.
The other networks keep their own defaults, among them the stride of their encoders. Needs the
dependency group `experiments`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning
import segmentation_models_pytorch as smp
import torch
from common import main, mean_and_spread, print_environment, whole
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fsanet import FsaNet
from fsanet.bench.training import make_training_step
from fsanet.cli.recipe import Recipe
from fsanet.cost import (
    Quartiles,
    Timed,
    count_flops,
    count_parameters,
    peak_memory,
    ratios,
    time_calls,
)
from fsanet.errors import InputError
from fsanet.files import environment, write_json, write_whole
from fsanet.inputs import read_json
from fsanet.models.encoder import build_encoder
from fsanet.models.saving import SegmentationNetwork
from fsanet.train import SemanticSegmentation, evaluate, train

#: Our networks, by their options; the others, by the names of their classes.
OURS = {
    "FsaNet": [],
    "FsaNet-no-attention": ["--model.attention=null"],
    "FsaNet-no-decoder": ["--model.decoder=null"],
}
PEERS = ("DeepLabV3Plus", "FPN", "PSPNet", "Unet")
NETWORKS = (*OURS, *PEERS)
REFERENCE = "FsaNet"  # latencies are given as multiples of its own


class Peer(SegmentationNetwork):
    """A network of segmentation_models_pytorch with the interface of FsaNet.

    Args:
        architecture: name of its class.
        k: none; every saved network has this argument.

    The other arguments are those of `FsaNet`.
    """

    network = "Peer"
    initial_weights: ClassVar = {"encoder_weights": None}

    def __init__(
        self,
        architecture: str,
        *,
        encoder: str,
        encoder_weights: str | None = None,
        encoder_options: dict[str, Any] | None = None,
        num_classes: int,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        mean: Sequence[float],
        std: Sequence[float],
        k: None = None,
    ) -> None:
        super().__init__()
        self.describe(
            num_classes=num_classes,
            classes=classes,
            palette=palette,
            mean=mean,
            std=std,
            in_channels=3,
        )
        options = encoder_options or {}
        built = getattr(smp, architecture)(
            f"tu-{encoder}", encoder_weights=None, classes=num_classes, **options
        )
        self.encoder, self.decoder = built.encoder, built.decoder
        self.classify = built.segmentation_head
        # Of which the sides of an image have to be multiples.
        self.multiple = self.encoder.output_stride if built.requires_divisible_input_shape else 1
        if encoder_weights is not None:
            same = build_encoder(
                encoder, output_stride=32, weights=encoder_weights, options=options
            )
            weights = same.state_dict()  # PSPNet cuts its encoder and needs a part of them
            own = self.encoder.model
            own.load_state_dict({name: weights[name] for name in own.state_dict()})
        self.record_config(k=k)

    def encoder_features(self, images: Tensor) -> list[Tensor]:
        return list(self.encoder(images))[1:]  # the first one is the image

    def forward(self, images: Tensor) -> Tensor:
        return self.coarse_logits(images)

    def coarse_logits(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, 3, H, W)`` to logits ``(B, num_classes, H, W)``.

        Images are padded with the mean colour at the bottom and on the right where need be.
        """
        height, width = images.shape[-2:]
        padded = pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        logits = self.classify(self.decoder(self.encoder(padded)))
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = interpolate(logits, padded.shape[-2:], mode="bilinear")
        return logits[..., :height, :width]

    def forward_with_auxiliary(
        self, images: Tensor, features: list[Tensor] | None = None
    ) -> tuple[Tensor, None]:
        return self(images), None


def build(
    name: str, arguments: argparse.Namespace, *extra: str
) -> tuple[Recipe, Any, SegmentationNetwork]:
    """The recipe of a network, the data, and the network with its initial weights.

    Raises:
        InputError: the recipe is not one of FsaNet, or wrong in itself.
    """
    configs = [f"--config={name}" for name in arguments.config or CONFIGS]
    shared = [*configs, "--model.aux_channels=0", *arguments.rest]
    recipe = Recipe([*shared, *OURS.get(name, ()), *extra])
    lightning.seed_everything(recipe.options.seed, verbose=False)
    data = recipe.data()
    network = recipe.task(data).model
    if not isinstance(network, FsaNet):
        raise InputError(f"--config {arguments.config}: its network is no FsaNet; give another one")
    if name in PEERS:
        given = recipe.options.model.init_args
        if given.pretrained and given.encoder_weights is None:
            raise InputError("other networks start from a file: give --model.encoder_weights FILE")
        lightning.seed_everything(recipe.options.seed, verbose=False)
        network = Peer(
            name,
            encoder=given.encoder,
            encoder_weights=given.encoder_weights,
            encoder_options=given.encoder_options,
            num_classes=data.num_classes,
            classes=data.classes,
            palette=data.palette,
            mean=network.mean,
            std=network.std,
        )
    return recipe, data, network


def make_task(recipe: Recipe, data: Any, network: SegmentationNetwork) -> SemanticSegmentation:
    """The network with loss and optimiser of the recipe."""
    return SemanticSegmentation(
        network,
        classes=data.classes,
        ignore_index=data.ignore_index,
        **recipe.options.task.as_dict(),
    )


# --- train ------------------------------------------------------------------------------------


def train_all(arguments: argparse.Namespace) -> None:
    """Train and test every network with every seed, if there is no JSON file of it yet."""
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        for name in arguments.networks:
            file = arguments.scores / f"{name}-seed{seed}.json"
            if not file.is_file():
                train_one(name, seed, file, arguments)
            found = read_json(file, "the scores of a training")
            print(f"{file.stem}: mIoU {100 * found['test']['miou']:.2f} %", flush=True)


def train_one(name: str, seed: int, file: Path, arguments: argparse.Namespace) -> None:
    steps = [f"--steps={arguments.steps}"] if arguments.steps else []
    recipe, data, network = build(name, arguments, f"--seed={seed}", *steps)
    task = make_task(recipe, data, network)
    out = arguments.out / file.stem
    resume = any(out.glob("checkpoints/last*.ckpt"))
    options = recipe.train_options() | {"resume": resume}
    before = time.process_time()
    result = train(task, data, out=out, config=recipe.text(out), **options)
    seconds = time.process_time() - before
    best = type(network).from_pretrained(result.model)
    scores = evaluate(
        best, data, split="test", boundary=True, accelerator=recipe.options.accelerator
    )
    write_json(
        file,
        {
            "network": name,
            "seed": seed,
            "steps": result.steps,
            "resumed": resume,
            "cpu_minutes": seconds / 60,  # of the last part, if resumed
            "test": scores.as_dict(),
            "options": [*OURS.get(name, ()), *arguments.rest],
            "config": " ".join(arguments.config or CONFIGS),
            "versions": environment() | {"segmentation_models_pytorch": smp.__version__},
        },
    )


# --- cost -------------------------------------------------------------------------------------


def cost(arguments: argparse.Namespace) -> None:
    """Time all networks in interleaved rounds; count their FLOPs and parameters."""
    torch.set_num_threads(arguments.threads)
    height, width = arguments.size
    device = torch.device(arguments.device)
    calls, found = {}, {}
    for name in arguments.networks:
        _, _, network = build(name, arguments)
        network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = network.normalise(torch.rand(1, 3, height, width, device=device))
        with torch.no_grad():
            flops = count_flops(lambda n=network, x=images: n(x))
        found[name] = {"flops": flops, "parameters": count_parameters(network)}
        calls[name] = Timed(torch.inference_mode()(lambda n=network, x=images: n(x)))
    seconds = time_calls(calls, device=device, rounds=arguments.rounds)
    first = REFERENCE if REFERENCE in seconds else arguments.networks[0]
    for name, by_round in seconds.items():
        found[name]["seconds"] = vars(Quartiles.of(list(by_round.values())))
        found[name]["ratio"] = vars(Quartiles.of(ratios(by_round, seconds[first])))
    about = {"size": [height, width], "threads": arguments.threads, "reference": first}
    about |= {"networks": found, "versions": environment(device)}
    write_json(arguments.scores / "cost.json", about)
    print_cost(arguments.scores)


def print_cost(scores: Path) -> None:
    found = read_json(scores / "cost.json", "the costs of the networks")
    height, width = found["size"]
    print(
        f"\nOne image of {height} x {width}, {found['threads']} CPU thread(s), channels-last; "
        f"median (quartiles) of interleaved rounds; times that of {found['reference']}\n"
    )
    print("| network | parameters, M | GFLOP | ms | ratio |\n| --- | --- | --- | --- | --- |")
    for name, one in found["networks"].items():
        milliseconds = {key: 1000 * value for key, value in one["seconds"].items()}
        print(
            f"| {name} | {one['parameters'] / 1e6:.2f} | {one['flops'] / 1e9:.2f} | "
            f"{spread(milliseconds, 0)} | {spread(one['ratio'], 2)} |"
        )


# --- step -------------------------------------------------------------------------------------


def step(arguments: argparse.Namespace) -> None:
    """Time training steps on random tensors in interleaved rounds; measure their peak memory."""
    torch.set_num_threads(arguments.threads)
    shape = (arguments.batch, 3, *arguments.size)
    calls, found = {}, {}
    for name in arguments.networks:
        recipe, data, network = build(name, arguments)
        task = make_task(recipe, data, network).train()
        options = {"channels_last": arguments.channels_last, "bfloat16": arguments.bfloat16}
        run = make_training_step(
            task.model, shape, num_classes=data.num_classes, loss=task.loss, **options
        )
        run()  # gradients and momentum exist from here on
        peak = peak_memory(run, torch.device("cpu"))
        found[name] = {"parameters": count_parameters(network), "peak_bytes": peak}
        calls[name] = Timed(run)
    seconds = time_calls(
        calls, device=torch.device("cpu"), rounds=arguments.rounds, seconds=arguments.seconds
    )
    first = REFERENCE if REFERENCE in seconds else arguments.networks[0]
    for name, by_round in seconds.items():
        found[name]["seconds"] = vars(Quartiles.of(list(by_round.values())))
        found[name]["ratio"] = vars(Quartiles.of(ratios(by_round, seconds[first])))
    about = {"size": list(arguments.size), "batch": arguments.batch, **options}
    about |= {"threads": arguments.threads, "reference": first, "versions": environment()}
    write_json(arguments.scores / "step.json", {**about, "networks": found})
    print(
        f"A training step, {arguments.batch} images of {shape[2]} x {shape[3]}, "
        f"{'bfloat16' if arguments.bfloat16 else 'float32'}"
        f"{', channels-last' if arguments.channels_last else ''}, {arguments.threads} thread(s); "
        f"median (quartiles) of interleaved rounds; times that of {first}\n"
    )
    print("| network | parameters, M | ms a step | ratio | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, one in found.items():
        milliseconds = {key: 1000 * value for key, value in one["seconds"].items()}
        print(
            f"| {name} | {one['parameters'] / 1e6:.2f} | {spread(milliseconds, 0)} | "
            f"{spread(one['ratio'], 2)} | {one['peak_bytes'] / 2**20:,.0f} |"
        )
    print_environment(about["versions"])


def spread(quartiles: Mapping[str, float], digits: int) -> str:
    low, median, high = (f"{quartiles[key]:.{digits}f}" for key in ("low", "median", "high"))
    return f"{median} ({low}-{high})"


# --- table and figure -------------------------------------------------------------------------


def table(arguments: argparse.Namespace) -> None:
    """Print scores and costs; draw mIoU against latency if both are there."""
    runs = read_runs(arguments.scores)
    print("| network | seeds | mIoU % | boundary IoU % | steps | CPU minutes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, ones in runs.items():
        miou, edges = ([100 * value for value in values] for values in test_scores(ones))
        steps = ", ".join(sorted({str(one["steps"]) for one in ones}))
        minutes = statistics.mean(one["cpu_minutes"] for one in ones)
        print(
            f"| {name} | {len(ones)} | {mean_and_spread(miou)} | {mean_and_spread(edges)} | "
            f"{steps} | {minutes:.0f} |"
        )
    classes = list(next(iter(runs.values()))[0]["test"]["classes"])
    print(f"\nIoU % by class\n\n| network | {' | '.join(classes)} |")
    print("| --- |" + " --- |" * len(classes))
    for name, ones in runs.items():
        print(f"| {name} | {' | '.join(class_mean(ones, one) for one in classes)} |")
    if (arguments.scores / "cost.json").is_file():
        print_cost(arguments.scores)
        costs = json.loads((arguments.scores / "cost.json").read_text())
        write_whole(arguments.figure, lambda stream: draw(runs, costs, stream))
    print_environment(next(iter(runs.values()))[0]["versions"])


def read_runs(scores: Path) -> dict[str, list[dict[str, Any]]]:
    """The trainings of each network, in the order of `NETWORKS`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(scores.glob("*-seed*.json")):
        one = read_json(file, "the scores of a training")
        found.setdefault(one["network"], []).append(one)
    if not found:
        raise InputError(f"{scores}: no scores; give the --scores of train")
    return {name: found[name] for name in NETWORKS if name in found}


def test_scores(runs: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """mIoU and boundary IoU of each run."""
    tests = [one["test"] for one in runs]
    return [one["miou"] for one in tests], [one["boundary"]["boundary_iou"] for one in tests]


def class_mean(runs: Sequence[dict[str, Any]], name: str) -> str:
    values = [one["test"]["classes"][name]["iou"] for one in runs]
    values = [100 * value for value in values if value is not None]
    return f"{statistics.mean(values):.1f}" if values else ""


def draw(runs: Mapping[str, Any], costs: Mapping[str, Any], stream: Any) -> None:
    """mIoU (mean and standard deviation over seeds) against latency (median and quartiles)."""
    from fsanet.report.figures import LIGHT, new_figure, style

    figure, (axes,) = new_figure(6.4, 4.2, 1, LIGHT)
    for number, (name, ones) in enumerate(runs.items()):
        if name not in costs["networks"]:
            continue
        ratio = costs["networks"][name]["ratio"]
        x = ratio["median"]
        values = [100 * value for value in test_scores(ones)[0]]
        y, error = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        sides = [[x - ratio["low"]], [ratio["high"] - x]]
        marker = "o" if name in OURS else "s"
        axes.errorbar(x, y, error, sides, marker=marker, capsize=3)
        place = (6, 6 if number % 2 == 0 else -14)  # neighbours would overlap
        axes.annotate(name, (x, y), xytext=place, textcoords="offset points", color=LIGHT.ink)
    axes.margins(0.2)
    axes.set_xlabel(f"latency, times that of {costs['reference']}", color=LIGHT.ink)
    axes.set_ylabel("mIoU %", color=LIGHT.ink)
    style(axes, "CamVid test split, same encoder and training", LIGHT)
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor())


SCORES: dict[str, Any] = {"type": Path, "default": Path("docs/evidence/peers")}
CONFIGS = ["camvid_best", "experiments/camvid_files.yaml"]
SIZE: dict[str, Any] = {
    "type": whole(32),
    "nargs": 2,
    "metavar": ("H", "W"),
    "default": [360, 480],
}
SHARED = {
    "--config": {"action": "append", "help": f"recipes of an FsaNet; default: {CONFIGS}"},
    "--networks": {"nargs": "+", "choices": NETWORKS, "default": list(NETWORKS)},
    "--scores": SCORES,
    "--threads": {"type": whole(1), "default": 1},
}
COMMANDS = {
    "train": (
        train_all,
        {
            **SHARED,
            "--out": {"type": Path, "default": Path("runs/peers")},
            "--steps": {"type": whole(1), "help": "instead of those of the recipe"},
            "--seeds": {"type": whole(0), "nargs": "+", "default": [0, 1, 2]},
        },
    ),
    "cost": (
        cost,
        {
            **SHARED,
            "--rounds": {"type": whole(1), "default": 20},
            "--size": SIZE,
            "--device": {"choices": ["cpu", "cuda"], "default": "cpu"},
        },
    ),
    "step": (
        step,
        {
            **SHARED,
            "--networks": {
                "nargs": "+",
                "choices": NETWORKS,
                "default": ["FsaNet", "FsaNet-no-decoder", "DeepLabV3Plus"],
            },
            "--rounds": {"type": whole(1), "default": 20},
            "--seconds": {"type": whole(1), "default": 300, "help": "time for all rounds"},
            "--size": SIZE,
            "--batch": {"type": whole(1), "default": 8},
            "--channels-last": {"action": "store_true"},
            "--bfloat16": {"action": "store_true", "help": "as with --precision bf16-mixed"},
        },
    ),
    "table": (
        table,
        {"--scores": SCORES, "--figure": {"type": Path, "default": Path("docs/images/peers.png")}},
    ),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, COMMANDS))
