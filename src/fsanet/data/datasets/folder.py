"""Your own data set: a folder of images and a folder of masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fsanet.data.annotations import scan_annotations
from fsanet.data.colours import (
    ColourTable,
    count_colours,
    hex_names,
    holds_colours,
    read_colour_table,
)
from fsanet.data.datasets.base import (
    Layout,
    Listing,
    MissingData,
    Pair,
    PairedImages,
    Split,
    pair_up,
)
from fsanet.data.datasets.drawn import draw_shapes, list_shapes
from fsanet.data.datasets.patterns import guess_patterns, list_pattern, random_split
from fsanet.data.images import IMAGE_SUFFIXES
from fsanet.data.masks import (
    IGNORE,
    MASK_SUFFIXES,
    Colour,
    check_ids,
    class_names,
    class_palette,
    looks_scaled,
    read_instances,
    read_mask,
)
from fsanet.errors import InputError, check_range
from fsanet.inputs import file_errors, read_text


class LabelledFolder:
    """Which images and labels lie in a folder, how labels are read, and what the splits are.

    Args:
        root: folder of the data set.
        images: pattern of the images' names below ``root``, such as ``*.jpg`` or
            ``{split}/photos/*``; None for one of the layouts of `SegmentationFolder`.
        masks: path of an image's mask, such as ``{stem}_mask.png``, where ``{stem}`` is the image's
            name without its ending, ``{name}`` with it, and ``{folder}`` its folder below ``root``;
            beside the image if no folder is given, else below ``root``.
        annotations: file of shapes in place of masks, of COCO, CVAT (XML of images) or Label Studio
            (JSON), found from ``root`` or the current folder; may hold ``{split}``. Images are then
            ``**/*`` by default, and those that the file does not list are left out.
        outside: what pixels outside of all shapes are: ``"background"``, class 0, or ``"ignore"``.
        masks_of: what a mask's values are: ``"classes"``, or ``"instances"``: 0 is background, all
            else the one class "object".
        colours: colour table of masks that hold colours, a file (see `read_colour_table`) found
            from ``root`` or the current folder; or ``"auto"``: each colour in the masks is a class.
        val_fraction: share of the images, drawn at random, that is the validation split.
        test_fraction: share that is the test split; 0 tests on the validation images.
        split_seed: seed of that choice; not that of the training, so that another training has the
            same split.

    Attributes:
        classes, palette: names and colours, where colours or instances give them, else None.
        categories: id by name of the categories of annotations; empty without annotations.
        read_labels: reads the labels of a pair to uint8 (H, W).

    Raises:
        InputError: an option is wrong, or the colours cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str | None = None,
        masks: str | None = None,
        annotations: str | None = None,
        outside: Literal["background", "ignore"] = "background",
        masks_of: Literal["classes", "instances"] = "classes",
        colours: str | None = None,
        val_fraction: float | None = None,
        test_fraction: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        self.root = Path(root)
        if annotations is not None:
            if masks is not None or colours is not None or masks_of != "classes":
                raise InputError("annotations take the place of masks, masks_of and colours")
            images = "**/*" if images is None else images
        elif (images is None) != (masks is None):
            raise InputError("give images and masks, such as images='*.jpg' masks='{stem}.png'")
        if outside not in ("background", "ignore"):
            raise InputError(f"outside={outside!r}: use background or ignore")
        if masks_of not in ("classes", "instances"):
            raise InputError(f"masks_of={masks_of!r}: use classes or instances")
        if masks_of == "instances" and colours is not None:
            raise InputError("masks_of=instances takes every value but 0; leave out colours")
        check_range("test_fraction", test_fraction, 0.0, 0.99)
        check_range("split_seed", split_seed, 0, 2**63)
        self.fractions: dict[str, float] = {}
        if val_fraction is not None:
            check_range("val_fraction", val_fraction, 0.0, 0.99, above=True)
            self.fractions["val"] = val_fraction
        if test_fraction:
            if val_fraction is None:
                raise InputError("test_fraction needs val_fraction: both are drawn together")
            self.fractions["test"] = test_fraction
        self.images, self.masks, self.annotations = images, masks, annotations
        self.outside = outside
        self.split_seed = split_seed
        self.classes: tuple[str, ...] | None = None
        self.palette: tuple[Colour, ...] | None = None
        self.categories: dict[str, int] = {}
        self.read_labels: Callable[[Any], Tensor] = read_mask
        if masks_of == "instances":
            self.classes = ("background", "object")
            self.palette = ((0, 0, 0), *class_palette(None, 1))
            self.read_labels = read_instances
        if colours is not None:
            table = self._colour_table(colours)
            self.classes, self.palette, self.read_labels = table.classes, table.palette, table.read
        if annotations is not None:
            self.categories = self._categories()
            first = ["background"] if outside == "background" else []
            self.classes = tuple(dict.fromkeys([*first, *self.categories]))
            self.palette = class_palette(None, len(self.classes))
            if outside == "background":
                self.palette = ((0, 0, 0), *self.palette[:-1])
            self.read_labels = draw_shapes

    def splits(self) -> list[str | None]:
        """Names of the splits that are there; None for a folder without splits."""
        if self.fractions:
            return ["train", *self.fractions]
        if self.images is None:
            return _split_names(self.root)
        if self._by_name():
            names = (one for one in ("train", "val", "test") if self._has(one))
            return list(names) or ["train"]
        # Any other text file may lie beside the images.
        return [name for name in _lists(self.root) if name in ("train", "val", "test")] or [None]

    def listing(self, split: str | None) -> Listing:
        """The pairs of a split; None for all.

        Raises:
            MissingData: the split is not there.
            InputError: see `list_split` and `list_pattern`.
        """
        if self.fractions and split is not None:
            chosen = self._drawn["val" if split == "test" not in self._drawn else split]
            known = self._pairs
            pairs = [known[name] for name in chosen]
            # What is wrong with the whole is reported once.
            return self._all._replace(pairs=pairs) if split == "train" else Listing(pairs)
        if self.images is None:
            return list_split(self.root, split)
        if self._by_name():
            return self._find(str(split))
        if split is None:
            return self._all
        file = self.root / f"{split}.txt"
        if not file.is_file():
            raise MissingData(
                f"{self.root}: no split {split!r}; draw one with val_fraction=0.2, write the list "
                f"{file.name}, or put {{split}} into images"
            )
        known = self._pairs
        names = _listed(file, {name: pair.image for name, pair in known.items()}, self.root)
        return Listing([known[name] for name in names])

    @cached_property
    def _all(self) -> Listing:
        return list_split(self.root, None) if self.images is None else self._find("")

    @property
    def _pairs(self) -> dict[str, Pair]:
        return {pair.name: pair for pair in self._all.pairs}

    def _find(self, split: str) -> Listing:
        """Pairs by patterns, with the name of a split in the place of ``{split}``."""
        assert self.images is not None
        images = self.images.replace("{split}", split)
        if self.annotations is None:
            assert self.masks is not None
            return list_pattern(self.root, images, self.masks.replace("{split}", split))
        file = self._found(self.annotations.replace("{split}", split))
        if not file.is_file():
            raise MissingData(f"{file}: no such annotation file; check the path")
        assert self.classes is not None
        return list_shapes(self.root, images, file, self.classes, self.outside == "ignore")

    @cached_property
    def _drawn(self) -> dict[str, list[str]]:
        names = [pair.name for pair in self._all.pairs]
        return random_split(names, self.fractions, self.split_seed)

    def _by_name(self) -> bool:
        """Whether the name of a split is part of the patterns."""
        return any("{split}" in text for text in (self.images, self.annotations) if text)

    def _has(self, split: str) -> bool:
        text = self.annotations or self.images or ""
        if "{split}" not in text:
            text = self.images or ""
        return any(self.root.glob(text.replace("{split}", split)))

    def _found(self, file: str) -> Path:
        """A file given from the root or from the current folder."""
        at_root = self.root / file
        return at_root if at_root.is_file() else Path(file)

    def _categories(self) -> dict[str, int]:
        """Categories of the annotations of all splits, with the id of each where it is first."""
        assert self.annotations is not None
        found: dict[str, int] = {}
        for split in self.splits() if "{split}" in self.annotations else [None]:
            file = self._found(self.annotations.replace("{split}", str(split)))
            for number, name in scan_annotations(file)[0].categories.items():
                found.setdefault(name, number)
        return found

    def _colour_table(self, colours: str) -> ColourTable:
        if colours == "auto":
            known = self.splits() if self.images is None or self._by_name() else [None]
            labels = [pair.labels for name in known for pair in self.listing(name).pairs]
            found = count_colours(path for path in labels if isinstance(path, Path))
            return hex_names(found)
        return read_colour_table(self._found(colours))


def guess_options(root: Path) -> dict[str, str] | None:
    """Options of `LabelledFolder` that fit a folder; None if none do.

    They are patterns of images and masks, and colours if the masks hold them; or else a file of
    annotations.
    """
    if not root.is_dir():
        return None
    patterns = guess_patterns(root)
    if patterns is None:
        for file in sorted([*root.glob("*.json"), *root.glob("*.xml")]):
            with contextlib.suppress(InputError):
                scan_annotations(file)
                return {"annotations": file.name}
        return None
    options = dict(zip(("images", "masks"), patterns, strict=True))
    labels = LabelledFolder(root, **options).listing(None).pairs[0].labels  # type: ignore[arg-type]
    with contextlib.suppress(InputError):  # said when all masks are read
        if holds_colours(labels):
            options["colours"] = "auto"
    return options


def guess_note(options: Mapping[str, str]) -> str:
    """A line that says by which options of `FolderData` a folder was read."""
    return "read as " + " ".join(f"--data.{name} '{text}'" for name, text in options.items())


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
        root: folder as above, or a `LabelledFolder` for what lies there in other ways.
        split: sub-folder or list file to take; ``None`` for a data set without splits.
        classes: class names in the order of their ids.
        num_classes: number of classes, if there are no names; one of the two is needed unless a
            `LabelledFolder` knows them.
        palette: an (r, g, b) in 0..255 for each class; by default distinct hues.
        ignore_index: id in 0..255 of unlabelled pixels.

    Raises:
        InputError: at construction for a missing or empty folder, an unknown split, an image
            without a mask, or a two-class set of 0/255 masks; at reading as `PairedImages`.
    """

    def __init__(
        self,
        root: str | Path | LabelledFolder,
        *,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        palette: Sequence[Colour] | None = None,
        ignore_index: int = IGNORE,
    ) -> None:
        folder = root if isinstance(root, LabelledFolder) else LabelledFolder(root)
        if classes is None and num_classes is None:
            classes = folder.classes
        self.classes = class_names(classes, num_classes)
        self.palette = class_palette(palette, self.num_classes)
        check_range("ignore_index", ignore_index, 0, 255)
        self.ignore_index = ignore_index
        self.ids = partial(check_ids, num_classes=self.num_classes, ignore_index=ignore_index)
        self.read_labels = folder.read_labels  # type: ignore[method-assign]
        with file_errors():
            super().__init__(folder.listing(split))
        masks = [path for path in self.mask_paths if isinstance(path, Path)]
        two_ids = folder.classes is None and self.num_classes == 2 and ignore_index == 255
        if two_ids and looks_scaled(masks):
            raise InputError(
                f"{masks[0].parent}: masks hold only 0 and 255, and 255 means ignore: these look "
                "like 0/255 masks: divide them by 255, so that they hold 0 and 1, or give "
                "masks_of=instances, which takes all but 0 as the second class"
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


def _split_names(root: Path) -> list[str | None]:
    """Splits of the layouts of `SegmentationFolder`."""
    if (root / "images").is_dir():
        return [*_lists(root)] or [None]
    return [*sorted(path.parent.name for path in root.glob("*/images"))] or ["train"]


def _lists(root: Path) -> list[str]:
    return [file.stem for file in sorted(root.glob("*.txt"))]


@file_errors()
def _splits(root: Path, *, num_classes: int | None = None, **_: Any) -> list[Split]:
    return splits_to_check(LabelledFolder(root), num_classes)


def splits_to_check(folder: LabelledFolder, num_classes: int | None) -> list[Split]:
    """The splits of a folder for `fsanet.data.check`; any id is right if no number is known."""
    if folder.classes is not None:
        num_classes = len(folder.classes)
    ids = None
    if num_classes is not None:
        ids = partial(check_ids, num_classes=num_classes, ignore_index=IGNORE)
    return [
        Split(name or "all", partial(folder.listing, name), ids=ids, read_labels=folder.read_labels)
        for name in folder.splits()
    ]


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
