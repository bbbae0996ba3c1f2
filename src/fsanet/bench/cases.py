"""The layers that `fsanet bench` compares, and the floor under them.

Every layer takes (B, C, H, W) to the same shape. None starts as the identity (``zero_init=False``):
the cost would be the same, but nobody should have to wonder.
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
from fsanet.errors import InputError

__all__ = ["CASES", "PAPER_CLAIMS", "PAPER_LAYERS", "Case", "Floor", "find_cases"]


@dataclass(frozen=True)
class Case:
    """A layer to measure.

    Attributes:
        name: what is typed after ``--layers``.
        title: what it is, in words.
        make: builds the layer from the number of channels.
        ours: whether it is this library's method.
        compiled: whether it runs through ``torch.compile``.
    """

    name: str
    title: str
    make: Callable[[int], nn.Module]
    ours: bool = False
    compiled: bool = False

    def build(self, channels: int, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
        """The layer, on a device and with parameters of a dtype."""
        with torch.device(device):
            return self.make(channels).to(dtype)


class Floor(nn.Module):
    """Reads the map twice and writes it once, with no products: what any such layer costs."""

    def forward(self, x: Tensor) -> Tensor:
        x.sum()
        return x + x


class InPlace(FrequencySelfAttention):
    """Overwrites its input in inference.

    It starts as the identity, unlike the other cases: the map would grow from call to call.
    """

    def forward(self, x: Tensor, *, inplace: bool | None = None) -> Tensor:
        return super().forward(x, inplace=not torch.is_grad_enabled())


def _regular(channels: int) -> nn.Module:
    return SpatialSelfAttention(channels, similarity="softmax", zero_init=False)


def _published(recurrence: int) -> Case:
    return Case(
        f"paper-R{recurrence}",
        f"frequency attention as published, R={recurrence}",
        lambda c: layers.PaperFrequencyAttention(c, recurrence=recurrence, zero_init=False),
    )


def _frequency(similarity: Similarity, recurrence: int) -> Case:
    return Case(
        f"{similarity}-R{recurrence}",
        f"frequency attention, {similarity}, R={recurrence}",
        lambda c: FrequencySelfAttention(
            c, similarity=similarity, recurrence=recurrence, zero_init=False
        ),
        ours=True,
    )


CASES: tuple[Case, ...] = (
    Case(
        "softmax",
        "regular attention, N x N matrix stored",
        lambda c: layers.MaterialisedSelfAttention(c, zero_init=False),
    ),
    Case("sdpa", "regular attention, scaled_dot_product_attention", _regular),
    Case("sdpa-compiled", "the same under torch.compile", _regular, compiled=True),
    _published(1),
    _published(2),
    _frequency("dot", 1),
    _frequency("dot", 2),
    _frequency("dot", 4),
    Case("dot-R1-inplace", "frequency attention, dot, R=1, in place", InPlace, ours=True),
    _frequency("linear_softmax", 1),
    _frequency("linear_softmax", 2),
    _frequency("linear_softmax", 4),
    _frequency("linear", 1),
    _frequency("linear", 2),
    _frequency("linear", 4),
    Case(
        "criss-cross",
        "criss-cross attention (CCNet), R=2",
        lambda c: layers.CrissCrossAttention(c, recurrence=2, zero_init=False),
    ),
    Case("ema", "expectation-maximisation attention (EMANet)", layers.EMAttention),
    Case("double", "double attention (A2-Net)", layers.DoubleAttention),
    Case("interlaced", "interlaced sparse attention (ISA)", layers.InterlacedAttention),
    Case("pyramid", "pyramid-pooled non-local (ANN)", layers.PyramidNonLocal),
    Case("linear-attention", "linear attention, elu + 1", layers.LinearAttention),
    Case("external", "external attention", layers.ExternalAttention),
    Case(
        "spatial-reduction",
        "spatial-reduction attention (SegFormer)",
        layers.SpatialReductionAttention,
    ),
    Case("fourier", "Fourier mixing (AFNO)", layers.FourierMixing),
    Case("floor", "two reads and one fresh write", lambda c: Floor()),
)

# What `--paper` compares, and what the paper (arXiv 2211.15595) claims to save in percent against
# regular self-attention with its matrix stored.
PAPER_LAYERS = (
    "softmax",
    "sdpa",
    "paper-R1",
    "paper-R2",
    "dot-R1",
    "dot-R2",
    "linear_softmax-R1",
    "linear_softmax-R2",
    "floor",
)
PAPER_CLAIMS = {"memory": (87.29, 90.04), "FLOPs": (96.13, 98.07), "time": (97.56, 98.18)}


def find_cases(names: Sequence[str]) -> tuple[Case, ...]:
    """Look up cases by name, in the order given.

    Raises:
        InputError: for an unknown name, suggesting the nearest one, or a repeated name.
    """
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"
            raise InputError(f"no layer '{name}'; {hint}")
        if list(names).count(name) > 1:
            raise InputError(f"layer '{name}' is given twice")
    return tuple(known[name] for name in names)
