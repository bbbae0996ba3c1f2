"""How fast a data module loads: images a second with so many workers, and where the time goes.

Files are read twice and timed the second time, so that the numbers are those of the processor and
not of the disk. Nothing is written.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fsanet.data.batches import OrderedData
from fsanet.data.images import read_file
from fsanet.data.sampling import AugmentedDataset
from fsanet.errors import InputError

__all__ = ["Rate", "Stage", "measure_rate", "measure_stages"]

_ROUNDS = 5
# Names of the transforms' classes in plain words; others appear under their own.
_NAMES = {
    "RandomScale": "resize",
    "FitAndScale": "resize",
    "ScaleAndCrop": "resize and crop",
    "ClassRatioCrop": "crop",
    "RandomCrop": "crop",
    "RandomHorizontalFlip": "flip",
    "PhotometricDistortion": "colour",
    "RandomPhotometricDistort": "colour",
    "PadTo": "pad",
    "WithoutCrowds": "instances",
    "BoxesAroundMasks": "instances",
}


@dataclass(frozen=True)
class Rate:
    """Images a second of the training pipeline: median, lowest and highest of some rounds."""

    workers: int
    images_per_second: float
    lowest: float
    highest: float
    batches: int


@dataclass(frozen=True)
class Stage:
    """Milliseconds an image of one stage: median and quartiles over the images."""

    name: str
    median: float
    lower: float
    upper: float


def measure_rate(
    data: OrderedData,
    workers: int,
    *,
    batches: int = 20,
    progress: Callable[[int, int], object] | None = None,
) -> Rate:
    """Time training batches, one after the other as fast as they come, after a warm-up.

    Args:
        data: its own number of workers and length of an epoch do not matter.
        workers: processes that load; 0 loads in this one.
        batches: batches timed, in 5 rounds.
        progress: called as ``progress(done, total)`` after each batch.

    Raises:
        InputError: for numbers that make no sense, or data that cannot be read.
    """
    if workers < 0 or batches < _ROUNDS:
        raise InputError(
            f"workers={workers}, batches={batches}: give at least 0 and at least {_ROUNDS}"
        )
    size = batches // _ROUNDS
    # Until what workers had loaded ahead is used up; and more at the end, so that none runs dry.
    warm_up = 1 + 2 * workers
    total = warm_up + _ROUNDS * size
    rates = []
    with _changed(data, workers=workers, steps_per_epoch=total + 2 * workers, accumulate=1):
        loader = data.train_dataloader()
        with _one_thread():
            began = time.perf_counter()
            for index, _ in enumerate(loader, 1):
                now = time.perf_counter()
                if index >= warm_up and (index - warm_up) % size == 0:
                    if index > warm_up:
                        rates.append(size * data.batch_size / (now - began))
                    began = now
                if progress is not None:
                    progress(index, total)
                if index == total:
                    break
    return Rate(workers, statistics.median(rates), min(rates), max(rates), _ROUNDS * size)


def measure_stages(
    data: OrderedData,
    *,
    images: int = 24,
    progress: Callable[[int, int], object] | None = None,
) -> list[Stage]:
    """Time the stages of training items in this process, on one thread as in a worker.

    Args:
        data: the items are the first of its first epoch.
        images: items timed, at least 2; as many as fill whole batches.
        progress: called as ``progress(done, total)`` after each item.

    Returns:
        the stages in their order: reading (image and labels apart where the data set has files),
        the transforms, the making of a batch, and "all" of them.
    """
    if images < 2:
        raise InputError(f"images={images}: give at least 2")
    batches = math.ceil(images / data.batch_size)
    times: dict[str, list[float]] = {}
    totals: list[float] = []
    collated: list[float] = []
    with _changed(data, workers=0, steps_per_epoch=batches, accumulate=1), _one_thread():
        loader = data.train_dataloader()
        augmented: Any = loader.dataset
        batch: list[Any] = []
        for key in loader.sampler:
            spent, item = _time_item(augmented, key)
            for name, value in spent.items():
                times.setdefault(name, []).append(value)
            totals.append(sum(spent.values()))
            batch.append(item)
            if len(batch) == data.batch_size:
                began = time.perf_counter()
                data.collate(batch)
                seconds = time.perf_counter() - began
                collated.append(1e3 * seconds / len(batch))
                batch = []
            if progress is not None:
                progress(len(totals), batches * data.batch_size)
    share = statistics.median(collated)
    times |= {"make a batch": collated, "all": [total + share for total in totals]}
    return [_stage(name, values) for name, values in times.items()]


def _time_item(augmented: AugmentedDataset, key: Any) -> tuple[dict[str, float], Any]:
    """Milliseconds by stage, and the item as training has it."""
    dataset = augmented.dataset
    paths = getattr(getattr(dataset, "dataset", dataset), "image_paths", None)
    dataset[key.item]  # into the page cache
    spent: dict[str, float] = {}
    watch = _Watch(spent)
    if paths is not None:
        read_file(paths[key.item])
        watch("decode image")
    item = dataset[key.item]
    watch("read" if paths is None else "decode labels")
    if paths is not None:  # the item's time holds that of its image
        spent["decode labels"] = max(0.0, spent["decode labels"] - spent["decode image"])
    with augmented.random_state(key):
        for step in getattr(augmented.transform, "transforms", [augmented.transform]):
            watch.start()
            item = step(*item)
            name = type(step).__name__
            watch(_NAMES.get(name, name))
    return spent, item


class _Watch:
    """Adds the milliseconds since the last call to ``spent``, by name."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.spent = spent
        self.start()

    def start(self) -> None:
        self.began = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0.0) + 1e3 * (now - self.began)
        self.began = time.perf_counter()


def _stage(name: str, values: list[float]) -> Stage:
    if len(values) == 1:
        return Stage(name, values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Stage(name, median, lower, upper)


@contextmanager
def _changed(data: OrderedData, **values: int) -> Iterator[None]:
    """Attributes of the data module set, and put back after."""
    before = {name: getattr(data, name) for name in values}
    vars(data).update(values)
    try:
        yield
    finally:
        vars(data).update(before)


@contextmanager
def _one_thread() -> Iterator[None]:
    # As torch has it in the workers of a loader.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
