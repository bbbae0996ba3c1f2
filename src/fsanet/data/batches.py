"""Lightning data modules: the same batches whatever the number of workers and processes."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from fsanet.data.augment import (
    MEAN_COLOUR,
    FitAndScale,
    PadTo,
    PhotometricDistortion,
    ScaleAndCrop,
    ValidInstances,
)
from fsanet.data.labelled import CompactItems, DecodedDataset
from fsanet.data.masks import Colour, class_names, class_palette
from fsanet.data.sampling import (
    AugmentedDataset,
    EvalSampler,
    TrainSampler,
    check_seed,
    check_workers,
)
from fsanet.errors import InputError, check_range, check_ranges, escaped
from fsanet.files import check_sockets
from fsanet.signals import outlive_parent_signals

__all__ = ["InstanceData", "Loader", "SeededData", "SegmentationData", "described_data"]


class _RemembersArguments(type):
    """Keeps the arguments that an instance is made with as its attribute ``arguments``."""

    def __call__(cls, *values: Any, **options: Any) -> Any:
        module = super().__call__(*values, **options)
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        _, *bound = signature.bind(module, *values, **options).arguments.items()
        variadic = {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}
        module.arguments = {}
        for name, value in bound:
            module.arguments |= value if name in variadic else {name: value}
        return module


class SeededData(LightningDataModule, metaclass=_RemembersArguments):
    """Base of all data modules: order and loaders.

    Training batches depend only on ``seed``, the epoch and the position in it, see `TrainSampler`;
    evaluation reads whole images, each once over all processes. Rank and number of processes come
    from the trainer, which needs ``use_distributed_sampler=False`` and
    ``accumulate_grad_batches=accumulate``; without a trainer there is one process.

    Args:
        batch_size: images per process and batch.
        steps_per_epoch: optimiser steps per Lightning epoch.
        accumulate: batches per optimiser step.
        eval_batch_size: images per process and batch in evaluation; above 1, all images of a
            semantic data set must have the same size.
        workers: loader processes per training process; 0 loads in the training process itself.
        seed: seed of order and augmentation.

    Attributes:
        classes: names of the classes.
        train_transform: called as ``train_transform(image, target)`` for each training item.
        train_items: what is trained on in place of the training split, such as cached features.

    Raises:
        InputError: a value is out of range.
    """

    classes: tuple[str, ...]
    train_transform: Callable[..., Any]
    train_items: Any = None
    #: Arguments that the module was made with, by name.
    arguments: dict[str, Any]

    def __init__(
        self,
        *,
        batch_size: int = 8,
        steps_per_epoch: int = 100,
        accumulate: int = 1,
        eval_batch_size: int = 1,
        workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_ranges(
            {
                "batch_size": (batch_size, 1, 10_000),
                "steps_per_epoch": (steps_per_epoch, 1, 10**9),
                "accumulate": (accumulate, 1, 10**6),
                "eval_batch_size": (eval_batch_size, 1, 10_000),
            }
        )
        check_workers(workers)
        check_seed(seed)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.accumulate = accumulate
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.seed = seed
        self._datasets: dict[str, Any] = {}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @abstractmethod
    def make_dataset(self, stage: str) -> Any:
        """Make the data set of ``"train"``, ``"val"`` or ``"test"``, without a transform."""

    @staticmethod
    @abstractmethod
    def collate(items: Any) -> Any:
        """Make a batch from a list of items."""

    def items(self, dataset: Any) -> Any:
        """The data set in the form that loaders read."""
        return dataset

    def dataset(self, stage: str) -> Any:
        """The data set of a stage, made at the first call."""
        if stage not in self._datasets:
            self._datasets[stage] = self.make_dataset(stage)
        return self._datasets[stage]

    def setup(self, stage: str) -> None:
        """Make the data sets of Lightning's ``"fit"``, ``"validate"`` or ``"test"``."""
        stages = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for name in stages.get(stage, ()):
            self.dataset(name)

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world = self._rank_and_world()
        dataset = self.train_items
        if dataset is None:
            dataset = self.items(self.dataset("train"))
        sampler = TrainSampler(
            len(dataset),
            batch_size=self.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            accumulate=self.accumulate,
            seed=self.seed,
            rank=rank,
            world=world,
        )
        augmented = AugmentedDataset(dataset, self.train_transform, self.seed)
        return self._loader(augmented, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader("test")

    def _eval_loader(self, stage: str) -> DataLoader[Any]:
        rank, world = self._rank_and_world()
        dataset = self.items(self.dataset(stage))
        sampler = EvalSampler(len(dataset), rank=rank, world=world)
        return self._loader(dataset, sampler, self.eval_batch_size)

    def _loader(self, dataset: Any, sampler: Any, batch_size: int) -> DataLoader[Any]:
        if self.workers:
            check_sockets()
        return Loader(
            dataset,
            sampler=sampler,
            batch_size=batch_size,
            collate_fn=self.collate,
            num_workers=self.workers,
            worker_init_fn=outlive_parent_signals,
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
                f"accumulate={self.accumulate} of the data module; set both to the same value"
            )
        return trainer.global_rank, trainer.world_size


def described_data(data: SeededData) -> dict[str, Any]:
    """The ``data`` part of a recipe that makes a module again, with plain values.

    Empty if an argument is neither plain nor a path, so that no file can hold it. A class of the
    user's own is named with its file as ``plugin``, which only the command line may import.
    """
    one = type(data)
    given = getattr(data, "arguments", None)  # a module of another base has none
    if given is None:
        return {}
    try:
        text = json.dumps(given, default=_plain_path, allow_nan=False)
    except (TypeError, ValueError):
        return {}
    arguments = {name: value for name, value in json.loads(text).items() if name != "seed"}
    described: dict[str, Any] = {
        "data": {"class_path": f"{one.__module__}.{one.__qualname__}", "init_args": arguments}
    }
    file = getattr(sys.modules.get(one.__module__), "__file__", None)
    if one.__module__.partition(".")[0] != "fsanet" and file is not None:
        described["plugin"] = [file]
    return described


def _plain_path(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, range | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not plain")


class Loader(DataLoader[Any]):
    """A DataLoader whose workers start at the first batch, and whose errors are one line.

    Attributes:
        waited: seconds spent waiting for batches so far, over all iterations.
    """

    waited = 0.0
    _skip = _yielded = 0

    def state_dict(self) -> dict[str, int]:
        """How far the epoch is; Lightning saves it in checkpoints."""
        return {"batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration leave out the batches of a state; none of an epoch at its end."""
        self._skip = state["batches"] % len(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        skip, self._skip = self._skip, 0
        return self._batches_from(skip)

    def _batches_from(self, first: int) -> Iterator[Any]:
        # A generator, so that workers start at the first batch: when Lightning resumes, it asks for
        # the iterator before it sets the epoch, and workers would prefetch from the wrong epoch.
        if hasattr(self.sampler, "first_batch"):
            self.sampler.first_batch = first
        self._yielded = first
        batches = super().__iter__()
        try:
            began = time.perf_counter()
            for batch in batches:
                self.waited += time.perf_counter() - began
                self._yielded += 1
                yield batch
                began = time.perf_counter()
        except InputError as error:
            # Left to the garbage collector, torch would wait for 5 seconds per worker.
            getattr(batches, "_shutdown_workers", lambda: None)()
            self._iterator = None
            # torch puts the worker's whole traceback into the message; the message itself is last.
            newline = escaped("\n")
            line = str(error).removesuffix(newline).rsplit(newline, 1)[-1]
            raise InputError(line.split("InputError: ", 1)[-1]) from None


class SegmentationData(SeededData):
    """Base of the data modules for semantic segmentation. Subclasses make the data sets.

    A batch is ``(images uint8 (B, 3, H, W), masks int64 (B, H, W))``.

    Args:
        classes: class names in the order of their ids.
        palette: an (r, g, b) in 0..255 for each class; by default distinct hues.
        ignore_index: id of unlabelled pixels.
        crop: (h, w) of training images; ``None`` takes whole images.
        resize: longest and shortest side in pixels that training images are fitted into before the
            random resize, keeping their aspect ratio: recipes write (2048, 512) x 0.5-2. ``None``:
            their own size.
        scale: lowest and highest factor of the random resize.
        scale_step: distance of the factors to choose from, counted from the lowest; 0: any factor.
        flip: flip training images horizontally with probability 0.5.
        photometric: distort the colours of training images.
        class_ratio: largest share of a single class in a crop.
        fill: (r, g, b) in 0..255 of padded pixels.
        cache: keep all decoded images in memory (4 bytes per pixel and training process).
        **options: see `SeededData`.

    Raises:
        InputError: a value is out of range.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        palette: Sequence[Colour] | None = None,
        ignore_index: int = 255,
        crop: tuple[int, int] | None = (512, 512),
        resize: tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        scale_step: float = 0.0,
        flip: bool = True,
        photometric: bool = True,
        class_ratio: float = 0.75,
        fill: Colour = MEAN_COLOUR,
        cache: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("ignore_index", ignore_index, 0, 255)
        for value in fill:
            check_range("fill", value, 0, 255)
        self.classes = class_names(classes)
        self.palette = class_palette(palette, self.num_classes)
        self.ignore_index = ignore_index
        self.cache = cache
        self.crop, self.flip, self.photometric, self.fill = crop, flip, photometric, fill
        self.scaling = ScaleAndCrop(crop, scale, resize, class_ratio, ignore_index, scale_step)
        steps: list[v2.Transform] = []
        if crop is not None or resize is not None or tuple(scale) != (1, 1):
            steps.append(self.scaling)
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if photometric:
            steps.append(PhotometricDistortion())
        if crop is not None:  # after the colours, so that padding keeps its own
            steps.append(PadTo(crop, fill, ignore_index))
        self.train_transform = v2.Compose(steps or [v2.Identity()])

    def items(self, dataset: Any) -> CompactItems:
        return CompactItems(dataset)

    def dataset(self, stage: str) -> Any:
        """The data set of a stage, made at the first call and with ``cache`` decoded as a whole."""
        if self.cache and stage not in self._datasets:
            self._datasets[stage] = DecodedDataset(self.make_dataset(stage))
        return super().dataset(stage)

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Stack items into plain tensors: images (B, 3, H, W), masks int64 (B, H, W).

        Raises:
            InputError: the items differ in size.
        """
        images, masks = zip(*items, strict=True)
        sizes = sorted({tuple(mask.shape) for mask in masks})
        if len(sizes) > 1:
            (h, w), (other_h, other_w) = sizes[:2]
            raise InputError(
                f"images of one batch differ in size ({w}x{h} and {other_w}x{other_h} pixels); "
                "set eval_batch_size=1 in evaluation, and a crop in training"
            )
        return (
            torch.stack([image.as_subclass(Tensor) for image in images]),
            torch.stack([mask.as_subclass(Tensor) for mask in masks]).long(),
        )


class InstanceData(SeededData):
    """Base of the data modules for instance segmentation. Subclasses make the data sets.

    A batch is ``(images, targets)``, two lists with one entry per image: uint8 (3, H, W), and the
    target of `fsanet.data.datasets.coco.InstanceDataset` as plain tensors.

    Args:
        size: (h, w) of training images: fitted into it, scaled by a random factor, then cropped or
            padded; ``None`` takes images as they are.
        scale: lowest and highest factor of the scale jitter.
        flip: flip training images horizontally with probability 0.5.
        photometric: distort the colours of training images as torchvision's SSD recipe does.
        batch_size: images per process and batch.
        **options: see `SeededData`.

    Raises:
        InputError: a value is out of range.
    """

    category_ids: tuple[int, ...]
    ignore_index = None

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = (800, 800),
        scale: tuple[float, float] = (0.5, 1.5),
        flip: bool = True,
        photometric: bool = True,
        batch_size: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **options)
        steps: list[v2.Transform] = []
        if size is not None:
            fill: Any = {tv_tensors.Image: MEAN_COLOUR, "others": 0}
            steps.append(FitAndScale(size, scale))
            steps.append(v2.RandomCrop(tuple(size), pad_if_needed=True, fill=fill))
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if photometric:
            steps.append(v2.RandomPhotometricDistort())
        self.train_transform = v2.Compose([*steps, ValidInstances(min_side=2.0)])

    @staticmethod
    def collate(
        items: Sequence[tuple[Tensor, dict[str, Any]]],
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """List images and targets as plain tensors; sizes and numbers of instances may differ."""
        images = [image.as_subclass(Tensor).contiguous() for image, _ in items]
        targets = [
            {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in target.items()}
            for _, target in items
        ]
        return images, targets
