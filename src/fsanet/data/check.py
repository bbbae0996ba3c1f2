"""Verify a data set on disk: numbers, pairs, sizes, ids, and whether every file can be read."""

# (H, W) size of an image in pixels

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from fsanet.data.datasets import ade20k, camvid, cityscapes, coco, folder, labelled_folder, voc
from fsanet.data.datasets.base import (
    Layout,
    Listing,
    MissingData,
    Pair,
    PairedImages,
    Problem,
    Split,
    check_size,
)
from fsanet.data.images import read_image
from fsanet.data.masks import IGNORE, ranges
from fsanet.data.sampling import check_workers
from fsanet.errors import InputError, check_range, escaped
from fsanet.inputs import file_errors, reason

__all__ = ["LAYOUTS", "Report", "SplitSummary", "check_data", "guess_layout"]

#: Known layouts by name.
LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT for module in (cityscapes, ade20k, voc, coco, camvid, folder)
}

_BATCH = 8  # pairs that a worker returns at a time; with more, the progress bar would jump


@dataclass
class SplitSummary:
    """What was found of one split.

    Attributes:
        found: whether it is there at all.
        images: number of images that have labels.
        expected: published number of images, ``None`` if there is none.
        ids: values found in its label files, in short form (``"0..33"``); empty if none was read.
        problems: number of problems in this split.
    """

    name: str
    found: bool = False
    images: int = 0
    expected: int | None = None
    ids: str = ""
    problems: int = 0


@dataclass
class Report:
    """Result of `check_data`.

    Attributes:
        layout: one of `LAYOUTS`, or the name of a data module.
        read: number of distinct pairs that were read; 0 with ``quick``.
        problems: everything that is wrong, problems of names before those of contents.
        notes: remarks that are no problem.
        seconds: time taken.
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
        """Plain values for JSON, including ``ok``."""
        return {**asdict(self), "ok": self.ok}


class _Inspection(NamedTuple):
    """What reading one pair showed.

    Attributes:
        problems: what is wrong with its files.
        values: the values in its label file, as a set of bits.
        scored: whether any pixel counts in evaluation.
    """

    problems: list[Problem]
    values: int
    scored: bool


@file_errors()
def guess_layout(root: Path) -> str:
    """Recognise the layout of a folder by its files and sub-folders.

    Raises:
        InputError: none is recognised.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; check the path, or give --layout to see what belongs there"
        )
    for layout in LAYOUTS.values():
        if any((root / sign).exists() for sign in layout.signs):
            return layout.name
    if (root / "images").is_dir() or any(root.glob("*/images")):
        return "camvid" if "camvid" in root.resolve().name.lower() else "folder"
    raise InputError(
        f"{root}: no known layout in it; describe it by --data.images and --data.masks "
        f"(docs/own_data.md), or give --layout ({', '.join(LAYOUTS)}) to see what belongs there"
    )


def check_data(
    root: str | Path,
    layout: str | None = None,
    *,
    quick: bool = False,
    subset: bool = False,
    sbd: str | Path | None = None,
    num_classes: int | None = None,
    module: Any = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a data set on disk against what is published.

    Args:
        root: folder of the data set.
        layout: one of `LAYOUTS`; by default guessed from the folder.
        quick: check only names and numbers, without reading the files.
        subset: accept a part of the published data: numbers are not compared, and splits may be
            missing.
        sbd: SBD's folder, for "voc", if it is not below ``root``.
        num_classes: number of classes, for "folder"; without it ids are listed but not checked.
        module: a data module for semantic segmentation that reads ``root``, in place of a layout.
        workers: processes that read; by default one per core, at most 8; 0 reads in this one.
        progress: called as ``progress(done, total)`` while files are read.

    Raises:
        MissingData: no split of the layout is there.
        InputError: the layout is not recognised, an option is invalid, or a package that reads the
            files is not installed.
    """
    started = time.perf_counter()
    root = Path(root)
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    check_workers(workers)
    if num_classes is not None:
        check_range("num_classes", num_classes, 1, 255)
    notes: list[str] = []
    if module is not None:
        layout = type(module).__name__
        splits, notes = _module_splits(module, num_classes)
    else:
        layout, splits, notes = _layout_splits(root, layout, sbd=sbd, num_classes=num_classes)
    report = Report(escaped(str(root)), layout, quick, subset, notes=notes)
    listings = _list_all(splits, report)
    if not quick:
        for listing in listings:
            if listing.require is not None:
                listing.require()
        _read_all(splits, listings, report, workers, progress)
        if all(split.ids is None for split in splits) and layout != "coco":
            report.notes.append("number of classes not given: ids are listed, but not checked")
    report.seconds = time.perf_counter() - started
    return report


def _layout_splits(
    root: Path, layout: str | None, **options: Any
) -> tuple[str, list[Split], list[str]]:
    """The name of a layout, its splits, and remarks; patterns of names where none is recognised."""
    try:
        layout = layout or guess_layout(root)
    except InputError:
        guessed = labelled_folder.guess_options(root)
        if guessed is None:
            raise
        found = labelled_folder.LabelledFolder(root, **guessed)  # type: ignore[arg-type]
        notes = [labelled_folder.guess_note(guessed), *labelled_folder.folder_notes(found)]
        return "folder", labelled_folder.splits_to_check(found, options["num_classes"]), notes
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r}: use one of {', '.join(LAYOUTS)}")
    return layout, LAYOUTS[layout].splits(root, **options), []


def _module_splits(module: Any, num_classes: int | None) -> tuple[list[Split], list[str]]:
    """The splits of a data module, and remarks; any id is right if their number is not known."""
    folder = getattr(module, "folder", None)
    if isinstance(folder, labelled_folder.LabelledFolder):
        splits = labelled_folder.splits_to_check(folder, num_classes)
        return splits, labelled_folder.folder_notes(folder)
    splits = []
    for stage in ("train", "val", "test"):
        dataset = module.make_dataset(stage)
        if not isinstance(dataset, PairedImages):
            raise InputError(
                f"{type(module).__name__}: has no files of labels to check; fsanet data stats "
                "reads its items, as training does"
            )
        found = partial(Listing, dataset.pairs)
        splits.append(Split(stage, found, ids=dataset.ids, read_labels=dataset.read_labels))
    return splits, []


def _list_all(splits: list[Split], report: Report) -> list[Listing]:
    """List the pairs of all splits, and report what is wrong with names and numbers."""
    listings, absent = [], []
    for split in splits:
        summary = SplitSummary(escaped(split.name), expected=split.expected)
        problems: list[Problem] = []
        listing = Listing([])
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
        differs = summary.found and split.expected not in (None, summary.images)
        if differs and not report.subset:
            text = f"{report.root}: {summary.images} images in {split.name}, published are "
            problems.append(Problem("count", report.root, f"{text}{split.expected}"))
        summary.problems = len(problems)
        report.splits.append(summary)
        report.problems += problems
        report.notes += map(escaped, listing.notes)
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
    """Read each distinct pair once, and report what is wrong with the files."""
    owners: dict[tuple[Path, Path | None], list[int]] = {}  # numbers of the splits of each pair
    items: list[tuple[Pair, Split]] = []
    for number, (split, listing) in enumerate(zip(splits, listings, strict=True)):
        for pair in listing.pairs:
            key = (pair.image, pair.labels)
            if key not in owners:
                items.append((pair, split))
            owners.setdefault(key, []).append(number)
    values = [0] * len(splits)
    unscored = [0] * len(splits)
    members = owners.values()
    for done, (numbers, found) in enumerate(
        zip(members, _inspections(items, workers), strict=True), 1
    ):
        for number in numbers:
            values[number] |= found.values
            unscored[number] += not found.scored
            report.splits[number].problems += len(found.problems)
        report.problems += found.problems
        if progress is not None:
            progress(done, len(items))
    report.read = len(items)
    for summary, bits, empty in zip(report.splits, values, unscored, strict=True):
        summary.ids = ranges(v for v in range(256) if bits >> v & 1)
        if empty:
            report.notes.append(f"{summary.name}: {empty} label files hold no pixel that is scored")


def _inspections(items: list[tuple[Pair, Split]], workers: int) -> Iterator[_Inspection]:
    """Inspections in the order of the items."""
    if workers == 0:
        yield from map(_inspect, items)
        return
    try:
        with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(_inspect, items, chunksize=_BATCH)
    except BrokenProcessPool as error:
        raise InputError(
            "a process that reads files was ended by the system, probably for lack of memory; use "
            "fewer --workers"
        ) from error


def _inspect(item: tuple[Pair, Split]) -> _Inspection:
    """Read the files of one pair."""
    pair, split = item
    problems: list[Problem] = []

    def attempt(kind: str, path: Path, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except InputError as error:
            problems.append(Problem(kind, str(path), str(error)))
        except Exception as error:  # one bad file must not stop the check
            problems.append(Problem(kind, str(path), f"{path}: cannot be read ({reason(error)})"))
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
    labels = None
    if path is not None:
        labels = attempt("unreadable", path, lambda: split.read_labels(path))
    if path is None or labels is None:
        return _Inspection(problems, 0, True)
    if size is not None:
        shape = tuple(labels.shape)
        attempt("size", path, lambda: check_size(path, shape, pair.image, size))
    counts = Image.fromarray(labels.numpy()).histogram()  # without converting to 64 bits
    present = [value for value, count in enumerate(counts) if count]
    ids = split.ids
    mapped = labels if ids is None else attempt("ids", path, lambda: ids(labels, path))
    scored = mapped is None or bool((mapped != IGNORE).any())
    return _Inspection(problems, sum(1 << value for value in present), scored)
