"""Frequency against regular self-attention on one map: time, FLOPs, bytes kept for backward.

    python experiments/layer_cost.py                      # C=512, 97 x 97, the paper's size
    python experiments/layer_cost.py --size 128 256

Interleaved rounds in one process, forward, batch 1. FLOPs are those torch.utils.flop_counter sees
(products and fused attention; 2 per multiply-add). "floor": read the map once, write it once.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from fsanet import FrequencySelfAttention, SpatialSelfAttention
from fsanet.provenance import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(97, 97), metavar=("H", "W"))
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    channels, x = options.channels, torch.randn(1, options.channels, *options.size)
    layers = {
        "regular, softmax": SpatialSelfAttention(channels, similarity="softmax"),
        "frequency, dot, R=1": FrequencySelfAttention(channels, recurrence=1),
        "frequency, dot, R=2": FrequencySelfAttention(channels, recurrence=2),
        "frequency, dot, R=4": FrequencySelfAttention(channels, recurrence=4),
        "frequency, linear_softmax, R=1": FrequencySelfAttention(
            channels, similarity="linear_softmax"
        ),
        "frequency, linear_softmax, R=2": FrequencySelfAttention(
            channels, similarity="linear_softmax", recurrence=2
        ),
    }
    runs = {name: layer.eval() for name, layer in layers.items()}
    runs["floor"] = lambda x: (x.sum(), x + x)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for round_ in range(options.rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run(x)
                if round_:  # the first one warms up
                    times[name].append(time.perf_counter() - start)
    base = statistics.median(times["regular, softmax"])
    print(f"C={channels}, {options.size[0]}x{options.size[1]}, float32, k=8, batch 1\n")
    print("| layer | ms | time saved | GFLOP | FLOPs saved | MiB kept for backward |")
    print("| --- | --- | --- | --- | --- | --- |")
    base_flops = flops(layers["regular, softmax"], x)
    for name in runs:
        middle = statistics.median(times[name])
        row = f"| {name} | {1e3 * middle:.2f} | {100 * (1 - middle / base):.2f} % "
        if name in layers:
            count = flops(layers[name], x)
            row += f"| {count / 1e9:.3f} | {100 * (1 - count / base_flops):.2f} % "
            row += f"| {kept(layers[name], x) / 2**20:.2f} |"
        else:
            row += "| | | |"
        print(row)
    print("\n" + ", ".join(f"{name} {value}" for name, value in environment().items()))


def flops(layer: torch.nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    return counter.get_total_flops()


def kept(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes autograd keeps between forward and backward in training, parameters left out."""
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    layer.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x.clone().requires_grad_())
    layer.eval()
    del y
    return sum(seen.values())


if __name__ == "__main__":
    main()
