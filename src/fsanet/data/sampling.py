"""Which sample is seen when: a pure function of the seed, the epoch and the position in it.

The training sampler yields a `SampleKey` per item, and `AugmentedDataset` seeds the random state
from that key around each transform. So neither the number of workers, nor the number of processes,
nor any other use of the random state changes what is trained on.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from fsanet.errors import InputError, check_range

__all__ = [
    "AugmentedDataset",
    "EvalSampler",
    "SampleKey",
    "TrainSampler",
    "check_seed",
    "check_workers",
    "seeded",
]

# Separate random streams for the same (seed, epoch, position).
_ORDER, _AUGMENTATION = 0, 1


class SampleKey(NamedTuple):
    """One training sample: ``item`` of the data set is at ``position`` of ``epoch``."""

    epoch: int
    position: int
    item: int


class TrainSampler(Sampler[SampleKey]):
    """Endless seeded permutations of the data set, cut into epochs of a fixed length.

    All processes together walk through one stream of permutations, one after the other; an epoch
    may be shorter or longer than the data set. A batch over all processes is a run of consecutive
    positions of the stream. So ``world`` processes with ``accumulate`` batches of ``batch_size``
    see in each optimiser step what one process sees in a batch of
    ``world * accumulate * batch_size``.

    Args:
        length: number of items in the data set.
        batch_size: samples per process and batch.
        steps_per_epoch: optimiser steps per epoch.
        accumulate: batches per optimiser step.
        seed: seed of the order.
        rank: this process, 0..world-1.
        world: number of processes.

    Attributes:
        first_batch: batches of the epoch to leave out, because they were trained on before.

    Iterating yields the keys of this process, batch after batch, for the epoch last given to
    `set_epoch`; their number is ``steps_per_epoch * accumulate * batch_size``.

    Raises:
        InputError: the data set is empty, or the rank is out of range.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        steps_per_epoch: int,
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if length < 1:
            raise InputError("the data set is empty")
        _check_rank(rank, world)
        self.length_of_data = length
        self.batch_size = batch_size
        self.batches = steps_per_epoch * accumulate
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        global_batch = self.batch_size * self.world
        start = epoch * self.batches * global_batch
        current, order = -1, np.empty(0, np.int64)
        for batch in range(self.first_batch, self.batches):
            first = batch * global_batch + self.rank * self.batch_size
            for position in range(first, first + self.batch_size):
                number, offset = divmod(start + position, self.length_of_data)
                if number != current:
                    rng = np.random.default_rng((self.seed, _ORDER, number))
                    current, order = number, rng.permutation(self.length_of_data)
                yield SampleKey(epoch, position, int(order[offset]))


class EvalSampler(Sampler[int]):
    """Every item once over all processes: ``rank``, ``rank + world``, ...

    Nothing is padded or repeated, so one process may have an item less than another.
    """

    def __init__(self, length: int, *, rank: int = 0, world: int = 1) -> None:
        _check_rank(rank, world)
        self.indices = range(rank, length, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class AugmentedDataset(Dataset[tuple[Any, Any]]):
    """The items of another data set, looked up by `SampleKey` and randomly transformed.

    Args:
        dataset: its items are ``(image, target)``.
        transform: called as ``transform(image, target)``; may draw from the random states of torch
            (CPU), NumPy and Python.
        seed: determines the random state of the transform, together with epoch and position.
    """

    def __init__(self, dataset: Any, transform: Callable[..., Any], seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Any, Any]:
        image, target = self.dataset[key.item]
        with seeded(self.seed, _AUGMENTATION, key.epoch, key.position):
            return self.transform(image, target)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the random states of torch (CPU), NumPy and Python from ``key``; restore them after."""
    words = np.random.SeedSequence(key).generate_state(4)
    # The generator itself, because torch.manual_seed would seed CUDA devices as well.
    generator = torch.default_generator
    before = generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    generator.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])  # noqa: NPY002
    random.seed(int(words[3]))
    try:
        yield
    finally:
        generator.set_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def check_seed(seed: int) -> None:
    """Raise `InputError` for a seed that NumPy's or torch's generators refuse."""
    check_range("seed", seed, 0, 2**63 - 1)


def check_workers(workers: int) -> None:
    """Raise `InputError` for more loader processes than a machine of this size can use."""
    check_range("workers", workers, 0, max(64, 4 * (os.cpu_count() or 1)))


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise InputError(f"rank {rank} of {world} processes: needs 0 <= rank < processes")
