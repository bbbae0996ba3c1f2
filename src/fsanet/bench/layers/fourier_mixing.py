"""Adaptive Fourier mixing: a small network applied to every mode of the 2-D Fourier transform.

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


class FourierMixing(MapLayer):
    """``y = x + irfft2(shrink(W2 relu(W1 rfft2(x) + b1) + b2))``, complex block-diagonal weights.

    ReLU and soft-shrinkage act on real and imaginary parts separately. All modes are kept.
    Transforms and products run in float32 or wider, even under autocast, since half precision has
    no FFT for most sizes.

    Args:
        channels: C.
        blocks: b; by default 8 as in the paper, or the largest common divisor of 8 and C.
        shrinkage: threshold of the soft-shrinkage.

    Raises:
        InputError: for a size below 1, blocks that do not divide C, or an input of another shape.
    """

    def __init__(
        self, channels: int, *, blocks: int | None = None, shrinkage: float = 0.01
    ) -> None:
        count = math.gcd(8, channels) if blocks is None else blocks
        super().__init__(channels, blocks=count)
        if channels % count:
            raise InputError(f"blocks={count} does not divide the {channels} channels")
        if shrinkage < 0:
            raise InputError(f"shrinkage={shrinkage} has to be at least 0")
        self.blocks, self.shrinkage = count, shrinkage
        width = channels // count
        # Real and imaginary parts in the last axis: complex parameters cannot be cast to half.
        weight = torch.empty(count, width, width, 2)
        bias = torch.empty(count, width, 1, 2)
        self.weight1, self.bias1 = nn.Parameter(weight), nn.Parameter(bias)
        self.weight2 = nn.Parameter(torch.empty_like(weight))
        self.bias2 = nn.Parameter(torch.empty_like(bias))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights that preserve the mean square of a mode; set biases to zero."""
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            nn.init.normal_(weight, std=(2 * weight.shape[1]) ** -0.5)
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape and dtype."""
        self.check_input(x)
        size = (x.shape[-2], x.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        # Autocast does not touch complex products.
        modes = torch.fft.rfft2(x.to(wide), norm="ortho")  # (B, C, H, W//2 + 1)
        z = modes.flatten(2).unflatten(1, (self.blocks, -1))  # (B, b, c, M)
        z = _complex(self.weight1, wide) @ z + _complex(self.bias1, wide)
        z = torch.view_as_complex(relu(torch.view_as_real(z)))
        z = _complex(self.weight2, wide) @ z + _complex(self.bias2, wide)
        z = torch.view_as_complex(softshrink(torch.view_as_real(z), self.shrinkage))
        mixed = torch.fft.irfft2(z.reshape(modes.shape), s=size, norm="ortho")  # (B, C, H, W)
        return (x + mixed).to(x.dtype)

    def uncounted_flops(self, batch: int, height: int, width: int) -> int:
        """Forward FLOPs that PyTorch's counter does not see.

        It does not see FFTs: a real transform of N positions takes ``2.5 N log2 N`` per channel,
        half the usual ``5 N log2 N`` of a complex one. And it takes a complex multiply-add, which
        has 8 operations, for 2.
        """
        n, modes = height * width, height * (width // 2 + 1)
        transforms = 2 * batch * self.channels * 2.5 * n * math.log2(n)
        products = 6 * 2 * batch * modes * self.channels * self.channels // self.blocks
        return round(transforms) + products


def _complex(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Real and imaginary parts ``(..., 2)`` as a complex tensor ``(...)``."""
    return torch.view_as_complex(parts.to(dtype))
