"""The layers that `fsanet bench` puts side by side, and the floor under them.

All take (B, C, H, W) to the same shape. Their outputs start open (``zero_init=False``): closed ones
would cost the same, but nobody should have to wonder.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.similarity import Similarity
from fsanet.bench import layers
from fsanet.cost import frequency_flops, spatial_flops
from fsanet.errors import InputError

__all__ = ["CASES", "Case", "Floor", "find_cases"]

Build = Callable[[int, torch.device, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is typed after ``--layers``.
        title: what it is, in words.
        build: a module from channels, device and dtype.
        ours: whether this library's method is in it.
        compiled: whether it runs through ``torch.compile``.
    """

    name: str
    title: str
    build: Build
    ours: bool = False
    compiled: bool = False


class Floor(nn.Module):
    """Two reads and one fresh write of the map, no products: what any layer of its shape costs."""

    def forward(self, x: Tensor) -> Tensor:
        x.sum()
        return x + x

    def flops(self, batch: int, height: int, width: int) -> int:
        return 0


def _regular(channels: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return SpatialSelfAttention(
        channels, similarity="softmax", zero_init=False, device=device, dtype=dtype
    )


def _frequency(similarity: Similarity, recurrence: int) -> Case:
    def build(channels: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return FrequencySelfAttention(
            channels,
            similarity=similarity,
            recurrence=recurrence,
            zero_init=False,
            device=device,
            dtype=dtype,
        )

    name = f"{similarity}-R{recurrence}"
    return Case(name, f"frequency attention, {similarity}, R={recurrence}", build, ours=True)


CASES: tuple[Case, ...] = (
    Case(
        "softmax",
        "regular attention, N x N matrix stored",
        lambda c, device, dtype: layers.MaterialisedSelfAttention(
            c, zero_init=False, device=device, dtype=dtype
        ),
    ),
    Case("sdpa", "regular attention, scaled_dot_product_attention", _regular),
    Case("sdpa-compiled", "the same under torch.compile", _regular, compiled=True),
    Case(
        "paper-R1",
        "frequency attention as published, R=1",
        lambda c, device, dtype: layers.PaperFrequencyAttention(
            c, recurrence=1, zero_init=False, device=device, dtype=dtype
        ),
    ),
    Case(
        "paper-R2",
        "frequency attention as published, R=2",
        lambda c, device, dtype: layers.PaperFrequencyAttention(
            c, recurrence=2, zero_init=False, device=device, dtype=dtype
        ),
    ),
    _frequency("dot", 1),
    _frequency("dot", 2),
    _frequency("dot", 4),
    _frequency("linear_softmax", 1),
    _frequency("linear_softmax", 2),
    _frequency("linear_softmax", 4),
    _frequency("linear", 1),
    _frequency("linear", 2),
    _frequency("linear", 4),
    Case(
        "criss-cross",
        "criss-cross attention (CCNet), R=2",
        lambda c, device, dtype: layers.CrissCrossAttention(
            c, recurrence=2, zero_init=False, device=device, dtype=dtype
        ),
    ),
    Case(
        "ema",
        "expectation-maximisation attention (EMANet)",
        lambda c, device, dtype: layers.EMAttention(c, device=device, dtype=dtype),
    ),
    Case(
        "double",
        "double attention (A2-Net)",
        lambda c, device, dtype: layers.DoubleAttention(c, device=device, dtype=dtype),
    ),
    Case(
        "interlaced",
        "interlaced sparse attention (ISA)",
        lambda c, device, dtype: layers.InterlacedAttention(c, device=device, dtype=dtype),
    ),
    Case(
        "pyramid",
        "pyramid-pooled non-local (ANN)",
        lambda c, device, dtype: layers.PyramidNonLocal(c, device=device, dtype=dtype),
    ),
    Case(
        "linear-attention",
        "linear attention, elu + 1",
        lambda c, device, dtype: layers.LinearAttention(c, device=device, dtype=dtype),
    ),
    Case(
        "external",
        "external attention",
        lambda c, device, dtype: layers.ExternalAttention(c, device=device, dtype=dtype),
    ),
    Case(
        "spatial-reduction",
        "spatial-reduction attention (SegFormer)",
        lambda c, device, dtype: layers.SpatialReductionAttention(c, device=device, dtype=dtype),
    ),
    Case(
        "fourier",
        "Fourier mixing (AFNO)",
        lambda c, device, dtype: layers.FourierMixing(c, device=device, dtype=dtype),
    ),
    Case("floor", "two reads and one fresh write", lambda c, device, dtype: Floor()),
)


def find_cases(names: Sequence[str]) -> tuple[Case, ...]:
    """Cases by name, in the order given.

    Raises:
        InputError: for an unknown name, with the nearest one, or one given twice.
    """
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"give some of {', '.join(known)}"
            raise InputError(f"no layer '{name}'; {hint}")
        if list(names).count(name) > 1:
            raise InputError(f"layer '{name}' is given twice")
    return tuple(known[name] for name in names)


def flops_by_hand(module: nn.Module, batch: int, height: int, width: int) -> int | None:
    """Forward FLOPs of a layer by its formula; None if it has none."""
    if isinstance(module, SpatialSelfAttention):
        return spatial_flops(module, batch, height, width)
    if isinstance(module, FrequencySelfAttention):
        return frequency_flops(module, batch, height, width)
    formula = getattr(module, "flops", None)
    return None if formula is None else int(formula(batch, height, width))
