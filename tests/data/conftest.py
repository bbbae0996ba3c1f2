"""A writer of small data sets on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


class FolderWriter:
    """Writes images and masks of a data set; masks are random ids below ``classes``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(7)

    def image(self, relative: str, size: tuple[int, int] = (12, 16), **save: Any) -> Path:
        path = self._path(relative)
        pixels = self.rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **save)
        return path

    def mask(self, relative: str, values: Any = None, *, classes: int = 3, mode: str = "L") -> Path:
        path = self._path(relative)
        if values is None:
            values = self.rng.integers(0, classes, (12, 16))
        image = Image.fromarray(np.asarray(values, dtype=np.uint8))
        if mode == "P":
            image.putpalette(self.rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        elif mode != "L":
            image = image.convert(mode)
        image.save(path)
        return path

    def pairs(self, base: str, names: list[str], *, classes: int = 3, suffix: str = "png") -> None:
        prefix = f"{base}/" if base else ""
        for name in names:
            self.image(f"{prefix}images/{name}.{suffix}")
            self.mask(f"{prefix}masks/{name}.png", classes=classes)

    def _path(self, relative: str) -> Path:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def write(tmp_path: Path) -> FolderWriter:
    return FolderWriter(tmp_path / "set")


@pytest.fixture
def coco_content() -> dict[str, Any]:
    """An annotation file: three images, the last without annotations, category ids with gaps."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 9, "file_name": "c.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {
                "id": 11,
                "image_id": 3,
                "category_id": 5,
                "bbox": [2, 4, 10, 6],
                "segmentation": [[2, 4, 12, 4, 12, 10, 2, 10]],
                "area": 55.5,
                "iscrowd": 0,
            },
            {
                "id": 12,
                "image_id": 3,
                "category_id": 2,
                "bbox": [0, 0, 30, 20],
                "segmentation": {"size": [20, 30], "counts": [0, 600]},
                "iscrowd": 1,
            },
            {
                "id": 13,
                "image_id": 7,
                "category_id": 2,
                "bbox": [20, 10, 10, 10],
                "segmentation": [[20, 10, 25, 10, 25, 20, 20, 20], [27, 10, 30, 10, 30, 12]],
            },
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
