"""Joint transforms of an image and the instances on it, of torchvision's v2 kind.

They take ``(tv_tensors.Image, target)``; a target holds "boxes" (N, 4), "masks" (N, H, W) and
"labels" (N,), see `fsanet.data.instances.InstanceDataset`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fsanet.data.transforms import MEAN_COLOUR
from fsanet.errors import InputError

__all__ = ["BoxesAroundMasks", "WithoutCrowds", "instance_train_transform"]


class WithoutCrowds(v2.Transform):
    """Leaves out crowds (one mask over many objects): nothing a detector should learn."""

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        keep = ~target["iscrowd"].bool()
        boxes, masks = target["boxes"], target["masks"]
        return image, {
            "boxes": tv_tensors.wrap(boxes[keep], like=boxes),
            "masks": tv_tensors.wrap(masks[keep], like=masks),
            "labels": target["labels"][keep],
        }


class BoxesAroundMasks(v2.Transform):
    """Boxes anew from the masks: a box cut by a crop is wider than what is left of its mask.

    Instances without a pixel get boxes without area; `v2.SanitizeBoundingBoxes` removes them.
    """

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        masks = target["masks"].as_subclass(Tensor).bool()  # (N, H, W)
        seen = masks.flatten(1).any(1)  # (N,)
        boxes = torch.zeros(len(masks), 4)
        boxes[seen] = masks_to_boxes(masks[seen])
        boxes[seen, 2:] += 1  # from the last pixel's index to its far edge
        return image, {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"])}


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
    steps += [BoxesAroundMasks(), v2.SanitizeBoundingBoxes(min_size=min_side)]
    return v2.Compose(steps)
