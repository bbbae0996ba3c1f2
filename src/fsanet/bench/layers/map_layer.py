"""What the layers of others have in common: an input check, a FLOP count, ways back to the map.

Legend: B batch, C channels, H x W grid, N = H*W positions, e channels of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fsanet.errors import InputError


class MapLayer(nn.Module, ABC):
    """A layer over feature maps, ``(B, C, H, W)`` in any float dtype to the same shape and dtype.

    Args:
        channels: C.
        sizes: other sizes of the layer by name, all of which have to be at least 1.

    Raises:
        InputError: for a size below 1.
    """

    def __init__(self, channels: int, **sizes: int) -> None:
        super().__init__()
        for name, size in {"channels": channels, **sizes}.items():
            if size < 1:
                raise InputError(f"{name}={size} has to be at least 1")
        self.channels = channels

    @abstractmethod
    def flops(self, batch: int, height: int, width: int) -> int:
        """Floating-point operations of one forward pass over ``(batch, C, height, width)``."""

    def check_input(self, x: Tensor) -> None:
        """Raise an InputError that says what is wrong with the shape or dtype of ``x``, if any."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(
                f"expected a feature map (B, {self.channels}, H, W), got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise InputError(f"expected a floating-point feature map, got {x.dtype}")


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens ``(B, N, C)`` as a contiguous map ``(B, C, H, W)``."""
    if tokens.shape[0] == 1:  # a transposed matrix is copied in blocks, a batch of one is not
        channels_first = tokens[0].t().contiguous().unsqueeze(0)
    else:
        channels_first = tokens.mT.contiguous()
    return channels_first.unflatten(2, (height, width))


def project_to_map(linear: nn.Linear, tokens: Tensor, height: int, width: int) -> Tensor:
    """``linear`` on tokens ``(B, N, e)``, written as a map ``(B, C, H, W)`` by the product itself.

    Tokens that are projected first and transposed later cost one more pass over the map.
    """
    batch = tokens.shape[0]
    weight = linear.weight.expand(batch, -1, -1)  # (B, C, e)
    bias = linear.bias[:, None].expand(batch, -1, tokens.shape[1])  # (B, C, N)
    return torch.baddbmm(bias, weight, tokens.mT).unflatten(2, (height, width))
