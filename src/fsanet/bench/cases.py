"""The layers that `fsanet bench` compares, and the floor under them.

Every layer takes (B, C, H, W) to the same shape. None starts as the identity (``zero_init=False``):
the cost would be the same, but nobody should have to wonder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.bench import layers
from fsanet.errors import InputError

__all__ = ["CASES", "PAPER_CLAIMS", "PAPER_LAYERS", "Case", "Floor", "find_cases", "rename"]


@dataclass(frozen=True)
class Case:
    """A layer to measure.

    Attributes:
        name: what is typed after ``--layers``.
        title: what it is, in words.
        make: builds the layer from the number of channels.
        ours: whether it is this library's method.
        compiled: whether it runs through ``torch.compile``.
        channels_last: whether its map is stored with the channel innermost.
    """

    name: str
    title: str
    make: Callable[[int], nn.Module]
    ours: bool = False
    compiled: bool = False
    channels_last: bool = False

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


def _frequency(kind: str, recurrence: int, k: int | None = None) -> Case:
    """Frequency attention, as published ("paper") or with one of this library's similarities."""
    options: dict[str, Any] = {"recurrence": recurrence, "k": k or 8, "zero_init": False}
    make: Callable[..., nn.Module] = FrequencySelfAttention
    if kind == "paper":
        make, words = layers.PaperFrequencyAttention, "as published"
    else:
        options["similarity"], words = kind, kind
    name, title = f"{kind}-R{recurrence}", f"frequency attention, {words}, R={recurrence}"
    if k is not None:
        name, title = f"{name}-k{k}", f"{title}, k={k}"
    return Case(name, title, lambda c: make(c, **options), ours=kind != "paper")


CASES: tuple[Case, ...] = (
    Case(
        "softmax",
        "regular attention, N x N matrix stored",
        lambda c: layers.MaterialisedSelfAttention(c, zero_init=False),
    ),
    Case("sdpa", "regular attention, scaled_dot_product_attention", _regular),
    Case("sdpa-compiled", "the same under torch.compile", _regular, compiled=True),
    _frequency("paper", 1),
    _frequency("paper", 2),
    _frequency("dot", 1),
    _frequency("dot", 2),
    _frequency("dot", 4),
    Case("dot-R1-inplace", "frequency attention, dot, R=1, in place", InPlace, ours=True),
    replace(
        _frequency("dot", 1),
        name="dot-R1-channels-last",
        title="frequency attention, dot, R=1, of a map in channels-last layout",
        channels_last=True,
    ),
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


# Any number of rounds and of frequencies can be asked for by name.
_FREQUENCY = re.compile(r"(paper|dot|linear_softmax|linear)-R([1-9]\d{0,2})(?:-k([1-9]\d{0,3}))?")


def find_cases(names: Sequence[str]) -> tuple[Case, ...]:
    """Look up cases by name, in the order given; "dot-R3-k16" has 3 rounds and k = 16.

    Raises:
        InputError: for an unknown name, suggesting the nearest one, or a repeated name.
    """
    known = {case.name: case for case in CASES}
    for name in names:
        numbers = _FREQUENCY.fullmatch(name)
        if name not in known and numbers is not None:
            kind, recurrence, k = numbers.groups()
            known[name] = _frequency(kind, int(recurrence), None if k is None else int(k))
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"
            raise InputError(f"no layer '{name}'; {hint}")
        if list(names).count(name) > 1:
            raise InputError(f"layer '{name}' is given twice")
    return tuple(known[name] for name in names)


def rename(name: str, *, k: int | None = None, recurrence: int | None = None) -> str:
    """The name of a frequency layer with another k or number of rounds; other names as they are.

    >>> rename("dot-R2", k=16), rename("dot-R2", recurrence=4), rename("sdpa", k=16)
    ('dot-R2-k16', 'dot-R4', 'sdpa')
    """
    numbers = _FREQUENCY.fullmatch(name)
    if numbers is None:
        return name
    kind, own_recurrence, own_k = numbers.groups()
    kept = own_k if k is None else k
    name = f"{kind}-R{recurrence or own_recurrence}"
    return name if kept is None else f"{name}-k{kept}"
