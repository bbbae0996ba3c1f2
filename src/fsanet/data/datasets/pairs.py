"""Images paired with label files, as published data sets have them."""

# H, W size of an image in pixels

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fsanet.data.colours import look_up
from fsanet.data.datasets.class_names import LabelSet
from fsanet.data.images import read_file
from fsanet.data.labelled import LabelledImages
from fsanet.data.masks import read_mask
from fsanet.errors import InputError

__all__ = ["IGNORE", "IdTable", "Listing", "Pair", "PairedImages", "Problem", "pair_up", "ranges"]

#: What a pixel without a label becomes.
IGNORE = 255
_FAULT = 254  # no class: data sets have fewer of them


class Problem(NamedTuple):
    """Something wrong with a data set: its kind, the file or folder, and one line about it."""

    kind: str
    path: str
    message: str


class Pair(NamedTuple):
    """An image and its labels.

    Attributes:
        labels: 8-bit PNG or SBD's ``.mat``; ``None`` where none are published.
        size: (H, W) that the image has to have, where a list says so.
    """

    name: str
    image: Path
    labels: Path | None = None
    size: tuple[int, int] | None = None


class Listing(NamedTuple):
    """The pairs of a split in the order of their names, and what has no partner."""

    pairs: list[Pair]
    problems: list[Problem]


class IdTable:
    """What the values of label files mean: a class, no label, or a fault.

    Args:
        title: name of the data set, for messages.
        meaning: class id, or ``IGNORE``, of each value that is allowed.

    >>> table = IdTable("toy", {0: IGNORE, 1: 0, 2: 1})
    >>> table(torch.tensor([[0, 1, 2]], dtype=torch.uint8), "a.png").tolist()
    [[255, 0, 1]]
    """

    def __init__(self, title: str, meaning: Mapping[int, int]) -> None:
        self.title = title
        self.legal = ranges(meaning)
        self.table = torch.full((256,), _FAULT, dtype=torch.uint8)
        for value, label in meaning.items():
            self.table[value] = label

    def __call__(self, values: Tensor, path: str | Path) -> Tensor:
        """Class ids uint8 (H, W) of the uint8 values (H, W) of a file.

        Raises:
            InputError: naming the file and the values that mean nothing.
        """
        labels = look_up(values, self.table)
        faults = labels == _FAULT
        if faults.any():
            found = values[faults].unique().tolist()
            are = "ids {} are" if len(found) > 1 else "id {} is"
            raise InputError(
                f"{path}: {are.format(ranges(found))} out of range for {self.title} "
                f"({self.legal}); replace the file by the published one"
            )
        return labels


class PairedImages(LabelledImages):
    """Base of the published data sets.

    An item is ``(image, mask)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
    int64 (H, W) of class ids, 255 where nothing is labelled.

    Args:
        root: folder of the data set.
        listing: its pairs; an image whose labels are missing is an error, labels whose image is
            missing are left out.
        label_set: names and colours of the classes.
        ids: meaning of the values in the label files.
        transform: called as ``transform(image, mask)``.

    Attributes:
        names: names of the images, in the order of the items.
        image_paths: image files, in the same order.
        mask_paths: label files, ``None`` where none are published.

    Raises:
        InputError: at construction for a label file that is missing; at reading for a file that
            cannot be decoded, labels of another size than their image, or an id out of range.
    """

    ignore_index = IGNORE

    def __init__(
        self,
        root: Path,
        listing: Listing,
        *,
        label_set: LabelSet,
        ids: IdTable,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        lacking = [p for p in listing.problems if p.kind == "no labels"]
        if lacking:
            more = f" (and {len(lacking) - 1} more like it)" if len(lacking) > 1 else ""
            raise InputError(f"{lacking[0].message}{more}; unpack the archive of labels again")
        self.root = root
        self.pairs = listing.pairs
        self.ids = ids
        self.classes, self.palette = label_set
        self.num_classes = len(self.classes)
        self.transform = transform
        self.names = [pair.name for pair in self.pairs]
        self.image_paths = [pair.image for pair in self.pairs]
        self.mask_paths = [pair.labels for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Read and check one pair: image uint8 (3, H, W), class ids uint8 (H, W)."""
        pair = self.pairs[index]
        image = read_file(pair.image)
        if pair.labels is None:
            return image, torch.full(image.shape[1:], IGNORE, dtype=torch.uint8)
        values = read_labels(pair.labels)
        check_size(pair.labels, tuple(values.shape), pair.image, tuple(image.shape[1:]))
        return image, self.ids(values, pair.labels)


def read_labels(path: Path) -> Tensor:
    """Values uint8 (H, W) of a label file: an 8-bit image, or SBD's ``.mat``."""
    if path.suffix == ".mat":
        from fsanet.data.datasets.sbd import read_sbd

        return read_sbd(path)
    return read_mask(path)


def check_size(
    path: Path | str, size: tuple[int, ...], image: Path | str, image_size: tuple[int, ...]
) -> None:
    """Raise `InputError` unless labels and image are of one size, both (H, W)."""
    if size != image_size:
        raise InputError(
            f"{path}: labels of {size[1]}x{size[0]} pixels, but their image {image} is "
            f"{image_size[1]}x{image_size[0]}; replace the one that is not as published"
        )


def pair_up(images: Mapping[str, Path], labels: Mapping[str, Path]) -> Listing:
    """Images and label files of the same key; what is alone becomes a problem."""
    pairs = [Pair(name, images[name], labels[name]) for name in sorted(images) if name in labels]
    problems = [
        Problem("no labels", str(images[name]), f"{images[name]}: image has no labels")
        for name in sorted(images)
        if name not in labels
    ]
    problems += [
        Problem("no image", str(labels[name]), f"{labels[name]}: labels have no image")
        for name in sorted(labels)
        if name not in images
    ]
    return Listing(pairs, problems)


def ranges(values: Iterable[int]) -> str:
    """Whole numbers in short.

    >>> ranges([255, 0, 1, 2, 7])
    '0..2, 7, 255'
    """
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)
