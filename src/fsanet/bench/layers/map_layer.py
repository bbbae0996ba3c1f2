"""What the layers of others have in common: an input check and a FLOP count."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
