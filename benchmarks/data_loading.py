"""How fast a data module loads: images per second by number of workers, and where the time goes.

    python benchmarks/data_loading.py --config camvid --workers 0 1 2 --json speed.json
    python benchmarks/data_loading.py --config camvid --data.cache false
    python benchmarks/data_loading.py --data CamVidData --data.root /data/camvid

Options that begin with ``--data`` are those of `fsanet train`. Files are read twice and timed the
second time, so that the numbers are those of the processor and not of the disk. Nothing is written
but the JSON file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fsanet.cli.parsing import CommandParser, parse_message
from fsanet.cli.recipe import instantiate_data, read_recipe, recipe_file, spell_out
from fsanet.data.batches import SeededData
from fsanet.data.images import read_file
from fsanet.errors import InputError
from fsanet.files import environment, write_json

_ROUNDS = 5
# What the transforms do; others appear under their class name.
_NAMES = {
    "FitAndScale": "resize",
    "ScaleAndCrop": "resize and crop",
    "RandomCrop": "crop",
    "RandomHorizontalFlip": "flip",
    "PhotometricDistortion": "colour",
    "RandomPhotometricDistort": "colour",
    "PadTo": "pad",
    "ValidInstances": "instances",
}


@dataclass(frozen=True)
class Rate:
    """Images per second of the training pipeline: median, lowest and highest of the rounds."""

    workers: int
    images_per_second: float
    lowest: float
    highest: float
    batches: int


@dataclass(frozen=True)
class Stage:
    """Milliseconds per image in one stage: median and quartiles over the images."""

    name: str
    median: float
    lower: float
    upper: float


def measure_rate(data: SeededData, workers: int, *, batches: int = 20) -> Rate:
    """Time training batches, one after the other as fast as they come, after a warm-up.

    Args:
        data: its own number of workers and epoch length are ignored.
        workers: loader processes; 0 loads in this process.
        batches: batches to time, in 5 rounds.

    Raises:
        InputError: a number is out of range, or the data cannot be read.
    """
    if workers < 0 or batches < _ROUNDS:
        raise InputError(
            f"workers={workers}, batches={batches}: give at least 0 and at least {_ROUNDS}"
        )
    size = batches // _ROUNDS
    # The warm-up uses up what workers had prefetched; spare batches at the end keep them all busy.
    warm_up = 1 + 2 * workers
    total = warm_up + _ROUNDS * size
    rates, began = [], 0.0
    with _changed(data, workers=workers, steps_per_epoch=total + 2 * workers, accumulate=1):
        for index, _ in enumerate(data.train_dataloader(), 1):
            now = time.perf_counter()
            if index >= warm_up and (index - warm_up) % size == 0:
                if index > warm_up:
                    rates.append(size * data.batch_size / (now - began))
                began = now
            if index == total:
                break
    return Rate(workers, statistics.median(rates), min(rates), max(rates), _ROUNDS * size)


def measure_stages(data: SeededData, *, images: int = 24) -> list[Stage]:
    """Time the stages of training items in this process, on one thread as in a worker.

    Args:
        data: the items are the first of its first epoch.
        images: items to time, at least 2; rounded up to whole batches.

    Returns:
        The stages in their order: reading (image and labels apart where the data set has files),
        the transforms, making a batch, and "all" of them.
    """
    if images < 2:
        raise InputError(f"images={images}: give at least 2")
    batches = math.ceil(images / data.batch_size)
    spent: dict[str, list[float]] = defaultdict(list)
    with _changed(data, workers=0, steps_per_epoch=batches, accumulate=1):
        loader = data.train_dataloader()
        augmented: Any = loader.dataset
        dataset, transform = augmented.dataset, augmented.transform
        paths = getattr(getattr(dataset, "dataset", dataset), "image_paths", None)
        timer = _Timer()
        augmented.dataset = _Timed(dataset, timer)
        steps = getattr(transform, "transforms", [transform])

        def timed_transform(*item: Any) -> Any:
            for step in steps:
                with timer(_NAMES.get(type(step).__name__, type(step).__name__)):
                    item = step(*item)
            return item

        augmented.transform = timed_transform
        batch: list[Any] = []
        for key in loader.sampler:
            dataset[key.item]  # into the page cache
            timer.spent = {}
            if paths is not None:
                with timer("decode image"):
                    read_file(paths[key.item])
            batch.append(augmented[key])
            seconds = timer.spent
            if paths is not None:  # reading an item includes its image
                labels = seconds.pop("read") - seconds["decode image"]
                image = seconds.pop("decode image")
                seconds = {"decode image": image, "decode labels": max(0.0, labels), **seconds}
            for name, value in seconds.items():
                spent[name].append(1e3 * value)
            if len(batch) == data.batch_size:
                timer.spent = {}
                with timer("make a batch"):
                    data.collate(batch)
                share = 1e3 * timer.spent["make a batch"] / len(batch)
                spent["make a batch"] += [share] * len(batch)
                batch = []
    spent["all"] = [sum(values) for values in zip(*spent.values(), strict=True)]
    return [_stage(name, values) for name, values in spent.items()]


class _Timer:
    """Adds up seconds by name."""

    spent: dict[str, float]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began


class _Timed:
    def __init__(self, dataset: Any, timer: _Timer) -> None:
        self.dataset, self.timer = dataset, timer

    def __getitem__(self, index: int) -> Any:
        with self.timer("read"):
            return self.dataset[index]


def _stage(name: str, values: Sequence[float]) -> Stage:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Stage(name, median, lower, upper)


@contextmanager
def _changed(data: SeededData, **values: int) -> Iterator[None]:
    """Change attributes of the data module and, as torch does in workers, use one thread."""
    before = {name: getattr(data, name) for name in values}
    threads = torch.get_num_threads()
    vars(data).update(values)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        vars(data).update(before)
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add(
        "--config", metavar="FILE", help="recipe of fsanet train, of which the data section is used"
    )
    add("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    add("--batches", type=int, default=20, metavar="N", help="batches to time (default: 20)")
    add("--images", type=int, default=24, metavar="N", help="images to time by stage (default: 24)")
    add("--json", metavar="FILE", help="write the measurements to this file")
    options, rest = parser.parse_known_args(arguments)
    try:
        data = _make_data(options.config, rest)
        data.dataset("train")  # with cache, decodes everything
        stages = measure_stages(data, images=options.images)
        rates = [measure_rate(data, n, batches=options.batches) for n in options.workers]
    except InputError as error:
        print(f"data_loading: error: {error}", file=sys.stderr)
        return 2
    about = {
        "data": type(data).__name__,
        "images": len(data.dataset("train")),
        "batch_size": data.batch_size,
        "cache": bool(getattr(data, "cache", False)),
    }
    _print(about, stages, rates)
    if options.json is not None:
        found = {"rates": list(map(asdict, rates)), "stages_ms": list(map(asdict, stages))}
        write_json(options.json, about | found | {"versions": environment()})
    return 0


def _make_data(config: str | None, arguments: Sequence[str]) -> SeededData:
    parser = CommandParser()
    parser.add_subclass_arguments(SeededData, "data", required=config is None)
    tokens = spell_out(parser.translate(arguments))
    if config is not None:
        recipe = read_recipe(recipe_file(config))
        if "data" not in recipe:
            raise InputError(f"{config}: has no data section; give a recipe of fsanet train")
        try:
            parser.set_defaults({"data": recipe["data"]})
        except Exception as error:  # whatever it is, the file has caused it
            raise InputError(f"{config}: {parse_message(error)}") from error
    data: SeededData = instantiate_data(parser, parser.parse(tokens))
    return data


def _print(about: dict[str, Any], stages: Sequence[Stage], rates: Sequence[Rate]) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    cached = ", decoded images kept in memory" if about["cache"] else ""
    table = Table(title=f"{about['data']}: batches of {about['batch_size']}{cached}")
    for name in ("workers", "images/s", "lowest", "highest"):
        table.add_column(name, justify="right")
    for rate in rates:
        numbers = (rate.images_per_second, rate.lowest, rate.highest)
        table.add_row(str(rate.workers), *(f"{number:.1f}" for number in numbers))
    console.print(table)
    table = Table(title="One image, one thread")
    for name in ("stage", "ms (median)", "quartiles"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in stages:
        quartiles = f"{stage.lower:.2f} .. {stage.upper:.2f}"
        table.add_row(stage.name, f"{stage.median:.2f}", quartiles)
    console.print(table)
    console.print(" · ".join(f"{name} {value}" for name, value in environment().items()))


if __name__ == "__main__":
    sys.exit(main())
