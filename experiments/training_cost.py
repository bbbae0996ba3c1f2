"""Time and memory of a training step of FsaNet without, with regular and with frequency attention.

    python experiments/training_cost.py --device cuda --image 769x769 --batch 2
    python experiments/training_cost.py --encoder resnet10t --image 129x129

Random weights and images: what is measured is the cost. A step is forward, loss of both heads,
backward and SGD; steps of the three networks alternate. Memory is the peak above what the network,
its gradients and its momentum hold between steps.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Parser, print_environment, whole

from fsanet import FsaNet
from fsanet.bench.training import make_training_step
from fsanet.cost import Timed, peak_memory, time_calls
from fsanet.errors import InputError
from fsanet.files import environment, write_json
from fsanet.train.losses import SegmentationLoss

KINDS: dict[str, dict[str, Any]] = {
    "none": {"attention": None},
    "regular": {"attention": "spatial", "similarity": "softmax"},
    "frequency": {"attention": "frequency", "similarity": "dot", "k": 8},
}


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="resnet101s")
    parser.add_argument("--image", default="769x769")
    parser.add_argument("--batch", type=whole(1), default=2)
    parser.add_argument("--rounds", type=whole(1), default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    try:
        found = measure(options)
        if options.json is not None:
            write_json(options.json, found)
    except InputError as error:
        parser.error(str(error))
    print(
        "| attention | ms per step | times none | peak MiB per step |\n| --- | ---: | ---: | ---: |"
    )
    none = found["seconds"]["none"]
    for name, seconds in found["seconds"].items():
        ratio = statistics.median(a / b for a, b in zip(seconds, none, strict=True))
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        time_ = f"{1e3 * middle:.1f} ({1e3 * low:.1f} - {1e3 * high:.1f})"
        print(f"| {name} | {time_} | {ratio:.2f} | {found['peak_bytes'][name] / 2**20:,.0f} |")
    print_environment(found["versions"])
    return 0


def measure(options: Any) -> dict[str, Any]:
    """Seconds of each step and peak bytes, by kind of attention."""
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", options.image)
    if size is None:
        raise InputError(f"--image {options.image}: give height x width, such as 769x769")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no such device here; use --device cpu")
    height, width = int(size[1]), int(size[2])
    steps = {
        name: make_step(options.encoder, (options.batch, 3, height, width), device, kind)
        for name, kind in KINDS.items()
    }
    for step in steps.values():
        step()  # gradients and momentum exist from here on
    peaks = {name: peak_memory(step, device) or 0 for name, step in steps.items()}
    timed = {name: Timed(step) for name, step in steps.items()}
    seconds = time_calls(timed, device=device, rounds=options.rounds)
    about = {"encoder": options.encoder, "image": options.image, "batch": options.batch}
    return {
        **about,
        "seconds": {name: list(rounds.values()) for name, rounds in seconds.items()},
        "peak_bytes": peaks,
        "versions": environment(device),
    }


def make_step(
    encoder: str, shape: tuple[int, int, int, int], device: torch.device, kind: dict[str, Any]
) -> Callable[[], None]:
    """One training step of one network, on the same images each time."""
    torch.manual_seed(0)
    network = FsaNet(encoder, num_classes=19, zero_init=False, **kind).train()
    return make_training_step(
        network, shape, num_classes=19, loss=SegmentationLoss(), device=device
    )


if __name__ == "__main__":
    sys.exit(main())
