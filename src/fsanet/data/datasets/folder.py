"""A segmentation data set in a folder of images and a folder of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fsanet.data.images import IMAGE_SUFFIXES, read_file
from fsanet.data.labelled import LabelledImages
from fsanet.data.masks import MASK_SUFFIXES, check_ids, looks_scaled, read_mask
from fsanet.data.palette import Colour, class_palette
from fsanet.errors import InputError


class SegmentationFolder(LabelledImages):
    """Images and masks paired by file name (without the extension).

    Three layouts are known::

        root/images, root/masks                                  split=None
        root/train/images, root/train/masks, root/val/...        split="train"
        root/images, root/masks, root/train.txt (a name a line)  split="train"

    A mask holds one 8-bit class id a pixel (greyscale or palette PNG); ``ignore_index`` marks
    pixels without a label. Masks without an image are left out. Names in a list file may carry
    their extension; blank lines and lines that start with ``#`` are skipped.

    An item is ``(image, mask)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
    int64 (H, W).

    Args:
        root: folder as above.
        split: sub-folder or list file to take; ``None`` for one flat set.
        classes: class names in the order of their ids.
        num_classes: number of classes, if there are no names; one of the two is needed.
        palette: an (r, g, b) in 0..255 for each class; by default distinct hues.
        ignore_index: id in 0..255 of pixels without a label.
        transform: called as ``transform(image, mask)``.

    Attributes:
        names: file stems, in the order of the items.
        image_paths: image files, in the same order.
        mask_paths: mask files, in the same order.

    Raises:
        InputError: at construction for a missing or empty folder, an unknown split, an image
            with no mask, a two-class set of 0/255 masks; at reading for a file that cannot be
            decoded, a mask of another size than its image, or an id out of range.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        palette: Sequence[Colour] | None = None,
        ignore_index: int = 255,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.classes = class_names(classes, num_classes)
        self.num_classes = len(self.classes)
        self.palette = class_palette(palette, self.num_classes)
        if not 0 <= ignore_index <= 255:
            raise InputError(f"ignore_index={ignore_index}: masks are 8-bit, choose one of 0..255")
        self.ignore_index = ignore_index
        self.transform = transform
        images, masks, list_file = _locate(self.root, split)
        self.names, self.image_paths, self.mask_paths = _pair(images, masks, list_file)
        if self.num_classes == 2 and ignore_index == 255 and looks_scaled(self.mask_paths):
            raise InputError(
                f"{masks}: masks hold only 0 and 255, and 255 means ignore: these look like "
                "0/255 masks: divide them by 255, so that they hold 0 and 1"
            )

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Read and check one pair: image uint8 (3, H, W), class ids uint8 (H, W)."""
        image_path, mask_path = self.image_paths[index], self.mask_paths[index]
        image = read_file(image_path)
        mask = read_mask(mask_path)
        if image.shape[1:] != mask.shape:
            turned = tuple(image.shape[1:]) == tuple(mask.shape)[::-1]
            raise InputError(
                f"{mask_path}: mask is {mask.shape[1]}x{mask.shape[0]} pixels, but its image "
                f"{image_path} is {image.shape[2]}x{image.shape[1]}; "
                + (
                    "turn the mask as the image's EXIF orientation says"
                    if turned
                    else "make them the same size"
                )
            )
        check_ids(mask, mask_path, self.num_classes, self.ignore_index)
        return image, mask

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Read every pair, and return the problems found, a line each (none: an empty list).

        Args:
            progress: called as ``progress(done, total)`` after each pair.
        """
        problems = []
        for index in range(len(self)):
            try:
                self.load(index)
            except InputError as error:
                problems.append(str(error))
            if progress is not None:
                progress(index + 1, len(self))
        return problems


def class_names(classes: Sequence[str] | None, num_classes: int | None) -> tuple[str, ...]:
    """Names of the classes; ``"class 0"``, ``"class 1"``... where only a number is given."""
    if classes is None and num_classes is None:
        raise InputError("classes are not known: give classes=[names] or num_classes")
    if classes is None:
        count = int(num_classes or 0)
        names = tuple(f"class {i}" for i in range(count))
    else:
        names = tuple(classes)
        if num_classes is not None and num_classes != len(names):
            raise InputError(f"num_classes={num_classes}, but {len(names)} class names are given")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"class name given twice: {', '.join(twice)}")
    if not 1 <= len(names) <= 255:
        raise InputError(f"{len(names)} classes: 8-bit masks hold 1 to 255 of them")
    return names


def _locate(root: Path, split: str | None) -> tuple[Path, Path, Path | None]:
    """Folder of images, folder of masks, and the list file if the split is one."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path of the data set")
    base, list_file = root, None
    if split is not None:
        if (root / split).is_dir():
            base = root / split
        elif (root / f"{split}.txt").is_file():
            list_file = root / f"{split}.txt"
        else:
            raise InputError(
                f"{root}: no split {split!r}: neither the folder {split}/ nor the list "
                f"{split}.txt is there{_splits_hint(root)}"
            )
    for name in ("images", "masks"):
        if not (base / name).is_dir():
            hint = _splits_hint(base) if split is None else ""
            raise InputError(
                f"{base}: no folder {name}/ in it; images/ and masks/ are needed{hint}"
            )
    return base / "images", base / "masks", list_file


def _splits_hint(root: Path) -> str:
    splits = {p.parent.name for p in root.glob("*/images")} | {p.stem for p in root.glob("*.txt")}
    return f"; splits found: {', '.join(sorted(splits))}" if splits else ""


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files by stem, sorted by name; hidden files are left out."""
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


def _pair(
    image_folder: Path, mask_folder: Path, list_file: Path | None
) -> tuple[list[str], list[Path], list[Path]]:
    images = _files(image_folder, IMAGE_SUFFIXES)
    if not images:
        raise InputError(
            f"{image_folder}: folder holds no image; put {', '.join(sorted(IMAGE_SUFFIXES))} "
            "files in it"
        )
    names = list(images) if list_file is None else _listed(list_file, images, image_folder)
    masks = _files(mask_folder, MASK_SUFFIXES)
    if not masks:
        lossy = any(p.suffix.lower() in (".jpg", ".jpeg") for p in mask_folder.iterdir())
        raise InputError(
            f"{mask_folder}: folder holds no mask; "
            + ("JPEG changes class ids: " if lossy else "")
            + "save masks as 8-bit PNG"
        )
    missing = [name for name in names if name not in masks]
    if missing:
        more = f" (and {len(missing) - 1} more images like it)" if len(missing) > 1 else ""
        raise InputError(
            f"{images[missing[0]]}: image has no mask {mask_folder / (missing[0] + '.png')}{more}; "
            "add the mask or take the image out"
        )
    return names, [images[name] for name in names], [masks[name] for name in names]


def _listed(list_file: Path, images: dict[str, Path], image_folder: Path) -> list[str]:
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{list_file}: list cannot be read as text") from error
    names: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        name = line if line in images else _without_suffix(line)
        if name not in images:
            raise InputError(
                f"{list_file}, line {number}: no image named {line!r} in {image_folder}"
            )
        if name in names:
            raise InputError(
                f"{list_file}, line {number}: {line!r} is already on line {names[name]}; "
                "take one out"
            )
        names[name] = number
    if not names:
        raise InputError(f"{list_file}: list names no image; write one name a line")
    return list(names)


def _without_suffix(line: str) -> str:
    """A listed file's stem; a dot inside a name is not taken for an extension."""
    path = Path(line)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
