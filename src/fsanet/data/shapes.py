"""Masks as run lengths, and outlines of shapes, as annotation files hold them.

Masks are encoded and decoded by faster-coco-eval (extra ``coco``), which also computes AP: one
compiled dependency instead of two.
"""

# N instances, (H, W) size of an image in pixels

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsanet.errors import InputError

__all__ = [
    "MASK_BYTES",
    "check_masks",
    "decode_masks",
    "ellipse",
    "encode_box",
    "encode_masks",
    "mask_tools",
    "masks_as_target",
    "run_lengths",
    "turned",
]

#: Most bytes of the decoded masks of one image.
MASK_BYTES = 4_000_000_000


def mask_tools() -> ModuleType:
    """faster-coco-eval's mask functions.

    Raises:
        InputError: it is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise InputError(
            "instance segmentation needs faster-coco-eval: pip install faster-coco-eval"
        ) from error
    return mask


def check_masks(count: int, height: int, width: int, where: str) -> None:
    """Raise `InputError` if so many masks of one image take more than `MASK_BYTES`."""
    size = count * height * width
    if size > MASK_BYTES:
        raise InputError(
            f"{where}: {count} masks of {width}x{height} pixels take {size / 1e9:.0f} GB; at most "
            f"{MASK_BYTES / 1e9:.0f} GB are read"
        )


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode masks (N, H, W), bool or uint8, as compressed RLE in text that fits into JSON."""
    columns = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())  # (H, W, N)
    encoded = mask_tools().encode(columns)
    return [{"size": [int(s) for s in rle["size"]], "counts": _text(rle)} for rle in encoded]


def encode_box(
    inside: NDArray[np.bool_], top: int, left: int, height: int, width: int
) -> dict[str, Any]:
    """Encode a mask by what is inside its box, bool (h, w), as `encode_masks` does.

    The time is that of the box: the image around it is never made.

    >>> inside = np.array([[True, False], [True, True]])
    >>> whole = torch.zeros(1, 3, 4, dtype=torch.uint8)
    >>> whole[0, :2, 1:3] = torch.from_numpy(inside)
    >>> encode_box(inside, 0, 1, 3, 4) == encode_masks(whole)[0]
    True
    """
    columns = np.zeros((inside.shape[1], inside.shape[0] + 2), bool)  # (w, h + 2), ends of False
    columns[:, 1:-1] = inside.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    changes = (left + column) * height + top + row  # starts and ends of runs by turns
    meets = np.flatnonzero(changes[1:-1:2] == changes[2::2])  # runs that go on in the next column
    changes = np.delete(changes, [*(2 * meets + 1), *(2 * meets + 2)])
    counts = np.diff([0, *changes.tolist(), height * width]).tolist()
    counts = counts[:-1] if counts[-1] == 0 else counts
    size = [height, width]
    rle = mask_tools().frPyObjects({"size": size, "counts": counts}, height, width)
    return {"size": size, "counts": _text(rle)}


def decode_masks(rles: list[Any], height: int, width: int) -> Tensor:
    """Decode compressed RLE to masks uint8 (N, H, W)."""
    if not rles:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    decoded = mask_tools().decode(rles)  # (H, W, N)
    return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))


def masks_as_target(masks: Tensor, labels: Tensor, image_id: int) -> dict[str, Any]:
    """The target of `fsanet.data.InstanceDataset` for masks bool (N, H, W) and labels (N,)."""
    from torchvision import tv_tensors  # here, because checking a data set does without it
    from torchvision.ops import masks_to_boxes

    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # from the last pixel's index to its far edge
    size = (masks.shape[1], masks.shape[2])
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "masks": tv_tensors.Mask(masks.to(torch.uint8)),
        "labels": labels,
        "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
        "area": masks.flatten(1).sum(1).float(),
        "image_id": image_id,
    }


def turned(
    points: Sequence[tuple[float, float]], centre: tuple[float, float], degrees: float
) -> list[float]:
    """Points turned clockwise about a centre, as alternating x and y."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    flat: list[float] = []
    for x, y in points:
        dx, dy = x - centre[0], y - centre[1]
        flat += [centre[0] + dx * cos - dy * sin, centre[1] + dx * sin + dy * cos]
    return flat


def ellipse(centre: tuple[float, float], rx: float, ry: float) -> list[tuple[float, float]]:
    """72 points on an ellipse."""
    angles = [math.tau * i / 72 for i in range(72)]
    return [(centre[0] + rx * math.cos(a), centre[1] + ry * math.sin(a)) for a in angles]


def run_lengths(values: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs of equal values, the first of False (which may be 0).

    >>> run_lengths(np.array([True, True, False, True]))
    [0, 2, 1, 1]
    """
    changes = np.flatnonzero(np.diff(values)) + 1
    lengths = np.diff([0, *changes.tolist(), len(values)]).tolist()
    return [0, *lengths] if values[0] else lengths


def _text(rle: Mapping[str, Any]) -> str:
    counts = rle["counts"]
    return counts.decode() if isinstance(counts, bytes) else str(counts)
