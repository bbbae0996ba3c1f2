"""float32 or bfloat16: whichever predicts faster on this machine and finds the same classes."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fsanet.models.segmenter import check_settings
from fsanet.predict.predictor import Predictor

__all__ = ["Choice", "choose_dtype"]

_AGREEMENT = 0.995  # fraction of pixels that have to keep their class
_LONGEST = 1024  # pixels of a side of what is predicted without a window
_ROUNDS = 2


class Choice(NamedTuple):
    """Seconds to predict the same pixels in both types, and how many have the same class."""

    size: tuple[int, int]
    float32: float
    bfloat16: float
    agreement: float

    @property
    def dtype(self) -> torch.dtype | None:
        """What a `Predictor` should be given."""
        chosen = self.bfloat16 < self.float32 and self.agreement >= _AGREEMENT
        return torch.bfloat16 if chosen else None

    def __str__(self) -> str:
        return (
            f"{self.size[1]} x {self.size[0]} pixels take {self.float32:.3f} s in float32, "
            f"{self.bfloat16:.3f} s in bfloat16, where {100 * self.agreement:.3f} % have the same "
            f"class: {'float32' if self.dtype is None else 'bfloat16'} is used"
        )


def choose_dtype(
    model: nn.Module,
    image: Tensor,
    *,
    window: int | tuple[int, int] | None = None,
    device: torch.device | str | None = None,
) -> Choice:
    """Predict the centre of an image twice in each type, in turns, and compare.

    Args:
        model: a network for semantic segmentation.
        image: uint8 (3, H, W).
        window: size of that part, at most 1024 x 1024 pixels by default.
        device: see `fsanet.models.segmenter.Segmenter`.

    Raises:
        InputError: an exported network, which computes in its own type, or a window out of range.
    """
    high, wide = check_settings(window)[0] or (_LONGEST, _LONGEST)
    top, left = max(0, image.shape[1] - high) // 2, max(0, image.shape[2] - wide) // 2
    part = image[None, :, top : top + high, left : left + wide]  # (1, 3, h, w)
    dtypes = (None, torch.bfloat16)
    predictors = [Predictor(model, device=device, dtype=dtype) for dtype in dtypes]
    seconds: tuple[list[float], list[float]] = ([], [])
    masks: list[Tensor] = []
    for _ in range(_ROUNDS):
        masks = []
        for predictor, taken in zip(predictors, seconds, strict=True):
            start = time.perf_counter()
            masks.append(predictor.masks(part).ids)  # on the CPU: whatever computes it is done
            taken.append(time.perf_counter() - start)
    same = (masks[0] == masks[1]).double().mean()
    size = (part.shape[2], part.shape[3])
    return Choice(size, min(seconds[0]), min(seconds[1]), float(same))
