"""A small data set on disk: blocks of three colours, 64 x 64, in train, val and test."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_blocks(root: Path) -> None:
    """Write images and masks; a band at the top of each mask is ignored."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for index in range(count):
            mask = rng.integers(0, 3, (4, 4)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            colours = np.stack([mask == c for c in range(3)], -1) * 150
            image = (colours + rng.integers(0, 80, colours.shape)).astype(np.uint8)
            mask[:4] = 255
            Image.fromarray(image).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
