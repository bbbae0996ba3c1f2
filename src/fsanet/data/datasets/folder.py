"""Your own data set in a folder of images and a folder of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fsanet.data.datasets.base import Layout, Listing, MissingData, Split, pair_up
from fsanet.data.images import IMAGE_SUFFIXES
from fsanet.data.masks import IGNORE, MASK_SUFFIXES, check_ids
from fsanet.errors import InputError
from fsanet.inputs import file_errors, read_text


@file_errors()
def list_split(root: Path, split: str | None) -> Listing:
    """List the pairs of a split; ``None`` for a data set without splits.

    Raises:
        MissingData: the split, or its folder of images or masks, is not there.
        InputError: a folder is empty, two files share a name, or the list file is wrong.
    """
    if not root.is_dir():
        raise MissingData(
            f"{root}: no such folder; check the path of the data set", LAYOUT.guide(root)
        )
    base, list_file = root, None
    if split is not None and (root / split).is_dir():
        base = root / split
    elif split is not None:
        list_file = root / f"{split}.txt"
        if not list_file.is_file():
            raise MissingData(
                f"{root}: no split {split!r}: neither the folder {split}/ nor the list "
                f"{split}.txt is there{_splits_hint(root)}",
                LAYOUT.guide(root),
            )
    for name in ("images", "masks"):
        if not (base / name).is_dir():
            hint = _splits_hint(base) if split is None else ""
            raise MissingData(
                f"{base}: no folder {name}/ in it; images/ and masks/ are needed, unless options "
                f"say what to read (--data.images and --data.masks, or --data.annotations){hint}",
                LAYOUT.guide(root),
            )
    images = _images(base / "images")
    masks = _masks(base / "masks")
    if list_file is not None:
        names = listed_names(list_file, images, base / "images")
        images = {name: images[name] for name in names}
        masks = {name: path for name, path in masks.items() if name in images}
    return pair_up(images, masks, base / "masks")


def _splits_hint(root: Path) -> str:
    splits = {p.parent.name for p in root.glob("*/images")} | {p.stem for p in root.glob("*.txt")}
    return f"; splits found: {', '.join(sorted(splits))}" if splits else ""


def _images(folder: Path) -> dict[str, Path]:
    images = _files(folder, IMAGE_SUFFIXES)
    if not images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{folder}: folder holds no image; put {suffixes} files in it")
    return images


def _masks(folder: Path) -> dict[str, Path]:
    masks = _files(folder, MASK_SUFFIXES)
    if not masks:
        lossy = any(p.suffix.lower() in (".jpg", ".jpeg") for p in folder.iterdir())
        reason = "JPEG changes class ids: " if lossy else ""
        raise InputError(f"{folder}: folder holds no mask; {reason}save masks as 8-bit PNG")
    return masks


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files by stem, sorted by name, without hidden ones."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in files:
            raise InputError(
                f"{folder}: {files[path.stem].name} and {path.name} share a name; keep one"
            )
        files[path.stem] = path
    return files


def listed_names(list_file: Path, images: dict[str, Path], folder: Path) -> list[str]:
    """Names in a list file, in its order."""
    lines = read_text(list_file, "list").splitlines()
    names: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        path = Path(line)
        # Only an image suffix is removed: a name may have a dot in it.
        stem = line.removesuffix(path.suffix) if path.suffix.lower() in IMAGE_SUFFIXES else line
        name = line if line in images else stem
        if name not in images:
            raise InputError(f"{list_file}, line {number}: no image named {line!r} in {folder}")
        if name in names:
            raise InputError(
                f"{list_file}, line {number}: {line!r} is already on line {names[name]}; "
                "remove one of them"
            )
        names[name] = number
    if not names:
        raise InputError(f"{list_file}: list names no image; write one name per line")
    return list(names)


def mask_of(image: Path) -> Path | None:
    """The mask ``masks/NAME.png`` of an image ``images/NAME.jpg``, if it is there."""
    mask = image.parent.parent / "masks" / f"{image.stem}.png"
    return mask if image.parent.name == "images" and mask.is_file() else None


def split_names(root: Path) -> list[str | None]:
    """Splits of the layouts of `SegmentationFolder`."""
    if (root / "images").is_dir():
        return [*lists_in(root)] or [None]
    return [*sorted(path.parent.name for path in root.glob("*/images"))] or ["train"]


def lists_in(root: Path) -> list[str]:
    """Names of the lists of names in a folder, without their ending."""
    return [file.stem for file in sorted(root.glob("*.txt"))]


@file_errors()
def _splits(root: Path, *, num_classes: int | None = None, **_: Any) -> list[Split]:
    ids = ids_check(num_classes)
    return [
        Split(name or "all", partial(list_split, root, name), ids=ids) for name in split_names(root)
    ]


def ids_check(num_classes: int | None) -> Callable[[Tensor, Path], Tensor] | None:
    """The ``ids`` of a `Split`; any id is right if no number of classes is known."""
    if num_classes is None:
        return None
    return partial(check_ids, num_classes=num_classes, ignore_index=IGNORE)


LAYOUT = Layout(
    name="folder",
    title="Your own data set",
    site="your own",
    archives={},
    tree="""\
    DIR/{train,val,test}/images/NAME.jpg    any image format
    DIR/{train,val,test}/masks/NAME.png     8-bit class ids, 255 = unlabelled
    """,
    notes="Or DIR/images, DIR/masks and a list of names per split: DIR/train.txt, DIR/val.txt.",
    splits=_splits,
)
