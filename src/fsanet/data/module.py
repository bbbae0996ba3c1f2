"""Lightning data modules: the same batches whatever the number of workers and processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsanet.data.augment import MEAN_COLOUR, eval_transform, train_transform
from fsanet.data.batches import OrderedData
from fsanet.data.cache import DecodedDataset
from fsanet.data.datasets import camvid, scenes
from fsanet.data.datasets.folder import SegmentationFolder, class_names
from fsanet.data.labelled import CompactItems
from fsanet.data.palette import Colour, class_palette
from fsanet.errors import InputError


class SegmentationData(OrderedData):
    """Base of the data modules: order, augmentation and loaders. Subclasses give the data sets.

    A batch is ``(images uint8 (B, 3, H, W), masks int64 (B, H, W))``. Training batches depend on
    ``seed``, the epoch and the position in the epoch alone, see `TrainSampler`; evaluation reads
    whole images, each once over all processes. Rank and number of processes come from the
    trainer, which needs ``use_distributed_sampler=False`` and
    ``accumulate_grad_batches=accumulate``; without a trainer there is one process.

    Args:
        classes: class names in the order of their ids.
        palette: an (r, g, b) in 0..255 for each class.
        ignore_index: id of pixels without a label.
        batch_size: images per process and batch.
        steps_per_epoch: optimiser steps that make one Lightning epoch.
        accumulate: batches per optimiser step.
        crop: (h, w) of training images; ``None`` takes whole images.
        resize: longest and shortest side in pixels that training images are brought to before the
            random factor, their shape kept: recipes write (2048, 512) x 0.5-2; None: their own.
        scale: lowest and highest factor of the random resize.
        flip: mirror training images with probability 0.5.
        photometric: distort colours of training images.
        class_ratio: largest share of one class in a crop.
        fill: (r, g, b) in 0..255 of padded pixels.
        eval_batch_size: images per process and batch in evaluation; above 1 all images must be
            of one size.
        workers: loader processes per training process; 0 loads in the process itself.
        seed: seed of order and augmentation.
        cache: keep all decoded images in memory (4 bytes a pixel, per training process).

    Raises:
        InputError: for values that make no sense.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        palette: Sequence[Colour] | None = None,
        ignore_index: int = 255,
        batch_size: int = 8,
        steps_per_epoch: int = 100,
        accumulate: int = 1,
        crop: tuple[int, int] | None = (512, 512),
        resize: tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        photometric: bool = True,
        class_ratio: float = 0.75,
        fill: Colour = MEAN_COLOUR,
        eval_batch_size: int = 1,
        workers: int = 2,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            accumulate=accumulate,
            eval_batch_size=eval_batch_size,
            workers=workers,
            seed=seed,
        )
        self.classes = class_names(classes, None)
        self.num_classes = len(self.classes)
        self.palette = class_palette(palette, self.num_classes)
        self.ignore_index = ignore_index
        self.cache = cache
        self.train_transform = train_transform(
            crop,
            resize=resize,
            scale=scale,
            flip=flip,
            photometric=photometric,
            class_ratio=class_ratio,
            ignore_index=ignore_index,
            fill=fill,
        )
        self.eval_transform = eval_transform()

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return collate(items)

    def items(self, dataset: Any) -> CompactItems:
        return CompactItems(dataset)

    def dataset(self, stage: str) -> Any:
        """The data set of a stage, made at the first call; decoded as a whole with ``cache``."""
        if self.cache and stage not in self._datasets:
            self._datasets[stage] = DecodedDataset(self.make_dataset(stage))
        return super().dataset(stage)


class FolderData(SegmentationData):
    """Data module of `SegmentationFolder`.

    Args:
        root: folder of the data set; its layouts are those of `SegmentationFolder`.
        classes: class names in the order of their ids, or give ``num_classes``.
        num_classes: number of classes, if there are no names.
        palette: an (r, g, b) in 0..255 for each class; by default distinct hues.
        train_split: sub-folder or list file of training.
        val_split: the same of validation.
        test_split: the same of testing; looked for only when it is used.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        palette: Sequence[Colour] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        **options: Any,
    ) -> None:
        super().__init__(classes=class_names(classes, num_classes), palette=palette, **options)
        self.root = Path(root)
        self.splits = {"train": train_split, "val": val_split, "test": test_split}

    def make_dataset(self, stage: str) -> SegmentationFolder:
        return SegmentationFolder(
            self.root,
            split=self.splits[stage],
            classes=self.classes,
            palette=self.palette,
            ignore_index=self.ignore_index,
        )


class CamVidData(SegmentationData):
    """Data module of `CamVid`.

    Args:
        root: folder with ``train``, ``val`` and ``test``.
        crop: (h, w) of training images; evaluation takes the whole 360 x 480 images.
        eval_batch_size: images per process and batch in evaluation.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        crop: tuple[int, int] | None = (360, 480),
        eval_batch_size: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            classes=camvid.CLASSES,
            palette=camvid.PALETTE,
            crop=crop,
            eval_batch_size=eval_batch_size,
            **options,
        )
        self.root = Path(root)

    def make_dataset(self, stage: str) -> camvid.CamVid:
        return camvid.CamVid(self.root, stage)


class SceneData(SegmentationData):
    """Data module of `ProceduralScenes`.

    Whole scenes are trained on, neither cropped nor distorted in colour: a scene without its
    signs has no answer.

    Args:
        size: (H, W) of the scenes.
        train_length: number of training scenes.
        val_length: number of validation scenes.
        test_length: number of test scenes.
        scene_seed: seed of the scenes; ``seed`` is that of order and augmentation.
        crop: as in `SegmentationData`.
        scale: as in `SegmentationData`.
        photometric: as in `SegmentationData`.
        eval_batch_size: images per process and batch in evaluation.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] = (96, 256),
        train_length: int = 2000,
        val_length: int = 100,
        test_length: int = 200,
        scene_seed: int = 0,
        crop: tuple[int, int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        photometric: bool = False,
        eval_batch_size: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(
            classes=scenes.CLASSES,
            palette=scenes.PALETTE,
            crop=crop,
            scale=scale,
            photometric=photometric,
            eval_batch_size=eval_batch_size,
            **options,
        )
        self.size = size
        self.scene_seed = scene_seed
        self.lengths = {"train": train_length, "val": val_length, "test": test_length}
        for stage in self.lengths:
            self.make_dataset(stage)  # refuses a bad size or length here

    def make_dataset(self, stage: str) -> scenes.ProceduralScenes:
        return scenes.ProceduralScenes(
            self.lengths[stage], split=stage, size=self.size, seed=self.scene_seed
        )


def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack items to plain tensors: images (B, 3, H, W), masks int64 (B, H, W).

    Raises:
        InputError: for items of different sizes.
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
