"""What prediction returns: a class for each pixel, or instances; both draw and save themselves.

Shapes: N instances, (H, W) image.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fsanet.errors import InputError
from fsanet.files import write_json, write_whole
from fsanet.predict import draw

__all__ = ["Instances", "Segmentation"]

_Writers = dict[str, Callable[[BinaryIO], object]]


class _Result(ABC):
    """What both results have in common: they draw and save themselves."""

    image: Tensor | None
    source: Path | None

    @abstractmethod
    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image with the result drawn over it."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Size and contents, as values for JSON."""

    @abstractmethod
    def _writers(self, *, overlay: bool, **drawing: Any) -> _Writers:
        """What writes each picture, by its name; called one after the other."""

    def save(
        self,
        folder: str | os.PathLike[str],
        stem: str,
        *,
        overlay: bool = True,
        extra: Mapping[str, Any] | None = None,
        **drawing: Any,
    ) -> dict[str, Path]:
        """Write the pictures ``stem_*.png`` and, last, ``stem.json``.

        The pictures are ``mask`` (class ids with a palette) and, if there is one, ``confidence``
        (0..255 for 0..1), or ``instances`` (their numbers); and ``overlay``. Each file is written
        completely or not at all.

        Args:
            folder: created if it does not exist.
            stem: beginning of the file names.
            overlay: write the overlay.
            extra: further entries of the JSON file.
            drawing: arguments of `overlay`.

        Returns:
            The written files by the end of their names, and the JSON file as "summary".

        Raises:
            InputError: the folder is not writable, or an argument of `overlay` is out of range.
        """
        folder = Path(folder)
        written = {
            kind: write_whole(folder / f"{stem}_{kind}.png", write)
            for kind, write in self._writers(overlay=overlay, **drawing).items()
        }
        content = {**self.summary(), **(extra or {})}
        content["files"] = {kind: path.name for kind, path in written.items()}
        written["summary"] = write_json(folder / f"{stem}.json", content)
        return written

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks."""
        stream = io.BytesIO()
        _save_png(self.overlay(), stream)
        return stream.getvalue()


@dataclass(frozen=True, eq=False)
class Segmentation(_Result):
    """The class of each pixel of an image.

    Attributes:
        mask: class ids, uint8 (H, W). Ids without a class (255 in label masks) are unlabelled.
        classes: names by id.
        palette: (red, green, blue) in 0..255 by id.
        image: the image itself, uint8 (3, H, W).
        confidence: probability of the predicted class, float32 (H, W), if it was requested.
        source: file the image came from.
        entropy: mean entropy of the class probabilities in nats, if it was requested.
    """

    mask: Tensor
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image: Tensor | None = None
    confidence: Tensor | None = None
    source: Path | None = None
    entropy: float | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != torch.uint8:
            raise ValueError(
                f"mask is {self.mask.dtype} {tuple(self.mask.shape)}; expected uint8 (H, W)"
            )
        if len(self.classes) != len(self.palette):
            raise ValueError(f"{len(self.classes)} classes, but {len(self.palette)} colours")
        if self.image is not None and self.image.shape != (3, *self.mask.shape):
            raise ValueError(
                f"image is {tuple(self.image.shape)}; expected {(3, *self.mask.shape)} as the mask"
            )

    def _pixels(self) -> list[int]:
        """Number of pixels of each class by id: two classes may have one name."""
        found = torch.bincount(self.mask.flatten(), minlength=256)
        return [int(count) for count in found[: len(self.classes)].tolist()]

    def counts(self) -> dict[str, int]:
        """Number of pixels of each class, absent classes included."""
        return dict(zip(self.classes, self._pixels(), strict=True))

    def areas(self) -> dict[str, float]:
        """Fraction of the image covered by each class, 0 to 1, absent classes included."""
        return {name: count / self.mask.numel() for name, count in self.counts().items()}

    def legend(self) -> list[draw.Entry]:
        """Name, colour and area of each class in the image, the largest first."""
        entries = [
            (name, colour, count / self.mask.numel())
            for name, colour, count in zip(self.classes, self.palette, self._pixels(), strict=True)
            if count > 0
        ]
        return sorted(entries, key=lambda entry: -entry[2])

    def colour_mask(self) -> Image.Image:
        """The mask as a palette image (mode P): pixel values are class ids."""
        image = Image.fromarray(np.ascontiguousarray(self.mask.cpu().numpy()))
        image.putpalette(draw.full_palette(self.palette))
        return image

    def overlay(
        self, alpha: float = 0.5, legend: bool = True, boundaries: bool = True
    ) -> Image.Image:
        """The image with its classes drawn over it (only the colours if there is no image).

        Args:
            alpha: opacity of the colours, 0 to 1.
            legend: list the classes and their areas next to the image. An image too small for the
                text of the legend is enlarged by an integer factor.
            boundaries: draw lines between classes.

        Returns:
            RGB image; exactly W x H if there is no legend.

        Raises:
            InputError: ``alpha`` is out of range.
        """
        return self._picture(alpha, legend, boundaries).to_image()

    def _picture(
        self, alpha: float = 0.5, legend: bool = True, boundaries: bool = True
    ) -> draw.Picture:
        return draw.overlay(
            self.mask.cpu().numpy(),
            self.palette,
            None if self.image is None else self.image.cpu().permute(1, 2, 0).numpy(),
            alpha=alpha,
            boundaries=boundaries,
            legend=self.legend() if legend else None,
        )

    def summary(self) -> dict[str, Any]:
        """Size, classes and areas, as values for JSON."""
        height, width = self.mask.shape
        counts = self._pixels()
        result: dict[str, Any] = {
            "image": None if self.source is None else str(self.source),
            "width": width,
            "height": height,
            "classes": [
                {
                    "id": index,
                    "name": name,
                    "colour": list(self.palette[index]),
                    "pixels": counts[index],
                    "fraction": counts[index] / self.mask.numel(),
                }
                for index, name in enumerate(self.classes)
            ],
        }
        if self.confidence is not None:
            result["mean_confidence"] = float(self.confidence.mean())
        if self.entropy is not None:
            result["mean_entropy"] = self.entropy
        return result

    def _writers(self, *, overlay: bool, **drawing: Any) -> _Writers:
        writers: _Writers = {"mask": lambda stream: _save_png(self.colour_mask(), stream)}
        if overlay:
            writers["overlay"] = self._picture(**drawing).write_png
        if self.confidence is not None:
            writers["confidence"] = lambda stream: _save_png(self._grey_confidence(), stream)
        return writers

    def _grey_confidence(self) -> Image.Image:
        assert self.confidence is not None
        grey = torch.empty(self.confidence.shape, dtype=torch.uint8)
        # In bands of rows: the whole in float32 takes four times the memory of the result.
        for band, rows in zip(grey.split(64), self.confidence.split(64), strict=True):
            band.copy_((rows.cpu().clamp(0, 1) * 255).round())
        return Image.fromarray(grey.numpy())


@dataclass(frozen=True, eq=False)
class Instances(_Result):
    """The instances found in an image, sorted by falling score.

    Attributes:
        boxes: float32 (N, 4), (x0, y0, x1, y1) in pixels.
        masks: bool (N, H, W).
        labels: int64 (N,), from 1.
        scores: float32 (N,), 0 to 1.
        classes: names; label 1 is the first.
        category_ids: ids of the classes in annotation files.
        image: the image itself, uint8 (3, H, W).
        source: file the image came from.
    """

    boxes: Tensor
    masks: Tensor
    labels: Tensor
    scores: Tensor
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image: Tensor
    source: Path | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.masks.shape != (count, *self.image.shape[-2:]) or self.masks.dtype != torch.bool:
            raise ValueError(
                f"masks are {self.masks.dtype} {tuple(self.masks.shape)}; expected bool "
                f"{(count, *self.image.shape[-2:])}"
            )
        if not len(self.labels) == len(self.scores) == count:
            raise ValueError(
                f"{count} boxes, {len(self.labels)} labels, {len(self.scores)} scores; one each"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> Instances:
        """The instances with at least this score.

        Raises:
            InputError: the score is not in 0 to 1.
        """
        if not 0 <= score <= 1:
            raise InputError(f"score is {score}; give the lowest score to keep, 0 to 1")
        keep = self.scores >= score
        names = ("boxes", "masks", "labels", "scores")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def name(self, index: int) -> str:
        """Class name of an instance."""
        return self.classes[int(self.labels[index]) - 1]

    def id_map(self) -> Tensor:
        """Int32 (H, W): 0 is background, n is the n-th instance; higher scores are on top."""
        ids = torch.zeros(self.image.shape[-2:], dtype=torch.int32)
        for index in reversed(range(len(self))):
            ids[self.masks[index]] = index + 1
        return ids

    def id_image(self) -> Image.Image:
        """`id_map` as a palette image (mode P), or 16-bit grey if there are over 255 instances."""
        ids = self.id_map().numpy()
        if len(self) > 255:
            return Image.fromarray(ids.astype(np.uint16))
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(draw.full_palette([(0, 0, 0), *draw.instance_colours(len(self))]))
        return image

    def overlay(self, alpha: float = 0.5, names: bool = True) -> Image.Image:
        """The image with its instances: tinted masks with an edge, boxes, names and scores.

        Args:
            alpha: opacity of the masks' colours, 0 to 1.
            names: write class name and score at each box.

        Returns:
            RGB image, W x H.

        Raises:
            InputError: ``alpha`` is out of range.
        """
        texts = [f"{self.name(i)} {float(self.scores[i]):.2f}" for i in range(len(self))]
        return draw.instance_overlay(
            self.image.cpu().permute(1, 2, 0).numpy(),
            self.masks.cpu().numpy(),
            self.boxes.tolist(),
            texts if names else None,
            alpha=alpha,
        )

    def results(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file: category ids of the data set, masks as RLE."""
        from fsanet.data.shapes import encode_masks

        entries = []
        rles = encode_masks(self.masks) if len(self) else []
        for index, rle in enumerate(rles):
            x0, y0, x1, y1 = self.boxes[index].tolist()
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": self.category_ids[int(self.labels[index]) - 1],
                    "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(float(self.scores[index]), 6),
                    "segmentation": rle,
                }
            )
        return entries

    def summary(self) -> dict[str, Any]:
        """Size and instances, as values for JSON."""
        _, height, width = self.image.shape
        return {
            "image": None if self.source is None else str(self.source),
            "width": width,
            "height": height,
            "instances": [
                {
                    "id": index + 1,
                    "name": self.name(index),
                    "score": float(self.scores[index]),
                    "box": [round(value, 2) for value in self.boxes[index].tolist()],
                    "pixels": int(self.masks[index].sum()),
                }
                for index in range(len(self))
            ],
        }

    def _writers(self, *, overlay: bool, **drawing: Any) -> _Writers:
        writers: _Writers = {"instances": lambda stream: _save_png(self.id_image(), stream)}
        if overlay:
            picture = self.overlay(**drawing)
            writers["overlay"] = lambda stream: _save_png(picture, stream)
        return writers


def _save_png(image: Image.Image, stream: BinaryIO) -> None:
    # Pillow's usual level takes three times as long, for files a quarter smaller.
    image.save(stream, format="PNG", compress_level=1)
