"""Joint transforms of an image with its mask or its instances, as the field trains.

All are torchvision v2 transforms of ``(tv_tensors.Image, tv_tensors.Mask)`` or, for instances,
``(tv_tensors.Image, target)`` with the targets of `fsanet.data.datasets.coco.InstanceDataset`.
They draw from torch's random state only. Images are resized bilinearly with anti-aliasing; masks
take the nearest id, so ids are never mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fsanet.data.images import check_pixels
from fsanet.data.pixels import Region, offset_and_scale, resized_ids, resized_pixels, shift_hue
from fsanet.errors import InputError

__all__ = [
    "MEAN_COLOUR",
    "FitAndScale",
    "PadTo",
    "PhotometricDistortion",
    "ScaleAndCrop",
    "ValidInstances",
    "boxes_around",
]

#: ImageNet's mean colour, for padding.
MEAN_COLOUR = (124, 116, 104)

_ATTEMPTS = 10  # crops to draw at most
_LARGEST_SCALE = 100


class ScaleAndCrop(v2.Transform):
    """Random resize and random crop in one, computing only the pixels that the crop keeps.

    The resize factor is drawn uniformly, or among evenly spaced ones, and is the same for both
    axes. A crop is drawn again, up to 10 times, until the largest class holds at most
    ``class_ratio`` of its labelled pixels; the last one drawn is kept. Axes shorter than the
    crop are kept whole: pad them with `PadTo`.

    Args:
        size: (h, w) of the crop; ``None`` keeps the whole image.
        scale: lowest and highest resize factor; (1, 1) without ``resize`` draws none.
        resize: longest and shortest side, in pixels, that factor 1 stands for: the image is fitted
            into them, keeping its aspect ratio. ``None``: its own size.
        class_ratio: 1.0 takes the first crop.
        ignore_index: id of unlabelled pixels.
        scale_step: distance of the resize factors to choose from, counted from the lowest; 0: any.

    Attributes:
        align: crops start at multiples of this many pixels.

    Raises:
        InputError: a size, range or ratio is invalid.
    """

    align = 1

    def __init__(
        self,
        size: tuple[int, int] | None,
        scale: tuple[float, float] = (1.0, 1.0),
        resize: tuple[int, int] | None = None,
        class_ratio: float = 0.75,
        ignore_index: int = 255,
        scale_step: float = 0.0,
    ) -> None:
        super().__init__()
        if size is not None:
            _check_size("crop", size)
        _check_scale(scale)
        if not 0 <= scale_step < math.inf:
            raise InputError(f"scale_step={scale_step}: give a step above 0, or 0 for any factor")
        if resize is not None:
            _check_size("resize", resize)
        if not 0 < class_ratio <= 1:
            raise InputError(f"class_ratio={class_ratio}: needs 0 < class_ratio <= 1")
        self.size = size
        self.scale = scale
        self.resize = resize
        self.class_ratio = class_ratio
        self.ignore_index = ignore_index
        self.scale_step = scale_step

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        size = height, width
        if self.resize is not None or tuple(self.scale) != (1, 1):
            size = self.scaled_size(height, width, _uniform(*self.scale, self.scale_step))
        mask = next((x for x in flat_inputs if isinstance(x, tv_tensors.Mask)), None)
        ids = None if mask is None else mask.as_subclass(Tensor)
        return {"size": size, "region": self.region(size, ids)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        resized = resized_ids if isinstance(inpt, tv_tensors.Mask) else resized_pixels
        part = resized(inpt.as_subclass(Tensor), params["size"], params["region"])
        # From here on channels first: colour operations are faster that way.
        return tv_tensors.wrap(part.contiguous(), like=inpt)

    def scaled_size(self, height: int, width: int, factor: float) -> tuple[int, int]:
        """The size of an image (H, W) after the random resize by a factor."""
        if self.resize is not None:
            longest, shortest = self.resize
            factor *= min(longest / max(height, width), shortest / min(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        check_pixels(size[0], size[1], "an image after the random resize")
        return size

    def region(self, size: tuple[int, int], mask: Tensor | None) -> Region:
        """Draw the crop of an image that is resized to ``size``; ``mask`` has its first size."""
        if self.size is None:
            return Region(0, 0, *size)
        height, width = min(self.size[0], size[0]), min(self.size[1], size[1])
        for _ in range(_ATTEMPTS):
            top = self.align * int(torch.randint((size[0] - height) // self.align + 1, ()))
            left = self.align * int(torch.randint((size[1] - width) // self.align + 1, ()))
            region = Region(top, left, height, width)
            if mask is None or self.class_ratio == 1:
                break
            if self.is_mixed(resized_ids(mask, size, region)):
                break
        return region

    def is_mixed(self, ids: Tensor) -> bool:
        """Whether no class exceeds its share; never true of a crop without labelled pixels."""
        counts = torch.bincount(ids.reshape(-1), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return 0 < int(counts.max()) <= self.class_ratio * int(counts.sum())


class PadTo(v2.Transform):
    """Pad at the bottom and on the right up to ``size``; larger inputs are left alone.

    Args:
        size: (h, w) in pixels.
        fill: (r, g, b) of padded pixels of images.
        ignore_index: id of padded pixels of masks.
    """

    def __init__(
        self,
        size: tuple[int, int],
        fill: tuple[int, int, int] = MEAN_COLOUR,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.size = size
        self.fill = [int(v) for v in fill]
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        # left, top, right, bottom
        return {"padding": [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        padding = params["padding"]
        if not any(padding):
            return inpt
        is_mask = isinstance(inpt, tv_tensors.Mask)
        return F.pad(inpt, padding, fill=self.ignore_index if is_mask else self.fill)


class PhotometricDistortion(v2.Transform):
    """Distort brightness, contrast, saturation and hue of a uint8 image, each with probability 0.5.

    The ranges are those usual in segmentation: brightness +-32 of 255, contrast and saturation
    times 0.5..1.5, hue +-36 degrees; contrast comes before or after the colours. Unlike
    torchvision's ``RandomPhotometricDistort`` this never permutes channels: a green sky would not
    help. Masks are left alone.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        chance = [float(v) < 0.5 for v in torch.rand(4)]
        return {
            "brightness": _uniform(-32.0, 32.0) if chance[0] else 0.0,
            "contrast": _uniform(0.5, 1.5) if chance[1] else 1.0,
            "saturation": _uniform(0.5, 1.5) if chance[2] else 1.0,
            "hue": _uniform(-0.1, 0.1) if chance[3] else 0.0,
            "contrast_first": float(torch.rand(())) < 0.5,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        image = inpt.as_subclass(Tensor)  # (3, H, W) uint8
        first = params["contrast_first"]
        image = offset_and_scale(image, params["brightness"], params["contrast"] if first else 1.0)
        if params["saturation"] != 1:
            image = F.adjust_saturation(image, params["saturation"])
        if params["hue"] != 0:
            image = shift_hue(image, params["hue"])
        if not first:
            image = offset_and_scale(image, 0.0, params["contrast"])
        return tv_tensors.wrap(image, like=inpt)


def _check_size(name: str, size: Sequence[int]) -> None:
    """Raise `InputError` unless a size is two positive ints that make a possible image."""
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"{name}={tuple(size)}: needs two sides of at least one pixel")
    check_pixels(size[0], size[1], f"{name}={tuple(size)}")


def _check_scale(scale: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= _LARGEST_SCALE:
        raise InputError(f"scale={tuple(scale)}: needs 0 < low <= high <= {_LARGEST_SCALE}")


def _uniform(low: float, high: float, step: float = 0.0) -> float:
    """A number of low..high, or with a step one of low, low + step, ... up to high."""
    share = float(torch.rand(()))
    if not step:
        return low + (high - low) * share
    count = math.floor((high - low) / step + 1e-6) + 1  # 1e-6: 1.4 / 0.1 is a little below 14
    return low + step * int(share * count)


# ---- instances


class ValidInstances(v2.Transform):
    """Keep the instances that a detector can learn, with boxes computed from their masks.

    After a crop a box may be wider than what is left of its mask. Crowds (one mask over many
    objects) are dropped. Only "boxes", "masks" and "labels" remain in the target.

    Args:
        min_side: instances whose box has a shorter side, in pixels, are dropped, and those without
            a pixel always are.
    """

    def __init__(self, min_side: float = 1.0) -> None:
        super().__init__()
        self.min_side = max(min_side, 1.0)

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        boxes = boxes_around(target["masks"].as_subclass(Tensor))
        keep = (boxes[:, 2:] - boxes[:, :2] >= self.min_side).all(1)  # (N,)
        keep &= ~target["iscrowd"].bool()
        kept = {
            "boxes": tv_tensors.wrap(boxes, like=target["boxes"]),
            "masks": target["masks"],
            "labels": target["labels"],
        }
        if not keep.all():  # masks are large: copied only where one is dropped
            kept = {name: tv_tensors.wrap(v[keep], like=v) for name, v in kept.items()}
        return image, kept


class FitAndScale(v2.Transform):
    """Scale jitter: fit an image into ``size`` (h, w), then resize by a factor from ``scale``.

    torchvision's ``ScaleJitter`` swaps height and width of the target size (0.26 to 0.29).

    Raises:
        InputError: a size or range is invalid.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        super().__init__()
        _check_size("size", size)
        _check_scale(scale)
        self.size, self.scale = size, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        factor = _uniform(*self.scale) * min(self.size[0] / height, self.size[1] / width)
        size = [max(1, int(height * factor)), max(1, int(width * factor))]
        check_pixels(size[0], size[1], "an image after the random resize")
        return {"size": size}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, params["size"], antialias=True)


def boxes_around(masks: Tensor) -> Tensor:
    """Compute the boxes of masks, forty times as fast as torchvision's ``masks_to_boxes``.

    Args:
        masks: uint8 (N, H, W).

    Returns:
        float32 (N, 4) as (x0, y0, x1, y1), far edges included; a mask without a pixel has a box
        without area.

    >>> boxes_around(torch.tensor([[[0, 0, 0], [0, 1, 1]]], dtype=torch.uint8)).tolist()
    [[1.0, 1.0, 3.0, 2.0]]
    """
    if not masks.numel():
        return torch.zeros(len(masks), 4)
    ends = []
    for axis in (1, 2):
        seen = masks.amax(axis) > 0  # (N, W), then (N, H)
        length = seen.shape[1]
        first = seen.int().argmax(1)
        last = length - seen.flip(1).int().argmax(1)
        ends.append((first, torch.where(seen.any(1), last, first)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 1).float()
