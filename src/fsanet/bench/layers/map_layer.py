"""What the published layers share: checks of sizes and input, and ways back to the map.

Legend: B batch, C channels, H x W grid, N = H*W positions, e channels of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.errors import InputError


class MapLayer(nn.Module):
    """A layer from feature maps ``(B, C, H, W)`` to the same shape and floating-point dtype.

    Args:
        channels: C.
        **sizes: other sizes of the layer, which have to be at least 1.

    Raises:
        InputError: for a size below 1.
    """

    def __init__(self, channels: int, **sizes: int) -> None:
        super().__init__()
        for name, size in {"channels": channels, **sizes}.items():
            if size < 1:
                raise InputError(f"{name}={size} has to be at least 1")
        self.channels = channels

    def check_input(self, x: Tensor) -> None:
        """Raise an InputError for a shape or dtype that the layer does not take."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(
                f"expected a feature map (B, {self.channels}, H, W), got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise InputError(f"expected a floating-point feature map, got {x.dtype}")


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens ``(B, N, C)`` as a contiguous map ``(B, C, H, W)``."""
    if tokens.shape[0] == 1:  # copying a transposed matrix is faster than copying a batch of one
        channels_first = tokens[0].t().contiguous().unsqueeze(0)
    else:
        channels_first = tokens.mT.contiguous()
    return channels_first.unflatten(2, (height, width))


def project_to_map(linear: nn.Linear, tokens: Tensor, height: int, width: int) -> Tensor:
    """Apply ``linear`` to tokens ``(B, N, e)``, writing the result as a map ``(B, C, H, W)``.

    Transposing after the projection would cost one more pass over the map.
    """
    batch = tokens.shape[0]
    weight = linear.weight.expand(batch, -1, -1)  # (B, C, e)
    bias = linear.bias[:, None].expand(batch, -1, tokens.shape[1])  # (B, C, N)
    return torch.baddbmm(bias, weight, tokens.mT).unflatten(2, (height, width))
