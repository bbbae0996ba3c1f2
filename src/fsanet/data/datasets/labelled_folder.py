"""Your own data set as it lies on disk: names by patterns, colours, shapes, drawn splits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
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
from fsanet.data.datasets.base import Listing, MissingData, Pair, PairedImages, Split
from fsanet.data.datasets.drawn import draw_shapes, list_shapes
from fsanet.data.datasets.folder import (
    ids_check,
    list_split,
    listed_names,
    lists_in,
    split_names,
)
from fsanet.data.datasets.patterns import guess_patterns, list_pattern, matching, random_split
from fsanet.data.masks import (
    IGNORE,
    Colour,
    check_ids,
    class_names,
    class_palette,
    looks_scaled,
    read_instances,
    read_mask,
)
from fsanet.errors import InputError, check_range, printable
from fsanet.inputs import file_errors


class LabelledFolder:
    """Which images and labels lie in a folder, how labels are read, and what the splits are.

    Args:
        root: folder of the data set.
        images, masks, annotations, outside, masks_of, colours: see `fsanet.data.FolderData`.
        val_fraction, test_fraction, split_seed: see there, too.

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
            return split_names(self.root)
        if self._by_name():
            names = (one for one in ("train", "val", "test") if self._has(one))
            return list(names) or ["train"]
        # Any other text file may lie beside the images.
        return [name for name in lists_in(self.root) if name in ("train", "val", "test")] or [None]

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
        names = listed_names(file, {name: pair.image for name, pair in known.items()}, self.root)
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
        if self.annotations is not None and "{split}" in self.annotations:
            return self._found(self.annotations.replace("{split}", split)).is_file()
        return bool(matching(self.root, str(self.images).replace("{split}", split)))

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


def folder_notes(folder: LabelledFolder) -> list[str]:
    """What `fsanet data check` remarks about a folder: missing splits, and classes found there."""
    notes = []
    if folder.splits() == [None]:
        notes.append("no splits: train with --data.val-fraction 0.2")
    if folder.classes is not None:
        names = (f"{index} {printable(name)}" for index, name in enumerate(folder.classes))
        notes.append(f"classes: {', '.join(names)}")
    return notes


def splits_to_check(folder: LabelledFolder, num_classes: int | None) -> list[Split]:
    """The splits of a folder for `fsanet.data.check`; any id is right if no number is known."""
    ids = ids_check(num_classes if folder.classes is None else len(folder.classes))
    return [
        Split(name or "all", partial(folder.listing, name), ids=ids, read_labels=folder.read_labels)
        for name in folder.splits()
    ]


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
