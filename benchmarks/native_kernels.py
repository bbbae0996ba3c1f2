"""Whether code made for the two passes over the map would pay: PyTorch's, torch.compile's, numba's.

    uv run --with numba python benchmarks/native_kernels.py --threads 2

prints the time of analysis, and of synthesis with the residual in place and into a fresh map, side
by side in interleaved rounds, as median and quartiles, with the speed-up over the library's eager
route within a round. On large maps that route takes a product, then a sum, except with MKL on
Intel's processors; "one baddbmm" takes both in one call, and so does "oneDNN", as a 1x1 convolution
whose sum is fused into it (an operation that torch keeps for its own compiler). The results are
compared first. Each kernel of numba runs in numba's threads, PyTorch's in those of PyTorch. Freed
memory is kept for the next map, as in the commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, prange, set_num_threads

from fsanet.attention import kernels
from fsanet.attention.dct import Band, dct_bases
from fsanet.bench.tables import spread
from fsanet.cli.main import reuse_freed_memory
from fsanet.cost.timing import Quartiles, Timed, ratios, time_calls
from fsanet.files import environment


@njit(parallel=True, fastmath=True)
def numba_analyse(x: Any, rows: Any, columns: Any, out: Any) -> None:
    """x (P, H, W) -> out (P, kh, kw); each plane is read once, kh is a multiple of 4."""
    planes, height, width = x.shape
    kh, kw = rows.shape[0], columns.shape[0]
    for p in prange(planes):
        t = np.zeros((kh, width), np.float32)
        for h in range(height):
            line = x[p, h]
            for u in range(0, kh, 4):  # four at a time, so that each load serves four sums
                t0, t1, t2, t3 = t[u], t[u + 1], t[u + 2], t[u + 3]
                r0, r1, r2, r3 = rows[u, h], rows[u + 1, h], rows[u + 2, h], rows[u + 3, h]
                for w in range(width):
                    t0[w] += r0 * line[w]
                    t1[w] += r1 * line[w]
                    t2[w] += r2 * line[w]
                    t3[w] += r3 * line[w]
        for u in range(kh):
            for v in range(kw):
                total = np.float32(0)
                for w in range(width):
                    total += t[u, w] * columns[v, w]
                out[p, u, v] = total


@njit(parallel=True, fastmath=True)
def numba_synthesise(c: Any, rows: Any, columns: Any, x: Any, out: Any) -> None:
    """out (P, H, W) = x + the map of c (P, kh, kw); out may be x, kh is a multiple of 4."""
    planes, height, width = x.shape
    kh, kw = rows.shape[0], columns.shape[0]
    for p in prange(planes):
        t = np.zeros((kh, width), np.float32)
        for u in range(kh):
            for v in range(kw):
                for w in range(width):
                    t[u, w] += c[p, u, v] * columns[v, w]
        for h in range(height):
            given, line = x[p, h], out[p, h]
            for u in range(0, kh, 4):
                t0, t1, t2, t3 = t[u], t[u + 1], t[u + 2], t[u + 3]
                r0, r1, r2, r3 = rows[u, h], rows[u + 1, h], rows[u + 2, h], rows[u + 3, h]
                for w in range(width):
                    line[w] = given[w] + r0 * t0[w] + r1 * t1[w] + r2 * t2[w] + r3 * t3[w]
                given = line


def calls(channels: int, height: int, width: int, k: int) -> dict[str, dict[str, Any]]:
    """The functions to time, by operation and by what they are made with."""
    x = torch.randn(1, channels, height, width)
    rows, columns = dct_bases(x, Band.of(k))  # (k, H), (k, W)
    c = torch.randn(1, channels, k, k)
    own = x.clone()  # what is written in place
    planes, bases = x[0].numpy(), (rows.numpy(), columns.numpy())

    def analyse_by_numba() -> torch.Tensor:
        out = torch.empty_like(c)
        numba_analyse(planes, *bases, out[0].numpy())
        return out

    def synthesise_by_numba(source: torch.Tensor, inplace: bool) -> torch.Tensor:
        out = source if inplace else torch.empty_like(source)
        numba_synthesise(c[0].numpy(), *bases, source[0].numpy(), out[0].numpy())
        return out

    def synthesise(source: torch.Tensor, inplace: bool) -> torch.Tensor:
        return kernels.synthesise(c, rows, columns, residual=source, inplace=inplace)

    def baddbmm(source: torch.Tensor, inplace: bool) -> torch.Tensor:
        given = source[0], rows.T.expand(channels, height, k)
        t = (c.reshape(channels * k, k) @ columns).reshape(channels, k, width)
        return torch.baddbmm(*given, t, out=source[0] if inplace else None)[None]

    def onednn(source: torch.Tensor, _inplace: bool) -> torch.Tensor:
        t = (c.reshape(channels * k, k) @ columns).reshape(channels, k, 1, width)
        weight = rows.T.reshape(height, k, 1, 1).contiguous()
        geometry = [0, 0], [1, 1], [1, 1], 1  # padding, stride, dilation, groups
        planes = source[0].unsqueeze(2)  # (C, H, 1, W)
        torch.ops.mkldnn._convolution_pointwise_.binary(
            planes, t, weight, None, *geometry, "add", None, None, [], None
        )
        return planes[:, :, 0][None]

    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(synthesise, dynamic=False)
    return {
        "analysis": {
            "eager": partial(kernels.analyse, x, rows, columns),
            "compiled": partial(torch.compile(kernels.analyse, dynamic=False), x, rows, columns),
            "numba": analyse_by_numba,
        },
        "synthesis, fresh": {
            "eager": partial(synthesise, x, False),
            "one baddbmm": partial(baddbmm, x, False),
            "compiled": partial(compiled, x, False),
            "numba": partial(synthesise_by_numba, x, False),
        },
        "synthesis, in place": {
            "eager": partial(synthesise, own, True),
            "one baddbmm": partial(baddbmm, own, True),
            "oneDNN": partial(onednn, own, True),
            "compiled": partial(compiled, own, True),
            "numba": partial(synthesise_by_numba, own, True),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["97x97", "128x256"])
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    reuse_freed_memory()
    torch.set_num_threads(given.threads)
    set_num_threads(given.threads)
    torch.manual_seed(0)
    print(", ".join(f"{name} {value}" for name, value in environment("cpu").items()))
    print(vars(given))
    print("| map | operation | with | ms | faster than eager |\n|---|---|---|---:|---:|")
    for size in given.sizes:
        height, width = map(int, size.split("x"))
        for operation, ways in calls(given.channels, height, width, given.k).items():
            inplace = "place" in operation
            for way in ways.values():
                x = torch.ones(1, given.channels, height, width)
                found = [w.func(x.clone(), True) if inplace else w() for w in (way, ways["eager"])]
                torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
            timed = {name: Timed(way) for name, way in ways.items()}
            taken = time_calls(timed, device=torch.device("cpu"), rounds=given.rounds)
            for name, seconds in taken.items():
                ms = spread(Quartiles.of([*seconds.values()]), 1e3)
                gain = spread(Quartiles.of(ratios(taken["eager"], seconds)))
                print(f"| {size} | {operation} | {name} | {ms} | {gain} |")


if __name__ == "__main__":
    main()
