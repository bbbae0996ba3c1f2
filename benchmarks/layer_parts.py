"""Where the time of a layer goes: reading the map, the rounds of attention, writing the result.

    python benchmarks/layer_parts.py --threads 2

prints, for each map, the time of a forward pass and of its parts, measured within that pass:
analysis (the map to coefficients), synthesis (back, added to the map), and the rest, above all the
rounds on coefficients.
Beside them stand the parts of the memory floor: `x.sum()` reads the map once, `x + x` reads it and
writes a fresh one. `--dtypes float32 bfloat16` compares maps of both. Medians and quartiles of
rounds in which all take turns. Freed memory is kept for the next map, as in the commands.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fsanet.attention import frequency
from fsanet.bench.cases import find_cases
from fsanet.bench.tables import spread
from fsanet.cli.main import reuse_freed_memory
from fsanet.cost.timing import Quartiles, interleaved
from fsanet.files import environment

LAYERS = ("dot-R1", "dot-R4", "dot-R1-inplace", "linear_softmax-R1")
PARTS = {
    "analysis": ("analyse_with_residual",),
    "synthesis": ("synthesise", "add_row_products"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["97x97", "128x256", "256x512"])
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    reuse_freed_memory()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(", ".join(f"{name} {value}" for name, value in environment("cpu").items()))
    print(vars(given))
    print("| map | layer | ms | analysis | rounds | synthesis |\n|---|---|---:|---:|---:|---:|")
    of_call: dict[str, float] = defaultdict(float)  # seconds of the parts of one call
    for part, names in PARTS.items():
        for name in names:
            setattr(frequency, name, timed(getattr(frequency, name), part, of_call))
    for size in given.sizes:
        calls: dict[str, Callable[[], Any]] = {}
        for name in given.dtypes:
            x = torch.randn(
                1, given.channels, *map(int, size.split("x")), dtype=getattr(torch, name)
            )
            calls[f"x.sum(), {name}"] = x.sum
            calls[f"x + x, {name}"] = partial(torch.add, x, x)
            for case in find_cases(LAYERS):
                layer = case.build(given.channels, x.device, x.dtype).eval()
                own = x.clone() if "inplace" in case.name else x
                calls[f"{case.name}, {name}"] = partial(layer, own)
        found = measure(calls, given.rounds, of_call)
        for name, parts in found.items():
            cells = [spread(Quartiles.of(seconds), 1e3) for seconds in parts.values()]
            cells += [""] * (4 - len(cells))
            print(f"| {size} | {name} | {' | '.join(cells)} |")


def timed(function: Callable[..., Any], part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """The function, which adds what it takes to a part."""

    def run(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **options)
        seconds[part] += time.perf_counter() - began
        return result

    return run


@torch.no_grad()
def measure(
    calls: dict[str, Callable[[], Any]], rounds: int, of_call: dict[str, float]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each call as a whole and in its parts, by round."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in calls}
    for _, name in interleaved(dict.fromkeys(calls, 1), rounds):
        call = calls[name]
        call()  # the caches then hold what this call leaves there, as in `fsanet bench`
        of_call.clear()
        began = time.perf_counter()
        result = call()
        whole = time.perf_counter() - began
        del result  # freeing a map is not measured, as in `fsanet bench`
        found[name]["whole"].append(whole)
        if of_call:
            analysis, synthesis = of_call["analysis"], of_call["synthesis"]
            found[name]["analysis"].append(analysis)
            found[name]["rounds"].append(whole - analysis - synthesis)
            found[name]["synthesis"].append(synthesis)
    return found


if __name__ == "__main__":
    main()
