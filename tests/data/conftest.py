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
