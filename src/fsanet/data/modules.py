"""The Lightning data modules of all data sets, which recipes name as ``fsanet.data.CamVidData``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fsanet.data.batches import InstanceData, SegmentationData
from fsanet.data.datasets.ade20k import Ade20k
from fsanet.data.datasets.base import MissingData, PairedImages
from fsanet.data.datasets.camvid import CamVid
from fsanet.data.datasets.cityscapes import Cityscapes
from fsanet.data.datasets.coco import InstanceDataset, check_published
from fsanet.data.datasets.instance_folder import InstanceFolder
from fsanet.data.datasets.instance_scenes import InstanceScenes
from fsanet.data.datasets.labelled_folder import LabelledFolder, SegmentationFolder
from fsanet.data.datasets.scenes import ProceduralScenes
from fsanet.data.datasets.voc import VocAug
from fsanet.data.masks import Colour, class_names
from fsanet.errors import InputError


class PublishedData(SegmentationData):
    """Base of the data modules of published data sets, whose classes and colours are fixed.

    Args:
        root: folder of the data set.
        **options: see `SegmentationData`.
    """

    reader: type[PairedImages]

    def __init__(self, root: str | Path, **options: Any) -> None:
        super().__init__(classes=self.reader.classes, palette=self.reader.palette, **options)
        self.root = root


class Ade20kData(PublishedData):
    """Data module of `Ade20k`. Its validation split is also the test split: no other has labels.

    Args:
        root: the folder ``ADEChallengeData2016``, or its parent.
        **options: see `SegmentationData`.
    """

    reader = Ade20k

    def make_dataset(self, stage: str) -> Ade20k:
        return Ade20k(self.root, "train" if stage == "train" else "val")


class CamVidData(PublishedData):
    """Data module of `CamVid`.

    Args:
        root: folder with ``train``, ``val`` and ``test``.
        train_split: ``"train"``, or ``"trainval"`` for a last training, whose scores on val then
            say nothing.
        crop: (h, w) of training images; evaluation takes the whole 360 x 480 images.
        eval_batch_size: images per process and batch in evaluation.
        **options: see `SegmentationData`.
    """

    reader = CamVid

    def __init__(
        self,
        root: str | Path,
        *,
        train_split: Literal["train", "trainval"] = "train",
        crop: tuple[int, int] | None = (360, 480),
        eval_batch_size: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(root, crop=crop, eval_batch_size=eval_batch_size, **options)
        self.train_split = train_split

    def make_dataset(self, stage: str) -> CamVid:
        return CamVid(self.root, self.train_split if stage == "train" else stage)


class CityscapesData(PublishedData):
    """Data module of `Cityscapes`.

    Args:
        root: folder with ``leftImg8bit`` and ``gtFine``.
        train_split: ``"train"``, ``"trainval"`` for a submission to the test server, or
            ``"train_extra"`` (with coarse labels).
        train_labels: labels of training, ``"fine"`` or ``"coarse"``; evaluation uses fine ones.
        test_split: ``"val"``, or ``"test"``, whose images have no labels: every pixel is 255.
        crop: (h, w) of training images; evaluation takes the whole 1024 x 2048 images.
        **options: see `SegmentationData`.
    """

    reader = Cityscapes

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
        super().__init__(root, crop=crop, **options)
        self.splits = {"train": train_split, "val": "val", "test": test_split}
        self.train_labels = train_labels

    def make_dataset(self, stage: str) -> Cityscapes:
        labels = self.train_labels if stage == "train" else "fine"
        return Cityscapes(self.root, self.splits[stage], labels=labels)


class VocAugData(PublishedData):
    """Data module of `VocAug`. Its val is also the test split: VOC's test has no published labels.

    Args:
        root: the folder of ``VOCdevkit``, or of ``VOC2012``, or ``VOC2012`` itself.
        sbd: SBD's folder, the one with ``cls``; by default looked for in ``root``.
        train_split: ``"train_aug"`` (10582 images) or ``"train"`` (1464).
        **options: see `SegmentationData`.
    """

    reader = VocAug

    def __init__(
        self,
        root: str | Path,
        *,
        sbd: str | Path | None = None,
        train_split: Literal["train_aug", "train"] = "train_aug",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.sbd = sbd
        self.train_split = train_split

    def make_dataset(self, stage: str) -> VocAug:
        return VocAug(self.root, self.train_split if stage == "train" else "val", sbd=self.sbd)


class FolderData(SegmentationData):
    """Data module of your own images and masks, see `LabelledFolder` and `SegmentationFolder`.

    Args:
        root: folder of the data set.
        images: pattern of the images' names below ``root``, such as ``*.jpg`` or
            ``{split}/photos/*``; by default ``{split}/images``, or ``images`` and lists of names.
        masks: path of an image's mask, such as ``{stem}_mask.png``: ``{stem}`` is the image's name
            without its ending, ``{name}`` with it, ``{folder}`` its folder below ``root``; beside
            the image if no folder is given, else below ``root``.
        annotations: file of shapes in place of masks, of COCO, CVAT (XML of images) or Label Studio
            (JSON), found from ``root`` or the current folder; may hold ``{split}``. Images are then
            ``**/*`` by default, and those that the file does not list are left out. Classes are its
            categories; shapes are drawn in the order of the file (CVAT: of z_order), later ones
            over earlier ones.
        outside: pixels outside of all shapes: ``background`` is class 0, ``ignore`` is not scored.
        masks_of: ``classes``: values are class ids; ``instances``: 0 is background, all else the
            one class "object".
        colours: table of the masks' colours, a file of lines as ``road 128 64 128``, found from
            ``root`` or the current folder; or ``auto``: each colour in the masks is a class.
        classes: class names in the order of their ids, or give ``num_classes``.
        num_classes: number of classes, if there are no names.
        palette: an (r, g, b) in 0..255 for each class; by default those of ``colours``.
        val_fraction: share of all images, drawn at random, for validation.
        test_fraction: share drawn for testing; 0 tests on the validation images.
        split_seed: seed of that draw; ``seed`` is that of order and augmentation.
        train_split: sub-folder or list file of the training split.
        val_split: the same for validation.
        test_split: the same for testing; needed only when it is used.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str | None = None,
        masks: str | None = None,
        annotations: str | None = None,
        outside: Literal["background", "ignore"] = "background",
        masks_of: Literal["classes", "instances"] = "classes",
        colours: str | None = None,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        palette: Sequence[Colour] | None = None,
        val_fraction: float | None = None,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        **options: Any,
    ) -> None:
        self.folder = LabelledFolder(
            root,
            images=images,
            masks=masks,
            annotations=annotations,
            outside=outside,
            masks_of=masks_of,
            colours=colours,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
        )
        if classes is None and num_classes is None and self.folder.classes is not None:
            classes, palette = self.folder.classes, palette or self.folder.palette
        super().__init__(classes=class_names(classes, num_classes), palette=palette, **options)
        self.root = root
        self.splits: dict[str, str | None] = {
            "train": train_split,
            "val": val_split,
            "test": test_split,
            "all": None,
        }

    def make_dataset(self, stage: str) -> SegmentationFolder:
        drawn = self.folder.fractions and stage != "all"
        return SegmentationFolder(
            self.folder,
            split=stage if drawn else self.splits[stage],
            classes=self.classes,
            palette=self.palette,
            ignore_index=self.ignore_index,
        )


class SceneData(SegmentationData):
    """Data module of `ProceduralScenes`.

    Training takes whole scenes, neither cropped nor distorted in colour: a scene without its signs
    has no answer.

    Args:
        size: (H, W) of the scenes.
        train_length: number of training scenes.
        val_length: number of validation scenes.
        test_length: number of test scenes.
        scene_seed: seed of the scenes; ``seed`` is that of order and augmentation.
        crop: see `SegmentationData`.
        scale: see `SegmentationData`.
        photometric: see `SegmentationData`.
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
            classes=ProceduralScenes.classes,
            palette=ProceduralScenes.palette,
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
            self.make_dataset(stage)  # raises for a bad size or length right away

    def make_dataset(self, stage: str) -> ProceduralScenes:
        return ProceduralScenes(
            self.lengths[stage], split=stage, size=self.size, seed=self.scene_seed
        )


class CocoData(InstanceData):
    """Data module of annotation files in COCO's format, one file and image folder per split.

    Args:
        root: folder that the other paths start from.
        train_annotations: file of the training split.
        train_images: folder of its images.
        val_annotations: file of the validation split.
        val_images: folder of its images.
        test_annotations: file of the test split; by default that of validation.
        test_images: folder of its images.
        label_by: see `InstanceDataset`.
        **options: see `InstanceData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        test_annotations: str | None = None,
        test_images: str | None = None,
        label_by: Literal["rank", "id"] = "rank",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        self.label_by = label_by
        self.paths = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations or val_annotations, test_images or val_images),
        }
        # Evaluation needs no training file: the first existing file defines the classes.
        splits = [s for s in self.paths if (self.root / self.paths[s][0]).is_file()]
        first = self.dataset(splits[0] if splits else "train")
        self.classes, self.category_ids = first.classes, first.category_ids

    def make_dataset(self, stage: str) -> InstanceDataset:
        annotations, images = self.paths[stage]
        path = self.root / annotations
        check_published(self.root, path)
        if not path.is_file():
            raise MissingData(
                f"{path}: no such annotation file; give the data set's folder as --data.root, or "
                f"the file as --data.{stage}-annotations; docs/data.md says where the data of "
                "fsanet's own recipes come from"
            )
        dataset = InstanceDataset(self.root / images, path, label_by=self.label_by)
        known = getattr(self, "classes", dataset.classes)
        if dataset.classes != known:
            raise InputError(
                f"{path}: categories {', '.join(dataset.classes[:5])} differ from those of the "
                f"other splits, {', '.join(known[:5])}"
            )
        return dataset


class InstanceFolderData(InstanceData):
    """Data module of your own images with instances, with the options of `FolderData`.

    Args:
        root: see `FolderData`.
        images: see `FolderData`.
        masks: see `FolderData`; each value or colour of a mask but 0 is one instance.
        annotations: see `FolderData`; each shape is one instance of its category.
        classes: name of the class of the instances in masks, by default "object".
        val_fraction: see `FolderData`.
        test_fraction: see `FolderData`.
        split_seed: see `FolderData`.
        train_split: see `FolderData`.
        val_split: see `FolderData`.
        test_split: see `FolderData`.
        **options: see `InstanceData`.

    Raises:
        InputError: an option is wrong, or the annotations cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str | None = None,
        masks: str | None = None,
        annotations: str | None = None,
        classes: Sequence[str] | None = None,
        val_fraction: float | None = None,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.folder = LabelledFolder(
            root,
            images=images,
            masks=masks,
            annotations=annotations,
            outside="ignore" if annotations else "background",
            masks_of="classes" if annotations else "instances",
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
        )
        self.root = root
        self.splits = {"train": train_split, "val": val_split, "test": test_split, "all": None}
        self.classes = tuple(self.folder.categories) or class_names(classes or ("object",))
        if annotations and classes is not None:
            raise InputError("classes: annotations name their own; leave out classes")
        if not annotations and len(self.classes) > 1:
            raise InputError(
                f"{len(self.classes)} classes: masks that number instances do not tell their "
                "class; give one name, or annotations"
            )
        ids = tuple(self.folder.categories.values())
        # Files of several splits may number their categories each in its own way.
        unique = bool(ids) and len({*ids}) == len(ids)
        self.category_ids = ids if unique else tuple(range(1, len(self.classes) + 1))

    def make_dataset(self, stage: str) -> InstanceFolder:
        drawn = self.folder.fractions and stage != "all"
        return InstanceFolder(self.folder, stage if drawn else self.splits[stage])


class InstanceSceneData(InstanceData):
    """Data module of `InstanceScenes`.

    Args:
        picture: (H, W) of the pictures.
        train_length: number of training pictures.
        val_length: number of validation pictures.
        test_length: number of test pictures.
        scene_seed: seed of the pictures; ``seed`` is that of order and augmentation.
        size: (H, W) of training images, see `InstanceData`; None takes whole pictures.
        photometric: see `InstanceData`.
        **options: see `InstanceData`.
    """

    classes, category_ids = InstanceScenes.classes, InstanceScenes.category_ids

    def __init__(
        self,
        *,
        picture: tuple[int, int] = (128, 160),
        train_length: int = 500,
        val_length: int = 50,
        test_length: int = 100,
        scene_seed: int = 0,
        size: tuple[int, int] | None = None,
        photometric: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(size=size, photometric=photometric, **options)
        self.picture, self.scene_seed = picture, scene_seed
        self.lengths = {"train": train_length, "val": val_length, "test": test_length}
        for stage in self.lengths:
            self.make_dataset(stage)  # raises for a bad size or length right away

    def make_dataset(self, stage: str) -> InstanceScenes:
        return InstanceScenes(
            self.lengths[stage], split=stage, size=self.picture, seed=self.scene_seed
        )
