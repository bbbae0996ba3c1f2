"""Adaptive Fourier mixing: a small network on every mode of the 2-D Fourier transform.

Source: J. Guibas, M. Mardani, Z. Li, A. Tao, A. Anandkumar, B. Catanzaro, "Adaptive Fourier Neural
Operators: Efficient Token Mixers for Transformers", arXiv 2111.13587, section 4.

Legend: B batch, C channels, H x W grid, N = H*W positions, M = H * (W // 2 + 1) modes, b blocks,
c = C / b channels of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softshrink

from fsanet.bench.layers.map_layer import MapLayer
from fsanet.errors import InputError

__all__ = ["FourierMixing"]


class FourierMixing(MapLayer):
    """``y = x + irfft2(shrink(W2 relu(W1 rfft2(x) + b1) + b2))``, complex block-diagonal weights.

    ReLU and soft-shrinkage act on real and imaginary parts one by one. All modes are kept. The
    transforms and the products run in float32 at least, under autocast too: half precision has no
    FFT for every size.

    Args:
        channels: C.
        blocks: b; by default 8 as in the paper, or the largest common divisor of 8 and C.
        shrinkage: lambda of the soft-shrinkage.

    Raises:
        InputError: for a size below 1, blocks that do not divide C, or at run time an input of
            another shape.

    >>> layer = FourierMixing(16)
    >>> layer(torch.randn(1, 16, 5, 7)).shape
    torch.Size([1, 16, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        blocks: int | None = None,
        shrinkage: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        count = math.gcd(8, channels) if blocks is None else blocks
        super().__init__(channels, blocks=count)
        if channels % count:
            raise InputError(f"blocks={count} does not divide the {channels} channels")
        if shrinkage < 0:
            raise InputError(f"shrinkage={shrinkage} has to be at least 0")
        self.blocks, self.shrinkage = count, shrinkage
        width = channels // count
        # Real and imaginary part in the last axis: complex parameters could not be cast to half.
        weight = torch.empty(count, width, width, 2, device=device, dtype=dtype)
        bias = torch.empty(count, width, 1, 2, device=device, dtype=dtype)
        self.weight1, self.bias1 = nn.Parameter(weight), nn.Parameter(bias)
        self.weight2 = nn.Parameter(torch.empty_like(weight))
        self.bias2 = nn.Parameter(torch.empty_like(bias))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights that keep the mean square of a mode, and biases at zero."""
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            nn.init.normal_(weight, std=(2 * weight.shape[1]) ** -0.5)
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape and dtype."""
        self.check_input(x)
        size = (x.shape[-2], x.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        # Autocast leaves complex products alone, so nothing here has to be kept from it.
        modes = torch.fft.rfft2(x.to(wide), norm="ortho")  # (B, C, H, W//2 + 1)
        z = modes.flatten(2).unflatten(1, (self.blocks, -1))  # (B, b, c, M)
        z = _complex(self.weight1, wide) @ z + _complex(self.bias1, wide)
        z = torch.view_as_complex(relu(torch.view_as_real(z)))
        z = _complex(self.weight2, wide) @ z + _complex(self.bias2, wide)
        z = torch.view_as_complex(softshrink(torch.view_as_real(z), self.shrinkage))
        mixed = torch.fft.irfft2(z.reshape(modes.shape), s=size, norm="ortho")  # (B, C, H, W)
        return (x + mixed).to(x.dtype)

    def flops(self, batch: int, height: int, width: int) -> int:
        """Forward FLOPs: both transforms, and 8 per complex multiply-add of the two layers.

        A real transform of N positions counts as ``2.5 N log2 N`` a channel, half the usual
        ``5 N log2 N`` of a complex one. PyTorch's FLOP counter sees no FFT, and takes a complex
        multiply-add for 2.
        """
        n, modes = height * width, height * (width // 2 + 1)
        transforms = 2 * batch * self.channels * 2.5 * n * math.log2(n)
        layers = 8 * 2 * batch * modes * self.channels * self.channels // self.blocks
        return round(transforms) + layers

    def extra_repr(self) -> str:
        return f"{self.channels}, blocks={self.blocks}, shrinkage={self.shrinkage}"


def _complex(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """``(..., 2)`` real and imaginary parts as one complex tensor ``(...)``."""
    return torch.view_as_complex(parts.to(dtype))
