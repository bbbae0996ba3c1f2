"""Lightning data modules of published benchmarks; COCO's is `fsanet.data.instances.CocoData`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fsanet.data.datasets.ade20k import Ade20k
from fsanet.data.datasets.cityscapes import Cityscapes
from fsanet.data.datasets.class_names import ADE20K, CITYSCAPES, VOC
from fsanet.data.datasets.voc import VocAug
from fsanet.data.module import SegmentationData

__all__ = ["Ade20kData", "CityscapesData", "VocAugData"]


class CityscapesData(SegmentationData):
    """Data module of `Cityscapes`.

    Args:
        root: folder with ``leftImg8bit`` and ``gtFine``.
        train_split: ``"train"``, ``"trainval"`` for a submission to the test server, or
            ``"train_extra"`` (with coarse labels).
        train_labels: labels of training, ``"fine"`` or ``"coarse"``; evaluation has fine ones.
        test_split: ``"val"``, or ``"test"``, whose images have no labels: every pixel is 255.
        crop: (h, w) of training images; evaluation takes the whole 1024 x 2048 images.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train_split: Literal["train", "trainval", "train_extra"] = "train",
        train_labels: Literal["fine", "coarse"] = "fine",
        test_split: Literal["val", "test"] = "val",
        crop: tuple[int, int] | None = (769, 769),
        **options: Any,
    ) -> None:
        super().__init__(
            classes=CITYSCAPES.classes, palette=CITYSCAPES.palette, crop=crop, **options
        )
        self.root = Path(root)
        self.splits = {"train": train_split, "val": "val", "test": test_split}
        self.train_labels = train_labels

    def make_dataset(self, stage: str) -> Cityscapes:
        labels = self.train_labels if stage == "train" else "fine"
        return Cityscapes(self.root, self.splits[stage], labels=labels)


class Ade20kData(SegmentationData):
    """Data module of `Ade20k`. Its validation split is tested on: no other has labels.

    Args:
        root: the folder ``ADEChallengeData2016``, or the one it is in.
        crop: (h, w) of training images.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        crop: tuple[int, int] | None = (512, 512),
        **options: Any,
    ) -> None:
        super().__init__(classes=ADE20K.classes, palette=ADE20K.palette, crop=crop, **options)
        self.root = Path(root)

    def make_dataset(self, stage: str) -> Ade20k:
        return Ade20k(self.root, "train" if stage == "train" else "val")


class VocAugData(SegmentationData):
    """Data module of `VocAug`. VOC's val is tested on: the labels of its test are not published.

    Args:
        root: folder of ``VOCdevkit``, or of ``VOC2012``, or ``VOC2012`` itself.
        sbd: SBD's folder, the one with ``cls``; by default looked for in ``root``.
        train_split: ``"train_aug"`` (10582 images) or ``"train"`` (1464).
        crop: (h, w) of training images.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        sbd: str | Path | None = None,
        train_split: Literal["train_aug", "train"] = "train_aug",
        crop: tuple[int, int] | None = (512, 512),
        **options: Any,
    ) -> None:
        super().__init__(classes=VOC.classes, palette=VOC.palette, crop=crop, **options)
        self.root = Path(root)
        self.sbd = sbd
        self.train_split = train_split

    def make_dataset(self, stage: str) -> VocAug:
        return VocAug(self.root, self.train_split if stage == "train" else "val", sbd=self.sbd)
