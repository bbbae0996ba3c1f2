"""Joint transforms of an image and its mask, in the way the field trains.

All take ``(tv_tensors.Image, tv_tensors.Mask)``, as torchvision.transforms.v2 does, and draw
from torch's random state only. Images are resized bilinearly with anti-aliasing; masks take the
nearest id, so ids are never mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from fsanet.data.colours import offset_and_scale, turn_hue
from fsanet.data.regions import Region, resized_ids, resized_pixels
from fsanet.errors import InputError

#: Mean colour of ImageNet, for padding.
MEAN_COLOUR = (124, 116, 104)

_NEAREST = InterpolationMode.NEAREST_EXACT


class RandomScale(v2.Transform):
    """Resize by a factor drawn evenly from ``low..high``, the same for both axes.

    Args:
        low, high: range of the factor.
        within: longest and shortest side, in pixels, that factor 1 stands for: the largest size
            of the image's shape with no side above its own. None: the image's own size.
    """

    def __init__(self, low: float, high: float, within: tuple[int, int] | None = None) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise InputError(f"scale=({low}, {high}): needs 0 < low <= high")
        if within is not None and (len(within) != 2 or min(within) < 1):
            raise InputError(
                f"resize={tuple(within)}: give the longest and the shortest side in pixels"
            )
        self.low, self.high, self.within = low, high, within

    def draw(self, height: int, width: int) -> tuple[int, int]:
        """Size that an image of ``height`` x ``width`` is resized to."""
        factor = _uniform(self.low, self.high)
        if self.within is not None:
            longest, shortest = self.within
            factor *= min(longest / max(height, width), shortest / min(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"size": list(self.draw(*v2.query_size(flat_inputs)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        size = params["size"]
        if list(inpt.shape[-2:]) == size:
            return inpt
        if isinstance(inpt, tv_tensors.Mask):
            # torchvision resizes masks with NEAREST, which is off by up to half a pixel against
            # the bilinear image; NEAREST_EXACT has the same pixel centres.
            ids = F.resize(inpt.as_subclass(Tensor)[None], size, interpolation=_NEAREST)[0]
            return tv_tensors.wrap(ids, like=inpt)
        return F.resize(inpt, size, antialias=True)


class ClassRatioCrop(v2.Transform):
    """Random crop in which no single class takes nearly everything.

    A crop is drawn again, up to ``attempts`` times in all, until the largest class holds at most
    ``max_ratio`` of the pixels that are not ignored; the last one drawn is then kept. Axes
    shorter than the crop are kept whole: pad them with `PadTo`.

    Args:
        size: (h, w) in pixels.
        max_ratio: 1.0 takes the first crop.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        max_ratio: float = 0.75,
        attempts: int = 10,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if min(size) < 1:
            raise InputError(f"crop={tuple(size)}: needs at least one pixel along each axis")
        if not 0 < max_ratio <= 1:
            raise InputError(f"class_ratio={max_ratio}: needs 0 < class_ratio <= 1")
        if attempts < 1:
            raise InputError(f"attempts={attempts}: needs at least one")
        self.size = (int(size[0]), int(size[1]))
        self.max_ratio = max_ratio
        self.attempts = attempts
        self.ignore_index = ignore_index

    def draw(
        self, height: int, width: int, ids_of: Callable[[Region], Tensor] | None = None
    ) -> Region:
        """A crop of an image of ``height`` x ``width``.

        Args:
            ids_of: class ids of a crop; None takes the first crop.
        """
        crop_h, crop_w = min(self.size[0], height), min(self.size[1], width)
        for _ in range(self.attempts):
            top = int(torch.randint(height - crop_h + 1, ()))
            left = int(torch.randint(width - crop_w + 1, ()))
            region = Region(top, left, crop_h, crop_w)
            if ids_of is None or self.max_ratio == 1 or self._mixed(ids_of(region)):
                break
        return region

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        mask = _mask_among(flat_inputs)
        region = self.draw(
            height,
            width,
            None if mask is None else lambda where: resized_ids(mask, (height, width), where),
        )
        return region._asdict()

    def _mixed(self, ids: Tensor) -> bool:
        counts = torch.bincount(ids.reshape(-1), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        # A crop that is ignored as a whole teaches nothing: drawn again, too.
        return 0 < int(counts.max()) <= self.max_ratio * int(counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class ScaleAndCrop(v2.Transform):
    """`RandomScale` and `ClassRatioCrop` in one: what they give, without resizing the rest."""

    def __init__(self, scale: RandomScale, crop: ClassRatioCrop) -> None:
        super().__init__()
        self.scale, self.crop = scale, crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = self.scale.draw(*v2.query_size(flat_inputs))
        mask = _mask_among(flat_inputs)
        ids_of = None if mask is None else lambda where: resized_ids(mask, size, where)
        return {"size": size, "region": self.crop.draw(*size, ids_of)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        resized = resized_ids if isinstance(inpt, tv_tensors.Mask) else resized_pixels
        part = resized(inpt.as_subclass(Tensor), params["size"], params["region"])
        # Planes from here on: colours are faster so.
        return tv_tensors.wrap(part.contiguous(), like=inpt)


class PadTo(v2.Transform):
    """Pad below and to the right up to ``size``: images with ``fill``, masks with ignore.

    Args:
        size: (h, w) in pixels; larger inputs are left alone.
        fill: (r, g, b) in 0..255.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        fill: tuple[int, int, int] = MEAN_COLOUR,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.size = (int(size[0]), int(size[1]))
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
    """Brightness, contrast, saturation and hue of the image, each with probability ``p``.

    Ranges are those usual for segmentation: brightness +-32 of 255, contrast and saturation
    times 0.5..1.5, hue +-36 degrees; contrast comes before or after the colours. Unlike
    torchvision's ``RandomPhotometricDistort`` this never swaps channels, as a green sky would
    not help. uint8 in, uint8 out; masks are left alone.
    """

    def __init__(
        self,
        *,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 0.1,
        p: float = 0.5,
    ) -> None:
        super().__init__()
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        # Always the same number of draws, so that one outcome does not shift the next.
        chance = [float(v) < self.p for v in torch.rand(4)]
        return {
            "brightness": _uniform(-self.brightness, self.brightness) if chance[0] else 0.0,
            "contrast": _uniform(*self.contrast) if chance[1] else 1.0,
            "saturation": _uniform(*self.saturation) if chance[2] else 1.0,
            "hue": _uniform(-self.hue, self.hue) if chance[3] else 0.0,
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
            image = turn_hue(image, params["hue"])
        if not first:
            image = offset_and_scale(image, 0.0, params["contrast"])
        return tv_tensors.wrap(image, like=inpt)


def _mask_among(flat_inputs: list[Any]) -> Tensor | None:
    mask = next((x for x in flat_inputs if isinstance(x, tv_tensors.Mask)), None)
    return None if mask is None else mask.as_subclass(Tensor)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def train_transform(
    crop: tuple[int, int] | None,
    *,
    resize: tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    photometric: bool = True,
    class_ratio: float = 0.75,
    ignore_index: int = 255,
    fill: tuple[int, int, int] = MEAN_COLOUR,
) -> v2.Compose:
    """Transforms of training: scale, crop, mirror, colours, pad.

    Args:
        crop: (h, w) every item ends with; ``None`` keeps the whole image.
        resize: longest and shortest side that factor 1 stands for, see `RandomScale`.
        scale: lowest and highest resize factor; (1, 1) keeps the size.
        flip: mirror left to right with probability 0.5.
        photometric: apply `PhotometricDistortion`.
        class_ratio: largest share of one class in a crop, see `ClassRatioCrop`.
        fill: (r, g, b) of padded pixels; their mask is ``ignore_index``.

    Raises:
        InputError: for a size, range or ratio that makes no sense.
    """
    steps: list[v2.Transform] = []
    resized = resize is not None or tuple(scale) != (1, 1)
    if crop is not None:
        cropping = ClassRatioCrop(crop, max_ratio=class_ratio, ignore_index=ignore_index)
        steps.append(
            ScaleAndCrop(RandomScale(*scale, within=resize), cropping) if resized else cropping
        )
    elif resized:
        steps.append(RandomScale(*scale, within=resize))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if photometric:
        steps.append(PhotometricDistortion())
    # After the colours, so that padding stays the mean colour.
    if crop is not None:
        steps.append(PadTo(crop, fill=fill, ignore_index=ignore_index))
    return v2.Compose(steps or [v2.Identity()])


def eval_transform() -> v2.Transform:
    """Transform of evaluation: the whole image as it is."""
    return v2.Identity()
