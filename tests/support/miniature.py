"""Miniatures of published data sets: the layouts exactly, with a few tiny images.

Each function writes a tree below ``root`` and returns the folder to give to the reader. Images
show the class of their pixels as a grey level, so that a network can learn something from them.

    from miniature import write_cityscapes
    data = CityscapesData(write_cityscapes(tmp_path), crop=(65, 65), workers=0)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsanet.data.datasets.ade20k import CLASSES as NAMES

CITYSCAPES = {
    "train": ("aachen_000000_000019", "bochum_000000_000313", "aachen_000001_000019"),
    "val": ("frankfurt_000000_000294", "lindau_000000_000019"),
    "test": ("berlin_000000_000019",),
    "train_extra": ("augsburg_000000_000000", "bayreuth_000000_000000"),
}
ADE20K = {
    "training": ("ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003"),
    "validation": ("ADE_val_00000001", "ADE_val_00000002"),
}
VOC = {"train": ("2007_000032", "2007_000039"), "val": ("2007_000033", "2007_000042")}
#: SBD's own lists overlap with VOC's, in train and in val.
SBD = {
    "train": ("2008_000002", "2007_000032", "2007_000033"),
    "val": ("2008_000003", "2008_000008", "2007_000042"),
}
#: Numbers up to 90 that no published category of COCO has.
NOT_IN_COCO = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
#: What is left of all four lists without VOC's val.
VOC_TRAIN_AUG = ("2007_000032", "2007_000039", "2008_000002", "2008_000003", "2008_000008")


def write_cityscapes(
    root: Path, *, size: tuple[int, int] = (32, 64), coarse: bool = False, seed: int = 0
) -> Path:
    """``leftImg8bit`` and ``gtFine`` (with ``gtCoarse`` and train_extra on request)."""
    rng = np.random.default_rng(seed)
    for split, names in CITYSCAPES.items():
        if split == "train_extra" and not coarse:
            continue
        for name in names:
            city = name.split("_")[0]
            ids = blocks(rng, range(34), size)
            stem = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
            save_image(stem, ids, rng)
            kinds = ["gtFine"] if split != "train_extra" else []
            for kind in kinds + ["gtCoarse"] * (coarse and split != "test"):
                # The published test labels hold no class at all.
                values = np.zeros_like(ids) if split == "test" else ids
                folder = root / kind / split / city
                save_labels(folder / f"{name}_{kind}_labelIds.png", values)
                save_labels(folder / f"{name}_{kind}_instanceIds.png", values)
                save_labels(folder / f"{name}_{kind}_color.png", values)
                (folder / f"{name}_{kind}_polygons.json").write_text('{"objects": []}')
    return root


def write_ade20k(root: Path, *, size: tuple[int, int] = (32, 48), seed: int = 0) -> Path:
    """``ADEChallengeData2016`` with images of two sizes; returns ``root``, the folder around it."""
    rng = np.random.default_rng(seed)
    base = root / "ADEChallengeData2016"
    for split, names in ADE20K.items():
        for index, name in enumerate(names):
            ids = blocks(rng, range(151), size if index % 2 == 0 else size[::-1])
            save_image(base / "images" / split / f"{name}.jpg", ids, rng)
            save_labels(base / "annotations" / split / f"{name}.png", ids)
    (base / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    rows = [f"{i}\t0.1\t10\t2\t{name}, its synonym\n" for i, name in enumerate(NAMES, 1)]
    (base / "objectInfo150.txt").write_text("".join(["Idx\tRatio\tTrain\tVal\tName\n", *rows]))
    return root


def write_voc(
    root: Path,
    *,
    sbd: str = "mat",
    size: tuple[int, int] = (32, 48),
    seed: int = 0,
) -> Path:
    """``VOCdevkit/VOC2012``, and SBD as ``"mat"`` files, as ``"png"`` files, or ``"none"``."""
    rng = np.random.default_rng(seed)
    voc = root / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in VOC.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            ids = blocks(rng, range(21), size)
            ids[:2] = 255
            save_image(voc / "JPEGImages" / f"{name}.jpg", ids, rng)
            save_labels(voc / "SegmentationClass" / f"{name}.png", ids, palette=True)
    (lists / "trainval.txt").write_text("".join(f"{n}\n" for n in sorted(sum(VOC.values(), ()))))
    dataset = root / "benchmark_RELEASE" / "dataset"
    for split, names in SBD.items():
        for name in names:
            ids = blocks(rng, range(21), size)
            image = voc / "JPEGImages" / f"{name}.jpg"
            if not image.exists():
                save_image(image, ids, rng)
            if sbd == "png":
                save_labels(voc / "SegmentationClassAug" / f"{name}.png", ids)
            elif sbd == "mat":
                save_mat(dataset / "cls" / f"{name}.mat", ids)
        if sbd == "mat":
            (dataset / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def write_coco(root: Path, *, size: tuple[int, int] = (64, 80), seed: int = 0) -> Path:
    """``train2017`` (4 images), ``val2017`` (2), ``annotations``; one image has no annotation.

    The 80 categories have COCO's ids, 1 to 90 with ten left out.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    numbers = [n for n in range(1, 91) if n not in NOT_IN_COCO]
    categories = [{"id": n, "name": f"category {n}"} for n in numbers]
    for split, count in (("train", 4), ("val", 2)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            name = f"{number:012d}.jpg"
            pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
            for category in () if number == count else (1, 18):
                h, w = (int(v) for v in rng.integers(16, 32, 2))
                y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
                pixels[y : y + h, x : x + w] = (200, 80, 40) if category == 1 else (40, 80, 200)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            path = root / f"{split}2017" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=95)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        file = root / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def write_instance_scenes(root: Path, scenes: Any) -> Path:
    """``images/*.png`` of an `InstanceScenes`, and ``instances.json``, which is returned."""
    from fsanet.data.shapes import encode_masks

    (root / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, (image, target)) in enumerate(zip(scenes.names, scenes, strict=False), 1):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / name)
        height, width = scenes.size
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        columns = [target[key].tolist() for key in ("boxes", "labels", "area")]
        for (x0, y0, x1, y1), label, area, rle in zip(
            *columns, encode_masks(target["masks"]), strict=True
        ):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": label}
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": rle, "area": area}
            annotations.append({**annotation, **shape, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(scenes.classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json"


def write_camvid(root: Path, *, size: tuple[int, int] = (36, 48), seed: int = 0) -> Path:
    """``train`` (3 images), ``val`` (2) and ``test`` (2), each with ``images`` and ``masks``."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for index in range(count):
            ids = blocks(rng, (*range(11), 255), size)
            save_image(root / split / "images" / f"{split}_{index}.jpg", ids, rng)
            save_labels(root / split / "masks" / f"{split}_{index}.png", ids)
    return root


def blocks(rng: np.random.Generator, values: Any, size: tuple[int, int]) -> np.ndarray:
    """Random values (H, W) in blocks of 4 x 4 pixels."""
    coarse = rng.choice(np.asarray(list(values), np.uint8), (-(-size[0] // 4), -(-size[1] // 4)))
    return coarse.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]].copy()


def save_image(path: Path, ids: np.ndarray, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(0, 8, (*ids.shape, 3), dtype=np.uint8)
    Image.fromarray(np.minimum(ids, 247)[..., None] + noise).save(path)


def save_labels(path: Path, ids: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


def save_mat(path: Path, ids: np.ndarray) -> None:
    """The nesting of SBD's cls/*.mat: a struct GTcls with Segmentation among its fields."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    present = np.unique(ids[(ids > 0) & (ids < 255)]).astype(np.uint8)
    savemat(
        path, {"GTcls": {"Segmentation": ids, "CategoriesPresent": present}}, do_compression=True
    )
