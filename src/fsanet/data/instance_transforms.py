"""Joint transforms of an image and the instances on it, of torchvision's v2 kind.

They take ``(tv_tensors.Image, target)``; a target holds "boxes" (N, 4), "masks" (N, H, W) and
"labels" (N,), see `fsanet.data.instances.InstanceDataset`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fsanet.data.augment import MEAN_COLOUR
from fsanet.errors import InputError

__all__ = ["BoxesAroundMasks", "WithoutCrowds", "boxes_around", "instance_train_transform"]


class WithoutCrowds(v2.Transform):
    """Leaves out crowds (one mask over many objects): nothing a detector should learn."""

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        keep = ~target["iscrowd"].bool()
        boxes, masks = target["boxes"], target["masks"]
        if keep.all():  # masks are large: they are copied where some are left out
            return image, {name: target[name] for name in ("boxes", "masks", "labels")}
        return image, {
            "boxes": tv_tensors.wrap(boxes[keep], like=boxes),
            "masks": tv_tensors.wrap(masks[keep], like=masks),
            "labels": target["labels"][keep],
        }


class BoxesAroundMasks(v2.Transform):
    """Boxes anew from the masks: a box cut by a crop is wider than what is left of its mask.

    Args:
        min_side: instances whose box has a shorter side, in pixels, are dropped; those without a
            pixel always are.
    """

    def __init__(self, min_side: float = 1.0) -> None:
        super().__init__()
        self.min_side = max(min_side, 1.0)

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        boxes = boxes_around(target["masks"].as_subclass(Tensor))
        keep = (boxes[:, 2:] - boxes[:, :2] >= self.min_side).all(1)  # (N,)
        target = {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"])}
        if not keep.all():
            for name in ("boxes", "masks"):
                target[name] = tv_tensors.wrap(target[name][keep], like=target[name])
            target["labels"] = target["labels"][keep]
        return image, target


def boxes_around(masks: Tensor) -> Tensor:
    """Boxes float32 (N, 4) as (x0, y0, x1, y1), far edges included, of masks uint8 (N, H, W).

    A mask without a pixel has a box without area. torchvision's ``masks_to_boxes`` lists the
    coordinates of every pixel, and takes forty times as long.

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


class FitAndScale(v2.Transform):
    """Scale jitter: fitted into ``size`` (h, w), then resized by a factor from ``scale``.

    torchvision's ``ScaleJitter`` takes the target's sides the wrong way round (0.26 to 0.29).
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(1))
        factor *= min(self.size[0] / height, self.size[1] / width)
        return {"size": [max(1, int(height * factor)), max(1, int(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, params["size"], antialias=True)


def instance_train_transform(
    size: tuple[int, int] | None,
    *,
    scale: tuple[float, float] = (0.5, 1.5),
    flip: bool = True,
    photometric: bool = True,
    min_side: float = 2.0,
) -> v2.Compose:
    """Transforms of training: crowds out, scale jitter and crop, mirror, colours, boxes anew.

    Args:
        size: (h, w) that images end with: fitted into it, scaled by a factor drawn from
            ``scale``, then cropped or padded with the mean colour. None keeps images as they are.
        scale: lowest and highest factor of the jitter.
        flip: mirror left to right with probability 0.5.
        photometric: distort colours, as torchvision's SSD recipe does.
        min_side: instances with less left of a side, in pixels, are dropped.

    Raises:
        InputError: for a size or range that makes no sense.
    """
    if not 0 < scale[0] <= scale[1]:
        raise InputError(f"scale={tuple(scale)}: needs 0 < low <= high")
    steps: list[v2.Transform] = [WithoutCrowds()]
    if size is not None:
        if min(size) < 1:
            raise InputError(f"size={tuple(size)}: needs at least one pixel along each axis")
        fill: Any = {tv_tensors.Image: MEAN_COLOUR, "others": 0}
        steps.append(FitAndScale((size[0], size[1]), scale))
        steps.append(v2.RandomCrop(tuple(size), pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if photometric:
        steps.append(v2.RandomPhotometricDistort())
    steps.append(BoxesAroundMasks(min_side))
    return v2.Compose(steps)
