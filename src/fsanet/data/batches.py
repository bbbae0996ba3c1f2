"""What the data modules share: the order of the items, and the loaders that give batches."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from fsanet.data.sampling import AugmentedDataset, EvalSampler, TrainSampler, check_seed
from fsanet.errors import InputError

__all__ = ["Loader", "OrderedData"]


class OrderedData(LightningDataModule):
    """Base of all data modules. Subclasses give data sets, transforms and how items are batched.

    Training batches depend on ``seed``, the epoch and the position in it alone, see
    `TrainSampler`; evaluation reads whole images, each once over all processes. Rank and number
    of processes come from the trainer, which needs ``use_distributed_sampler=False`` and
    ``accumulate_grad_batches=accumulate``; without a trainer there is one process.

    Args:
        batch_size: images per process and batch.
        steps_per_epoch: optimiser steps that make one Lightning epoch.
        accumulate: batches per optimiser step.
        eval_batch_size: images per process and batch in evaluation.
        workers: loader processes per training process; 0 loads in the process itself.
        seed: seed of order and augmentation.

    Attributes:
        train_transform: called as ``train_transform(image, target)`` for each training item.
        eval_transform: the same in evaluation.

    Raises:
        InputError: for values that make no sense.
    """

    train_transform: Callable[..., Any]
    eval_transform: Callable[..., Any]

    def __init__(
        self,
        *,
        batch_size: int,
        steps_per_epoch: int,
        accumulate: int,
        eval_batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        counts = {
            "batch_size": (batch_size, 1),
            "steps_per_epoch": (steps_per_epoch, 1),
            "accumulate": (accumulate, 1),
            "eval_batch_size": (eval_batch_size, 1),
            "workers": (workers, 0),
        }
        for name, (value, least) in counts.items():
            if value < least:
                raise InputError(f"{name}={value}: must be at least {least}")
        check_seed(seed)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.accumulate = accumulate
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.seed = seed
        self._datasets: dict[str, Any] = {}

    @abstractmethod
    def make_dataset(self, stage: str) -> Any:
        """Data set without a transform for ``"train"``, ``"val"`` or ``"test"``."""

    @staticmethod
    @abstractmethod
    def collate(items: Any) -> Any:
        """A batch of a list of items."""

    def items(self, dataset: Any) -> Any:
        """What transforms are given: the data set, or a form of it that is faster to read."""
        return dataset

    def dataset(self, stage: str) -> Any:
        """The data set of a stage, made at the first call."""
        if stage not in self._datasets:
            self._datasets[stage] = self.make_dataset(stage)
        return self._datasets[stage]

    def setup(self, stage: str) -> None:
        """Make the data sets of Lightning's ``"fit"``, ``"validate"``, ``"test"``."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for name in wanted.get(stage, ()):
            self.dataset(name)

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world = self._rank_and_world()
        dataset = self.dataset("train")
        sampler = TrainSampler(
            len(dataset),
            batch_size=self.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            accumulate=self.accumulate,
            seed=self.seed,
            rank=rank,
            world=world,
        )
        augmented = AugmentedDataset(self.items(dataset), self.train_transform, self.seed)
        return self._loader(augmented, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("test")

    def _eval_loader(self, stage: str) -> DataLoader[Any]:
        rank, world = self._rank_and_world()
        dataset = _Transformed(self.items(self.dataset(stage)), self.eval_transform)
        sampler = EvalSampler(len(dataset), rank=rank, world=world)
        return self._loader(dataset, sampler, self.eval_batch_size)

    def _loader(self, dataset: Any, sampler: Any, batch_size: int) -> DataLoader[Any]:
        return Loader(
            dataset,
            sampler=sampler,
            batch_size=batch_size,
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: otherwise each epoch draws from the global random state.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _rank_and_world(self) -> tuple[int, int]:
        trainer = self.trainer
        if trainer is None:
            return 0, 1
        connector = getattr(trainer, "_accelerator_connector", None)
        if trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
            raise InputError(
                "the data module splits samples over processes itself: "
                "set Trainer(use_distributed_sampler=False)"
            )
        if trainer.training and trainer.accumulate_grad_batches != self.accumulate:
            raise InputError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) differs from "
                f"accumulate={self.accumulate} of the data module; set them alike"
            )
        return trainer.global_rank, trainer.world_size


class Loader(DataLoader[Any]):
    """A loader whose workers start at the first batch, and whose errors are one line.

    Attributes:
        waited: seconds that whoever iterated over it has waited for batches.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that workers start at the first batch: Lightning asks for the iterator
        # before it sets the epoch when it resumes, and workers would run ahead in a wrong epoch.
        try:
            began = time.perf_counter()
            for batch in super().__iter__():
                self.waited += time.perf_counter() - began
                yield batch
                began = time.perf_counter()
        except InputError as error:
            # torch puts a worker's whole traceback into the message; the line itself is last.
            line = str(error).rstrip().rsplit("\n", 1)[-1]
            raise InputError(line.split("InputError: ", 1)[-1]) from None


class _Transformed:
    """Items of a data set through a transform; a class, so that spawned workers can get it."""

    def __init__(self, dataset: Any, transform: Any) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.transform(*self.dataset[index])
