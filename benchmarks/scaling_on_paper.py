"""A training on 8 GPUs and the prediction of a million images on 64, simulated on paper.

    python benchmarks/scaling_on_paper.py train
    python benchmarks/scaling_on_paper.py predict --cpu-ms 250 --written 3.5
    python benchmarks/scaling_on_paper.py train --tflops 989 --links 450

Nothing is run: FLOPs and parameters are counted on the meta device, the rest are rates that were
measured elsewhere or are assumed, as the first table says of each. Work on GPUs, on cores and on
files overlaps, so the slowest of them decides. A ring all-reduce exchanges the gradients during the
backward pass: each link carries 2 (n - 1) / n times their size, 4 bytes a parameter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.console import Console

from fsanet import FsaNet
from fsanet.bench.tables import Grid, significant
from fsanet.cli.recipe import read_recipe, recipe_file
from fsanet.cost import count_flops, count_parameters

PIXELS = {"train": (849, 849), "predict": (1024, 2048)}  # crops and images of cityscapes_best


class Load(NamedTuple):
    """Seconds of each resource, all of its kind together, for an image."""

    gpus: float
    gradients: float
    cores: float
    files: float

    @property
    def slowest(self) -> str:
        name = max(self._fields, key=lambda name: getattr(self, name))
        return "GPUs" if name == "gpus" else name

    @property
    def rate(self) -> float:
        """Images a second."""
        return 1 / max(self)


def ring_seconds(parameters: float, gpus: int, gigabytes_per_second: float) -> float:
    """Seconds to add up float32 gradients over all GPUs.

    >>> ring_seconds(1e9, 8, 7.0)  # 4 GB, of which 14/8 pass each link
    1.0
    """
    return 4 * parameters * 2 * (gpus - 1) / gpus / (1e9 * gigabytes_per_second)


def training_load(
    given: argparse.Namespace, gpus: int, link: float, *, flops: float, parameters: float
) -> Load:
    """Of an image in a training whose steps have ``given.global_batch`` images."""
    backward = 2 / 3  # of the FLOPs, during which gradients are exchanged
    compute = flops * given.global_batch / gpus / (1e12 * given.tflops * given.utilisation)
    beside = (1 - backward) * compute + given.overhead_ms / 1e3
    return Load(
        gpus=(beside + backward * compute) / given.global_batch,
        gradients=(beside + ring_seconds(parameters, gpus, link)) / given.global_batch,
        cores=given.cpu_ms / 1e3 / (given.cores * gpus),
        files=given.read / 1e3 / given.disk,
    )


def prediction_load(given: argparse.Namespace, gpus: int, *, flops: float) -> Load:
    """Of an image; it is read once, and three files are written under other names and renamed."""
    moved = (given.read + given.written) / 1e3 / given.disk
    return Load(
        gpus=flops / (1e12 * given.tflops * given.utilisation) / gpus,
        gradients=0.0,
        cores=given.cpu_ms / 1e3 / (given.cores * gpus),
        files=max(moved, 6 / given.operations),
    )


def network() -> FsaNet:
    """The network of `cityscapes_best`, without memory."""
    options = read_recipe(recipe_file("cityscapes_best"))["model"]["init_args"]
    with torch.device("meta"):
        return FsaNet(**options | {"pretrained": False}, num_classes=19)


def training_flops(model: FsaNet) -> int:
    """FLOPs of forward and backward of one crop."""
    images = torch.empty(1, 3, *PIXELS["train"], device="meta")

    def step() -> None:
        logits, auxiliary = model.train().forward_with_auxiliary(images)
        assert auxiliary is not None  # the network has an auxiliary head
        (logits.sum() + auxiliary.sum()).backward()

    return count_flops(step)


def prediction_flops(model: FsaNet) -> int:
    """FLOPs of one image."""
    images = torch.empty(1, 3, *PIXELS["predict"], device="meta")
    with torch.no_grad():
        return count_flops(lambda: model.eval()(images))


def train_tables(given: argparse.Namespace) -> list[Grid]:
    model = network()
    parameters, flops = count_parameters(model), training_flops(model)
    rows = []
    alone = training_load(given, 1, given.links[0], flops=flops, parameters=parameters)
    for gpus in given.gpus:
        for link in given.links if gpus > 1 else given.links[:1]:
            load = training_load(given, gpus, link, flops=flops, parameters=parameters)
            rows.append(
                (
                    str(gpus),
                    f"{link:g}" if gpus > 1 else "",
                    significant(1e3 * max(load.gpus, load.gradients) * given.global_batch),
                    significant(1e3 * ring_seconds(parameters, gpus, link)) if gpus > 1 else "",
                    *(significant(1 / one) for one in (load.gpus, load.cores, load.files)),
                    load.slowest,
                    significant(given.images / load.rate / 3600),
                    f"{100 * load.rate / alone.rate / gpus:.0f} %",
                )
            )
    heading = (
        *("GPUs", "link GB/s", "ms a step", "of gradients", "images/s: GPUs", "cores", "files"),
        *("slowest", "hours", "efficiency"),
    )
    counted = [
        ("parameters, M", significant(parameters / 1e6), "counted"),
        ("GFLOP an image", significant(flops / 1e9), "counted"),
    ]
    return [_inputs(given, counted), Grid("Training on Cityscapes", heading, rows)]


def predict_tables(given: argparse.Namespace) -> list[Grid]:
    flops = prediction_flops(network())
    rows = []
    for gpus in given.gpus:
        load = prediction_load(given, gpus, flops=flops)
        ending = given.images / given.records
        rows.append(
            (
                str(gpus),
                *(significant(1 / one) for one in (load.gpus, load.cores, load.files)),
                load.slowest,
                significant(given.images / load.rate / 3600),
                significant(ending / 3600),
            )
        )
    heading = (
        *("GPUs", "images/s: GPUs", "cores", "files", "slowest", "hours"),
        "hours for the summary",
    )
    counted = [("GFLOP an image", significant(flops / 1e9), "counted")]
    return [
        _inputs(given, counted),
        Grid(f"Prediction of {given.images:,.0f} images", heading, rows),
    ]


def _inputs(given: argparse.Namespace, counted: Sequence[tuple[str, ...]]) -> Grid:
    rows = list(counted)
    for name, (default, words, origin) in OPTIONS[given.what].items():
        value = getattr(given, name)
        shown = " ".join(f"{one:g}" for one in (value if isinstance(value, list) else [value]))
        rows.append((words, shown, origin if value == default else "given"))
    return Grid("Inputs", ("input", "value", "origin"), rows)


_GPU = {
    "tflops": (312.0, "peak TFLOP/s of a GPU (A100, bfloat16)", "vendor's data sheet"),
    "utilisation": (0.35, "fraction of it that the network reaches", "assumed"),
    "cores": (8.0, "cores for each GPU", "assumed"),
    "disk": (2.0, "GB/s of the file system, shared by all", "assumed"),
}
#: Default, meaning and origin of each input; None has to be given.
OPTIONS = {
    "train": {
        "gpus": ([1, 2, 4, 8], "GPUs", "chosen"),
        "images": (
            480_000.0,
            "images of the training, 60,000 steps of 8",
            "recipe cityscapes_best",
        ),
        "global_batch": (8.0, "images a step", "recipe cityscapes_best"),
        **_GPU,
        "links": (
            [300.0, 32.0, 1.25],
            "GB/s of links: NVLink 3, PCIe 4 x16, Ethernet of 10 Gb/s",
            "vendors' data sheets",
        ),
        "overhead_ms": (10.0, "ms of a step that overlap with nothing (optimiser, log)", "assumed"),
        "cpu_ms": (129.2, "ms of a core for an image", "measured on a stand-in, docs/data.md"),
        "read": (2.6, "MB read for an image", "measured on a stand-in, docs/data.md"),
    },
    "predict": {
        "gpus": ([1, 8, 64], "GPUs", "chosen"),
        "images": (1_000_000.0, "images of 2048 x 1024", "chosen"),
        **_GPU,
        "cpu_ms": (None, "ms of a core for an image, all but the network", "measured"),
        "read": (2.6, "MB read for an image", "measured on a stand-in, docs/data.md"),
        "written": (None, "MB written for an image", "measured"),
        "operations": (20_000.0, "files a second created or renamed by the file system", "assumed"),
        "records": (5_000.0, "result records a second that the last process reads", "assumed"),
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for what, options in OPTIONS.items():
        command = commands.add_parser(what)
        for name, (default, words, origin) in options.items():
            command.add_argument(
                f"--{name.replace('_', '-')}",
                type=int if name == "gpus" else _positive,
                nargs="+" if isinstance(default, list) else None,
                default=default,
                required=default is None,
                help=f"{words} ({origin}; default: {default})",
            )
    given = parser.parse_args()
    if min(given.gpus) < 1:
        parser.error("--gpus: give at least 1")
    console = Console(width=200, highlight=False, markup=False)
    for grid in (train_tables if given.what == "train" else predict_tables)(given):
        console.print(grid.markdown(), soft_wrap=True)
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e15:
        raise argparse.ArgumentTypeError(f"{text}: give a positive number")
    return value


if __name__ == "__main__":
    sys.exit(main())
