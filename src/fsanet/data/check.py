"""Verify a data set on disk: numbers, pairs, sizes, ids, and whether every file can be read."""

# H, W size of an image in pixels

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fsanet.data.datasets.ade20k import check_object_info
from fsanet.data.datasets.coco import mask_tools
from fsanet.data.datasets.downloads import MissingData
from fsanet.data.datasets.layouts import Split, guess_layout, splits_of
from fsanet.data.datasets.pairs import (
    IGNORE,
    IdTable,
    Listing,
    Pair,
    Problem,
    check_size,
    ranges,
    read_labels,
)
from fsanet.data.datasets.sbd import require_scipy
from fsanet.data.images import read_image
from fsanet.errors import InputError

__all__ = ["Report", "SplitSummary", "check_data"]

_BATCH = 8  # pairs a worker hands back at once; more would make the bar jump


@dataclass
class SplitSummary:
    """What was found of one split.

    Attributes:
        found: whether it is there at all.
        images: images that have what belongs to them.
        expected: published number of images, ``None`` where there is none.
        ids: values seen in its label files, in short (``"0..33"``); empty where none was read.
        problems: how many are this split's.
    """

    name: str
    found: bool = False
    images: int = 0
    expected: int | None = None
    ids: str = ""
    problems: int = 0


@dataclass
class Report:
    """Outcome of `check_data`.

    Attributes:
        layout: "cityscapes", "ade20k", "voc", "coco", "camvid" or "folder".
        read: number of different pairs that were read; 0 with ``quick``.
        problems: all that is wrong, those of names before those of contents.
        notes: what is worth knowing and is no problem.
        seconds: time it took.
    """

    root: str
    layout: str
    quick: bool
    subset: bool
    splits: list[SplitSummary] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Plain values, ``ok`` and problems as dictionaries."""
        problems = [problem._asdict() for problem in self.problems]
        return {**asdict(self), "ok": self.ok, "problems": problems}


class _Inspection(NamedTuple):
    """What one pair turned out to be; ``values`` has bit v set for each value v of its labels."""

    item: int
    problems: list[Problem]
    values: int
    scored: bool


def check_data(
    root: str | Path,
    layout: str | None = None,
    *,
    quick: bool = False,
    subset: bool = False,
    sbd: str | Path | None = None,
    num_classes: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a data set.

    Args:
        root: its folder.
        layout: one of `fsanet.data.datasets.layouts.LAYOUTS`; by default guessed from the folder.
        quick: compare names and numbers alone, and read no image.
        subset: a part of the published data is enough: numbers are not compared, and splits may
            be missing.
        sbd: SBD's folder, for "voc".
        num_classes: number of classes, for "folder"; without it ids are listed, not checked.
        workers: processes that read; by default one a core, at most 8; 0 reads in this one.
        progress: called as ``progress(done, total)`` while files are read.

    Raises:
        MissingData: no split of the layout is there.
        InputError: the layout cannot be told, an option makes no sense, or a package that reads
            the files is not installed.
    """
    started = time.perf_counter()
    root = Path(root)
    layout = layout or guess_layout(root)
    for name, value, least in (("workers", workers, 0), ("num_classes", num_classes, 1)):
        if value is not None and value < least:
            raise InputError(f"{name}={value}: must be at least {least}")
    if num_classes is not None and num_classes > 255:
        raise InputError(f"num_classes={num_classes}: 8-bit masks hold 1 to 255 of them")
    report = Report(str(root), layout, quick, subset)
    if layout == "coco":
        mask_tools()  # says what to install before anything is read
    splits = splits_of(layout, root, sbd=Path(sbd) if sbd else None, num_classes=num_classes)
    listings = _list_all(splits, report)
    if layout == "ade20k":
        report.problems += check_object_info(root)
    if not quick:
        if any(p.labels and p.labels.suffix == ".mat" for found in listings for p in found.pairs):
            require_scipy()
        if workers is None:
            workers = min(8, os.cpu_count() or 1)
        _read_all(splits, listings, report, workers, progress)
    if layout == "folder" and num_classes is None and not quick:
        report.notes.append("number of classes not given: ids are listed, but not checked")
    report.seconds = time.perf_counter() - started
    return report


def _list_all(splits: list[Split], report: Report) -> list[Listing]:
    """Names, partners and numbers of all splits."""
    listings, absent = [], []
    for split in splits:
        summary = SplitSummary(split.name, expected=split.expected)
        problems: list[Problem] = []
        listing = Listing([], [])
        try:
            listing = split.find()
            summary.found = True
        except MissingData as error:
            absent.append(error)
            if split.required and not report.subset:
                problems.append(Problem("missing", report.root, str(error)))
        except InputError as error:
            summary.found = True
            problems.append(Problem("list", report.root, str(error)))
        problems += [p for p in listing.problems if not (report.subset and p.kind == "count")]
        summary.images = len(listing.pairs)
        unlike = summary.found and split.expected not in (None, summary.images)
        if unlike and not report.subset:
            text = f"{report.root}: {summary.images} images in {split.name}, published are "
            problems.append(Problem("count", report.root, f"{text}{split.expected}"))
        summary.problems = len(problems)
        report.splits.append(summary)
        report.problems += problems
        report.notes += split.notes
        listings.append(listing)
    if len(absent) == len(splits):
        raise absent[0]
    return listings


def _read_all(
    splits: list[Split],
    listings: list[Listing],
    report: Report,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Read each different pair once, and add what is wrong to the first split that has it."""
    owners: dict[tuple[Path, Path | None], int] = {}
    items: list[tuple[Pair, IdTable | None]] = []
    members: list[list[int]] = []  # splits of each item
    for number, (split, listing) in enumerate(zip(splits, listings, strict=True)):
        for pair in listing.pairs:
            key = (pair.image, pair.labels)
            if key in owners:
                members[owners[key]].append(number)
                continue
            owners[key] = len(items)
            items.append((pair, split.ids))
            members.append([number])
    values = [0] * len(splits)
    unscored = [0] * len(splits)
    for done, seen in enumerate(_inspections(items, workers), 1):
        for number in members[seen.item]:
            values[number] |= seen.values
            unscored[number] += not seen.scored
            report.splits[number].problems += len(seen.problems)
        report.problems += seen.problems
        if progress is not None:
            progress(done, len(items))
    report.read = len(items)
    for summary, bits, empty in zip(report.splits, values, unscored, strict=True):
        summary.ids = ranges(v for v in range(256) if bits >> v & 1)
        if empty:
            report.notes.append(f"{summary.name}: {empty} label files hold no pixel that is scored")


def _inspections(items: list[tuple[Pair, IdTable | None]], workers: int) -> Iterator[_Inspection]:
    """Inspections in the order of the items; the loader keeps few of them waiting."""
    if not items:
        return
    loader: DataLoader[Any] = DataLoader(
        _Inspected(items), batch_size=_BATCH, num_workers=workers, collate_fn=list
    )
    for batch in loader:
        yield from batch


class _Inspected(Dataset[_Inspection]):
    """Inspections of pairs; a class, so that spawned workers can get it."""

    def __init__(self, items: list[tuple[Pair, IdTable | None]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Inspection:
        pair, ids = self.items[index]
        problems: list[Problem] = []

        def attempt(kind: str, path: Path, action: Callable[[], Any]) -> Any:
            try:
                return action()
            except InputError as error:
                problems.append(Problem(kind, str(path), str(error)))
            except (OSError, Image.DecompressionBombError) as error:
                problems.append(Problem(kind, str(path), f"{path}: cannot be read ({error})"))
            return None

        image = attempt("unreadable", pair.image, lambda: read_image(pair.image))
        size = None if image is None else tuple(image.shape[1:])
        if size is not None and pair.size is not None and size != pair.size:
            text = (
                f"{pair.image}: {size[1]}x{size[0]} pixels, but the annotations say "
                f"{pair.size[1]}x{pair.size[0]}"
            )
            problems.append(Problem("size", str(pair.image), text))
        path = pair.labels
        if path is None:
            return _Inspection(index, problems, 0, True)
        labels = attempt("unreadable", path, lambda: read_labels(path))
        if labels is None:
            return _Inspection(index, problems, 0, True)
        if size is not None:
            shape = tuple(labels.shape)
            attempt("size", path, lambda: check_size(path, shape, pair.image, size))
        present = np.flatnonzero(np.bincount(labels.numpy().ravel(), minlength=256)).tolist()
        mapped = labels if ids is None else attempt("ids", path, lambda: ids(labels, path))
        scored = mapped is None or bool((mapped != IGNORE).any())
        return _Inspection(index, problems, sum(1 << value for value in present), scored)
