"""From which image size on attention decides what a forward pass costs.

    python experiments/attention_share.py --table    # print what was measured
    python experiments/attention_share.py --json FILE    # adds the sizes that the file lacks: FLOPs
                                                         # of many, CPU time of some

The network of `fsanet bench --model` without attention, and the attention layer of its head:
regular (softmax, fused) and frequency (dot, k = 8). FLOPs are counted on the meta device, so that
no size is too large. Time is the CPU time of one thread, each part on its own: another process on
the machine makes it wait, but hardly changes it. Kept bytes are what autograd holds of the layer
for backward.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import Parser, print_environment, whole
from torch import nn

from fsanet import FsaNet
from fsanet.attention import make_attention
from fsanet.cost import count_flops, kept_for_backward
from fsanet.errors import InputError
from fsanet.files import environment, write_json
from fsanet.inputs import read_json

KINDS: dict[str, dict[str, Any]] = {
    "regular": {"kind": "spatial", "similarity": "softmax"},
    "frequency": {"kind": "frequency", "similarity": "dot", "k": 8},
}


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="resnet101s")
    parser.add_argument("--output-stride", type=int, choices=(8, 16), default=8)
    parser.add_argument("--head-channels", type=whole(1), default=512)
    parser.add_argument(
        "--sizes", type=whole(64), nargs="+", default=[513, 769, 1025, 1537, 2049, 3073, 4097]
    )
    parser.add_argument("--timed", type=whole(64), nargs="*", default=[513, 769, 1025])
    parser.add_argument("--repeats", type=whole(1), default=2)
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    parser.add_argument("--json", type=Path, default=Path("docs/evidence/attention_share.json"))
    options = parser.parse_args()
    try:
        if not options.table:
            measure_all(options)
        if not options.json.is_file():
            raise InputError(f"{options.json}: nothing measured; run without --table first")
        print_table(read_json(options.json, "a measurement"))
    except InputError as error:
        parser.error(str(error))
    return 0


def measure_all(options: argparse.Namespace) -> None:
    """Count and time every size that the file lacks; it is written after each."""
    torch.set_num_threads(1)  # recorded with the versions
    what = {name: getattr(options, name) for name in ("encoder", "output_stride", "head_channels")}
    found = what | {"rows": []}
    if options.json.exists():
        found = read_json(options.json, "a measurement")
        if any(found.get(name) != value for name, value in what.items()):
            raise InputError(f"{options.json}: of another network; give another file, or --table")
    rows: list[dict[str, Any]] = found["rows"]
    missing = {*options.sizes, *options.timed} - {row["image"] for row in rows}
    if not missing:
        return
    network = FsaNet(
        options.encoder,
        num_classes=19,
        attention=None,
        output_stride=options.output_stride,
        head_channels=options.head_channels,
    ).eval()
    layers = {
        name: make_attention(channels=options.head_channels, **kind).eval()
        for name, kind in KINDS.items()
    }
    for size in sorted(missing):
        side = -(-size // options.output_stride)
        image, features = (1, 3, size, size), (1, options.head_channels, side, side)
        row: dict[str, Any] = {"image": size, "positions": side * side, "versions": environment()}
        row["flops"] = {"rest": flops(network, image)} | {
            name: flops(layer, features) for name, layer in layers.items()
        }
        if size in options.timed:
            row["cpu_seconds"] = {"rest": cpu_seconds(network, image, options.repeats)} | {
                name: cpu_seconds(layer, features, options.repeats)
                for name, layer in layers.items()
            }
            row["kept_bytes"] = {
                name: kept_for_backward(layer, layer, torch.randn(features, requires_grad=True))[0]
                for name, layer in layers.items()
            }
        rows.append(row)
        rows.sort(key=lambda row: row["image"])
        write_json(options.json, found)
        print(f"{size}: done", file=sys.stderr, flush=True)


def flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Operations of one call, on the meta device."""
    twin, x = copy.deepcopy(module).to("meta"), torch.empty(shape, device="meta")
    with torch.no_grad():
        return count_flops(lambda: twin(x))


def cpu_seconds(module: nn.Module, shape: tuple[int, ...], repeats: int) -> float:
    """Least CPU time of one call; the first call is not counted."""
    x, found = torch.randn(shape), []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            began = time.process_time()
            module(x)
            found.append(time.process_time() - began)
    return min(found[1:])


def share(costs: dict[str, float], name: str) -> float:
    """Share of one attention layer in the network that has it."""
    return costs[name] / (costs["rest"] + costs[name])


def half(positions: int, costs: dict[str, float]) -> float:
    """Positions at which regular attention costs as much as all the rest.

    The rest grows with the number of positions, regular attention with its square.
    """
    return positions * costs["rest"] / costs["regular"]


def print_table(found: dict[str, Any]) -> None:
    """Shares of each size, and where regular attention takes half of the pass."""
    print(
        "| image | positions | regular attention: share of FLOPs | of CPU time "
        "| frequency attention: share of FLOPs | of CPU time "
        "| kept for backward: regular | frequency |"
    )
    print("| --- |" + " ---: |" * 7)
    stride = found["output_stride"]
    for row in found["rows"]:
        time_ = row.get("cpu_seconds")
        kept = row.get("kept_bytes")
        cells = [
            f"{row['positions']:,}",
            f"{100 * share(row['flops'], 'regular'):.1f} %",
            f"{100 * share(time_, 'regular'):.1f} %" if time_ else "",
            f"{100 * share(row['flops'], 'frequency'):.2f} %",
            f"{100 * share(time_, 'frequency'):.2f} %" if time_ else "",
            f"{kept['regular'] / 2**20:.1f} MiB" if kept else "",
            f"{kept['frequency'] / 2**20:.2f} MiB" if kept else "",
        ]
        print(f"| {row['image']} x {row['image']} | {' | '.join(cells)} |")
    print(f"\n{found['encoder']}, output stride {stride}: regular attention takes half of a pass")
    for title, key in (("FLOPs", "flops"), ("CPU time", "cpu_seconds")):
        rows = [row for row in found["rows"] if key in row]
        if rows:
            ends = sorted(half(row["positions"], row[key]) for row in rows)  # each row has its own
            lowest, highest = (f"{stride * end**0.5:.0f}" for end in (ends[0], ends[-1]))
            print(
                f"- by {title}: at {ends[0]:,.0f} to {ends[-1]:,.0f} positions, "
                f"{lowest} x {lowest} to {highest} x {highest} pixels"
            )
    for versions in {str(row["versions"]): row["versions"] for row in found["rows"]}.values():
        print_environment(versions)


if __name__ == "__main__":
    sys.exit(main())
