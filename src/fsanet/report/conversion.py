"""A network before and after its conversion: mIoU, time and memory side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsanet.convert.conversion import align_columns
from fsanet.cost import Quartiles, Timed, peak_memory, time_calls
from fsanet.data.images import read_image
from fsanet.metrics.confusion import Scores

__all__ = ["compare_networks", "comparison_table", "network_inputs"]


def network_inputs(network: Any, images: Iterable[Any]) -> list[Tensor]:
    """Images as a network takes them: (1, 3, H, W) each, whatever their size.

    Args:
        network: with ``normalise``.
        images: files, folders, or what else `read_image` accepts.
    """
    return [network.normalise(read_image(image)[None]) for image in images]


def compare_networks(
    before: Any, after: Any, evaluate: Callable[[Any], Scores], image: Tensor, device: torch.device
) -> dict[str, dict[str, float]]:
    """Measure a network and its conversion.

    Args:
        before, after: the networks.
        evaluate: scores of a network.
        image: (3, H, W) uint8, for time and memory of one call.
        device: where they are measured.

    Returns:
        for "before" and "after": "miou", "pixel_accuracy", "seconds" (median) and "peak_bytes".
    """
    networks = {"before": before, "after": after}
    scores = {name: evaluate(network) for name, network in networks.items()}
    one = before.normalise(image[None].to(device))
    calls = {name: partial(net.to(device).eval(), one) for name, net in networks.items()}
    with torch.inference_mode():
        timed = {name: Timed(call) for name, call in calls.items()}
        seconds = time_calls(timed, device=device, rounds=5)
        peaks = {name: peak_memory(call, device) or 0 for name, call in calls.items()}
    for network in networks.values():
        network.cpu()
    return {
        name: {
            "miou": score.miou,
            "pixel_accuracy": score.pixel_accuracy,
            "seconds": Quartiles.of(list(seconds[name].values())).median,
            "peak_bytes": peaks[name],
        }
        for name, score in scores.items()
    }


def comparison_table(found: dict[str, dict[str, float]]) -> str:
    """The result of `compare_networks` as text."""
    rows = [["", "mIoU %", "pixel accuracy %", "ms", "peak MiB"]]
    for name, one in found.items():
        figures = (100 * one["miou"], 100 * one["pixel_accuracy"], 1e3 * one["seconds"])
        peak = f"{one['peak_bytes'] / 2**20:.1f}"
        rows.append([name, *(f"{value:.2f}" for value in figures), peak])
    return "\n".join(align_columns(rows, left=1))
