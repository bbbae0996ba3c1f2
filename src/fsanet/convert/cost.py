"""What a forward pass costs: time and memory of networks side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["Cost", "forward_costs"]


@dataclass(frozen=True)
class Cost:
    """Of one forward pass.

    Attributes:
        seconds: median over rounds.
        bytes: most tensor memory held at one time beyond weights and input.
    """

    seconds: float
    bytes: int


def forward_costs(
    networks: Mapping[str, nn.Module], images: Tensor, *, rounds: int = 5
) -> dict[str, Cost]:
    """Time networks in turns, so that a slow moment of the machine falls on all; then memory.

    Args:
        networks: by name, in evaluation mode, on the device of the images.
        images: what they take.
        rounds: timed passes of each, after one that is not timed.
    """
    from fsanet.bench.memory import peak_of

    device = images.device
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    peaks = {}
    with torch.inference_mode():
        for round_ in range(rounds + 1):
            for name, network in networks.items():
                _wait(device)
                start = time.perf_counter()
                network(images)
                _wait(device)
                if round_:
                    seconds[name].append(time.perf_counter() - start)
        for name, network in networks.items():
            peaks[name], _ = peak_of(partial(network, images), device)
    return {name: Cost(statistics.median(seconds[name]), peaks[name]) for name in networks}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
