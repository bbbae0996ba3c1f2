"""What a prediction gives: the mask, and all one wants to do with it."""

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
from PIL import Image
from torch import Tensor

from fsanet.files import write_json, write_whole
from fsanet.predict import draw as render


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The classes of an image's pixels.

    Attributes:
        mask: class ids, uint8 (H, W). Ids without a class (255 in label masks) count as unlabelled.
        classes: names by id.
        palette: (red, green, blue) in 0..255 by id.
        image: what was segmented, uint8 (3, H, W).
        confidence: probability of the chosen class, float32 (H, W), if it was asked for.
        source: file the image came from.
    """

    mask: Tensor
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image: Tensor | None = None
    confidence: Tensor | None = None
    source: Path | None = None

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

    def counts(self) -> dict[str, int]:
        """Pixels of each class, absent ones included."""
        found = torch.bincount(self.mask.flatten(), minlength=256).tolist()
        return {name: int(found[index]) for index, name in enumerate(self.classes)}

    def areas(self) -> dict[str, float]:
        """Share of the image each class takes, 0..1, absent ones included."""
        return {name: count / self.mask.numel() for name, count in self.counts().items()}

    def colour_mask(self) -> Image.Image:
        """The mask as a palette image (mode P): pixel values are class ids."""
        image = Image.fromarray(np.ascontiguousarray(self.mask.cpu().numpy()))
        image.putpalette(render.full_palette(self.palette))
        return image

    def overlay(
        self, alpha: float = 0.5, legend: bool = True, boundaries: bool = True
    ) -> Image.Image:
        """The image with the classes drawn over it (the plain colours if there is no image).

        Args:
            alpha: weight of the colours, 0 (none) to 1 (only colours).
            legend: name the classes and their shares beside or below the image; an image smaller
                than the legend's text needs is enlarged by a whole factor.
            boundaries: draw lines between classes.

        Returns:
            RGB image; exactly W x H when there is no legend.
        """
        return render.overlay(
            self.mask.cpu().numpy(),
            self.palette,
            None if self.image is None else self.image.cpu().permute(1, 2, 0).numpy(),
            alpha=alpha,
            boundaries=boundaries,
            legend=self._legend() if legend else None,
        )

    def _legend(self) -> list[tuple[str, tuple[int, int, int], float]]:
        areas = self.areas()
        entries = [
            (name, self.palette[index], areas[name])
            for index, name in enumerate(self.classes)
            if areas[name] > 0
        ]
        return sorted(entries, key=lambda entry: -entry[2])

    def summary(self) -> dict[str, Any]:
        """Size, classes and shares as plain values for JSON."""
        height, width = self.mask.shape
        counts, areas = self.counts(), self.areas()
        result: dict[str, Any] = {
            "image": None if self.source is None else str(self.source),
            "width": width,
            "height": height,
            "classes": [
                {
                    "id": index,
                    "name": name,
                    "colour": list(self.palette[index]),
                    "pixels": counts[name],
                    "fraction": areas[name],
                }
                for index, name in enumerate(self.classes)
            ],
        }
        if self.confidence is not None:
            result["mean_confidence"] = float(self.confidence.mean())
        return result

    def save(
        self,
        folder: str | os.PathLike[str],
        stem: str,
        *,
        alpha: float = 0.5,
        legend: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Path]:
        """Write ``stem_mask.png`` (class ids with a palette), ``stem_overlay.png``, ``stem.json``.

        With confidence also ``stem_confidence.png``, 0..255 for 0..1. Each file is written whole or
        not at all.

        Args:
            folder: created if need be.
            stem: start of the file names.
            alpha, legend: as in `overlay`.
            extra: more entries for the JSON file.

        Returns:
            the written paths by kind: "mask", "overlay", "summary", "confidence".

        Raises:
            InputError: the folder cannot be written to.
        """
        folder = Path(folder)
        pictures = {"mask": self.colour_mask(), "overlay": self.overlay(alpha, legend)}
        if self.confidence is not None:
            grey = (self.confidence.cpu().clamp(0, 1) * 255).round().to(torch.uint8)
            pictures["confidence"] = Image.fromarray(grey.numpy())
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
