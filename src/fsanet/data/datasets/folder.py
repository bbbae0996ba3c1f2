"""Your own data set: a folder of images and a folder of masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fsanet.data.datasets.base import Layout, Listing, MissingData, PairedImages, Split, pair_up
from fsanet.data.images import IMAGE_SUFFIXES
from fsanet.data.masks import (
    IGNORE,
    MASK_SUFFIXES,
    Colour,
    check_ids,
    class_names,
    class_palette,
    looks_scaled,
)
from fsanet.errors import InputError, check_range
from fsanet.inputs import file_errors, read_text


class SegmentationFolder(PairedImages):
    """Images and masks paired by file name (without the extension).

    Three layouts are supported::

        root/images, root/masks                                    split=None
        root/train/images, root/train/masks, root/val/...          split="train"
        root/images, root/masks, root/train.txt (a name per line)  split="train"

    A mask holds one 8-bit class id per pixel (greyscale or palette PNG); ``ignore_index`` marks
    unlabelled pixels. Masks without an image are ignored. Names in a list file may have an
    extension; blank lines and lines that start with ``#`` are skipped.

    Args:
        root: folder as above.
        split: sub-folder or list file to take; ``None`` for a data set without splits.
        classes: class names in the order of their ids.
        num_classes: number of classes, if there are no names; one of the two is needed.
        palette: an (r, g, b) in 0..255 for each class; by default distinct hues.
        ignore_index: id in 0..255 of unlabelled pixels.

    Raises:
        InputError: at construction for a missing or empty folder, an unknown split, an image
            without a mask, or a two-class set of 0/255 masks; at reading as `PairedImages`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        palette: Sequence[Colour] | None = None,
        ignore_index: int = IGNORE,
    ) -> None:
        self.classes = class_names(classes, num_classes)
        self.palette = class_palette(palette, self.num_classes)
        check_range("ignore_index", ignore_index, 0, 255)
        self.ignore_index = ignore_index
        self.ids = partial(check_ids, num_classes=self.num_classes, ignore_index=ignore_index)
        super().__init__(list_split(Path(root), split))
        masks = [path for path in self.mask_paths if path is not None]
        if self.num_classes == 2 and ignore_index == 255 and looks_scaled(masks):
            raise InputError(
                f"{masks[0].parent}: masks hold only 0 and 255, and 255 means ignore: these look "
                "like 0/255 masks: divide them by 255, so that they hold 0 and 1"
            )


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
                f"{base}: no folder {name}/ in it; images/ and masks/ are needed{hint}",
                LAYOUT.guide(root),
            )
    images = _images(base / "images")
    masks = _masks(base / "masks")
    if list_file is not None:
        names = _listed(list_file, images, base / "images")
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


def _listed(list_file: Path, images: dict[str, Path], folder: Path) -> list[str]:
    """Names in a list file, in its order."""
    lines = read_text(list_file, "list").splitlines()
    names: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        path = Path(line)
        # Only an image suffix is removed: a name may have a dot in it.
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
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


@file_errors()
def _splits(root: Path, *, num_classes: int | None = None, **_: Any) -> list[Split]:
    names: Sequence[str | None]
    if (root / "images").is_dir():
        names = [file.stem for file in sorted(root.glob("*.txt"))] or [None]
    else:
        names = [*sorted(path.parent.name for path in root.glob("*/images"))] or ["train"]
    ids = None
    if num_classes is not None:
        ids = partial(check_ids, num_classes=num_classes, ignore_index=IGNORE)
    return [Split(name or "all", partial(list_split, root, name), ids=ids) for name in names]


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
