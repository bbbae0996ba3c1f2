"""What the data sets on disk share: listing, pairing and reading, and where to get them.

Nothing is downloaded here: licences forbid redistributing these files and most sites ask for an
account. A missing data set is answered with the names of its archives and where to unpack them.
"""

# (H, W) size of an image in pixels

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fsanet.data.images import read_file
from fsanet.data.labelled import LabelledImages
from fsanet.data.masks import IGNORE, Colour, read_mask
from fsanet.errors import InputError, escaped


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set: its kind, the file or folder, and a one-line message.

    Control characters in names are escaped.
    """

    kind: str
    path: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", escaped(self.path))
        object.__setattr__(self, "message", escaped(self.message))


class Pair(NamedTuple):
    """An image and its labels.

    Attributes:
        labels: label file, or whatever else ``read_labels`` reads and `str` names; ``None`` where
            none is published.
        size: (H, W) of the image, where a list gives it.
    """

    name: str
    image: Path
    labels: Any = None
    size: tuple[int, int] | None = None


class Listing(NamedTuple):
    """The pairs of a split, and what is wrong with its names.

    Attributes:
        notes: remarks that are no problem.
        require: raises `InputError` if a package that reads the files is not installed.
    """

    pairs: Sequence[Pair]
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()
    require: Callable[[], object] | None = None

    def and_then(self, other: Listing) -> Listing:
        """The pairs of this listing, followed by those of another."""
        return Listing(
            [*self.pairs, *other.pairs],
            [*self.problems, *other.problems],
            [*self.notes, *other.notes],
            self.require or other.require,
        )


def files_in(folder: Path, ending: str) -> dict[str, Path]:
    """Files of a folder by name without ``ending``, in order; none if there is no such folder."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    return {path.name.removesuffix(ending): path for path in files}


def pair_up(images: Mapping[str, Path], labels: Mapping[str, Path], folder: Path) -> Listing:
    """Pair images and label files by name, in the order of the images.

    Args:
        folder: where the labels are, for messages.
    """
    pairs = [Pair(name, image, labels[name]) for name, image in images.items() if name in labels]
    problems = [
        Problem("no labels", str(image), f"{image}: image has no labels in {folder}")
        for name, image in images.items()
        if name not in labels
    ]
    problems += [
        Problem("no image", str(file), f"{file}: labels have no image")
        for name, file in labels.items()
        if name not in images
    ]
    return Listing(pairs, problems)


def usable_pairs(listing: Listing) -> Sequence[Pair]:
    """The pairs of a listing to train or evaluate on; labels without an image are left out.

    Raises:
        InputError: an image has no labels, an annotation is wrong, or a package that reads the
            files is not installed.
    """
    unlabelled = [p for p in listing.problems if p.kind == "no labels"]
    if unlabelled:
        more = f" (and {len(unlabelled) - 1} more like it)" if len(unlabelled) > 1 else ""
        raise InputError(
            f"{unlabelled[0].message}{more}; add the labels (unpack their archive again), or "
            "remove the image"
        )
    if faults := [p for p in listing.problems if p.kind == "annotation"]:
        raise InputError(faults[0].message)
    if listing.require is not None:
        listing.require()
    return listing.pairs


def check_size(
    labels: Path, size: tuple[int, ...], image: Path, image_size: tuple[int, ...]
) -> None:
    """Raise `InputError` unless labels and image have the same size (H, W)."""
    if size == image_size:
        return
    if size == image_size[::-1]:
        advice = "rotate the labels as the image's EXIF orientation says"
    else:
        advice = "make them the same size, or replace the one that is not as published"
    raise InputError(
        f"{labels}: labels are {size[1]}x{size[0]} pixels, but their image {image} is "
        f"{image_size[1]}x{image_size[0]}; {advice}"
    )


class PairedImages(LabelledImages):
    """Base of the data sets of images and label files.

    An item is ``(image, mask)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
    int64 (H, W) of class ids, ``ignore_index`` where nothing is labelled.

    Args:
        listing: an image without labels is an error, labels without an image are ignored.

    Attributes:
        classes: class names, set by subclasses.
        palette: an (r, g, b) in 0..255 for each class, set by subclasses.
        ids: called as ``ids(values, path)``, maps the values of a label file to class ids, and
            raises `InputError` for invalid ones; set by subclasses.
        read_labels: reads a label file to uint8 (H, W).
        names: names of the images, in the order of the items.
        image_paths: image files, in the same order.
        mask_paths: label files, ``None`` where none is published.

    Raises:
        InputError: at construction for a missing label file; at reading for a file that cannot be
            decoded, labels and image of different size, or an id out of range.
    """

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    ids: Callable[[Tensor, Path], Tensor]
    read_labels: Callable[[Any], Tensor] = staticmethod(read_mask)
    ignore_index = IGNORE

    def __init__(self, listing: Listing) -> None:
        self.pairs = usable_pairs(listing)
        self.names = [pair.name for pair in self.pairs]
        self.image_paths = [pair.image for pair in self.pairs]
        self.mask_paths = [pair.labels for pair in self.pairs]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Load and check one pair: image uint8 (3, H, W), class ids uint8 (H, W)."""
        pair = self.pairs[index]
        image = read_file(pair.image)
        if pair.labels is None:
            return image, torch.full(image.shape[1:], IGNORE, dtype=torch.uint8)
        values = self.read_labels(pair.labels)
        check_size(pair.labels, tuple(values.shape), pair.image, tuple(image.shape[1:]))
        return image, self.ids(values, pair.labels)


class MissingData(InputError):
    """A data set, or a split of one, is not where it was looked for.

    Attributes:
        guide: how to get it, in several lines.
    """

    def __init__(self, message: str, guide: str = "") -> None:
        super().__init__(message)
        self.guide = "\n".join(map(escaped, guide.splitlines()))


@dataclass(frozen=True)
class Split:
    """One split as `fsanet.data.check` looks at it.

    Attributes:
        name: as the summary shows it.
        find: lists its pairs; raises `MissingData` if it is not there.
        expected: published number of images.
        ids: as in `PairedImages`; ``None`` accepts any value.
        read_labels: as in `PairedImages`.
        required: whether its absence is a problem.
    """

    name: str
    find: Callable[[], Listing]
    expected: int | None = None
    ids: Callable[[Tensor, Path], Tensor] | None = None
    read_labels: Callable[[Any], Tensor] = read_mask
    required: bool = True


@dataclass(frozen=True)
class Layout:
    """A data set's folders: how to recognise, get and check them.

    Attributes:
        name: as options give it.
        title: full name of the data set.
        site: official page.
        archives: file names there, and what is in each.
        tree: the unpacked folders, ``DIR`` being the root.
        splits: called as ``splits(root, sbd=..., num_classes=...)``; the splits to check.
        signs: files or folders below the root, any of which shows this layout.
        notes: what else to know.
    """

    name: str
    title: str
    site: str
    archives: Mapping[str, str]
    tree: str
    splits: Callable[..., list[Split]]
    signs: tuple[str, ...] = ()
    notes: str = ""

    def missing(
        self, root: Path, absent: Path, archives: Sequence[str], site: str | None = None
    ) -> MissingData:
        """The error for a file or folder that is not there: what to download, where to unpack it.

        Args:
            site: page of these archives, if the data set has more than one.
        """
        site = site or self.site.split(" (")[0]
        and_root = "" if root.is_dir() else " (nor that folder)"
        return MissingData(
            f"{root}: no {absent.relative_to(root)}{and_root}: give the data set's folder as "
            f"--data.root, or download {' and '.join(archives)} from {site}, unpack in {root}, "
            f"then: fsanet data check {root} --layout {self.name}",
            self.guide(root),
        )

    def guide(self, root: Path) -> str:
        """The long answer: archives, official page, the folders afterwards, and the check."""
        lines = [f"{self.title}: {self.site}", ""]
        if self.archives:
            width = max(map(len, self.archives))
            lines += [f"1. Download (nothing is downloaded for you), and unpack in {root}:"]
            lines += [f"     {name:{width}}  {content}" for name, content in self.archives.items()]
            lines += ["2. Then the folders are:"]
        else:
            lines += ["The folders are:"]
        tree = textwrap.dedent(self.tree).replace("DIR/", f"{root}/").rstrip()
        lines += [textwrap.indent(tree, "     ")]
        if self.archives:
            lines += [f"3. Check them:  fsanet data check {root} --layout {self.name}"]
        if self.notes:
            lines += ["", *textwrap.wrap(self.notes, 96)]
        return "\n".join(lines)
