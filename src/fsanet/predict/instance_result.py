"""What finding instances gives: boxes, masks, names, scores, and all one wants to do with them.

Shapes: N instances, (H, W) an image; arrays are channels-last, as Pillow has them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fsanet.data.masks import Colour, class_palette
from fsanet.errors import InputError
from fsanet.files import write_json, write_whole
from fsanet.predict.draw import boundaries, font, full_palette

__all__ = ["Instances"]

_HUES = 24  # instances beyond these repeat the colours


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances found on an image, by falling score.

    Attributes:
        boxes: float32 (N, 4), (x0, y0, x1, y1) in pixels.
        masks: bool (N, H, W).
        labels: int64 (N,), from 1.
        scores: float32 (N,), 0..1.
        classes: names; label 1 is the first.
        category_ids: ids of the classes in annotation files.
        image: what was looked at, uint8 (3, H, W).
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
        """Those with at least this score.

        Raises:
            InputError: the score is not in 0..1.
        """
        if not 0 <= score <= 1:
            raise InputError(f"score is {score}; give the lowest one to keep, 0 to 1")
        keep = self.scores >= score
        return Instances(
            self.boxes[keep],
            self.masks[keep],
            self.labels[keep],
            self.scores[keep],
            self.classes,
            self.category_ids,
            self.image,
            self.source,
        )

    def name(self, index: int) -> str:
        """Class name of an instance."""
        return self.classes[int(self.labels[index]) - 1]

    def id_map(self) -> Tensor:
        """Int32 (H, W): 0 is background, n is the n-th instance; higher scores lie on top."""
        ids = torch.zeros(self.image.shape[-2:], dtype=torch.int32)
        for index in reversed(range(len(self))):
            ids[self.masks[index]] = index + 1
        return ids

    def id_image(self) -> Image.Image:
        """`id_map` as a palette image (mode P), or 16-bit grey beyond 255 instances."""
        ids = self.id_map().numpy()
        if len(self) > 255:
            return Image.fromarray(ids.astype(np.uint16))
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(full_palette([(0, 0, 0), *self._colours()]))
        return image

    def overlay(self, alpha: float = 0.5, names: bool = True) -> Image.Image:
        """The image with its instances: tinted masks with an edge, boxes, names and scores.

        Args:
            alpha: weight of the masks' colours, 0..1.
            names: write class name and score at each box.

        Returns:
            RGB image of the image's size.

        Raises:
            InputError: ``alpha`` out of its range.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha}; give the weight of the colours, 0 to 1")
        pixels = self.image.cpu().permute(1, 2, 0).numpy().astype(np.float32)  # (H, W, 3)
        colours = self._colours()
        thickness = max(1, round(min(pixels.shape[:2]) / 300))
        order = list(reversed(range(len(self))))  # the surest on top
        for index in order:
            mask = self.masks[index].cpu().numpy()
            colour = np.array(colours[index], np.float32)
            pixels[mask] = pixels[mask] * (1 - alpha) + colour * alpha
            pixels[boundaries(mask.astype(np.uint8), thickness)] = colour
        picture = Image.fromarray((pixels + 0.5).clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for index in order:
            box = tuple(self.boxes[index].tolist())
            draw.rectangle(box, outline=colours[index], width=thickness)
        if names:
            for index in order:
                self._write_name(draw, index, colours[index], picture.size)
        return picture

    def _write_name(
        self, draw: ImageDraw.ImageDraw, index: int, colour: Colour, size: tuple[int, int]
    ) -> None:
        face = font(int(min(28, max(10, min(size) / 32))))
        text = f"{self.name(index)} {float(self.scores[index]):.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=face)
        width, height = right - left + 6, bottom - top + 6
        x0, y0, _, _ = self.boxes[index].tolist()
        x = min(max(x0, 0), max(size[0] - width, 0))
        y = y0 - height if y0 >= height else y0  # inside the box where there is no room above
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        bright = sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour, strict=True)) > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        draw.text((x + 3 - left, y + 3 - top), text, fill=ink, font=face)

    def _colours(self) -> list[Colour]:
        hues = class_palette(None, _HUES)
        return [hues[index % _HUES] for index in range(len(self))]

    def results(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file: category ids of the data set, masks as RLE."""
        from fsanet.data.annotations import encode_masks

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
        """Size and instances as plain values for JSON."""
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

    def save(
        self,
        folder: str | os.PathLike[str],
        stem: str,
        *,
        alpha: float = 0.5,
        names: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Path]:
        """Write ``stem_instances.png`` (ids), ``stem_overlay.png`` and ``stem.json``.

        Args:
            folder: created if need be.
            stem: start of the file names.
            alpha, names: as in `overlay`.
            extra: more entries for the JSON file.

        Returns:
            the written paths by kind: "instances", "overlay", "summary".

        Raises:
            InputError: the folder cannot be written to.
        """
        folder = Path(folder)
        pictures = {"instances": self.id_image(), "overlay": self.overlay(alpha, names)}
        written = {
            kind: write_whole(folder / f"{stem}_{kind}.png", partial(picture.save, format="PNG"))
            for kind, picture in pictures.items()
        }
        summary = {**self.summary(), **(extra or {})}
        summary["files"] = {kind: path.name for kind, path in written.items()}
        written["summary"] = write_json(folder / f"{stem}.json", summary)
        return written

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks."""
        stream = io.BytesIO()
        self.overlay().save(stream, "PNG")
        return stream.getvalue()
