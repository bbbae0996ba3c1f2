"""The reader and the data module of annotation files in COCO's format."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.miniature import write_coco, write_instance_scenes

pytest.importorskip("faster_coco_eval")

from fsanet.data import CocoData, InstanceData, InstanceDataset, InstanceScenes
from fsanet.errors import InputError

HEIGHT, WIDTH = 20, 30


@pytest.fixture
def folder(tmp_path, coco_content):
    """The images of `coco_content` with its file."""
    for name in "abc":
        Image.new("RGB", (WIDTH, HEIGHT), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "instances.json").write_text(json.dumps(coco_content))
    return tmp_path


def test_items(folder):
    data = InstanceDataset(folder, folder / "instances.json")
    assert data.classes == ("cat", "dog")
    assert data.category_ids == (2, 5)
    assert [int(data[i][0][0, 0, 0]) for i in range(3)] == [ord("a"), ord("b"), ord("c")]
    image, target = data[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert target["boxes"].tolist() == [[2, 4, 12, 10], [0, 0, 30, 20]]
    assert target["labels"].tolist() == [2, 1]
    assert target["iscrowd"].tolist() == [0, 1]
    assert target["area"].tolist() == [55.5, 600]  # where the file has none: pixels
    assert target["image_id"] == 3
    square = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    square[4:10, 2:12] = 1
    assert torch.equal(target["masks"][0].as_subclass(torch.Tensor), square)
    assert target["masks"][1].all()


def test_image_without_annotations_is_kept(folder):
    _, target = InstanceDataset(folder, folder / "instances.json")[2]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, HEIGHT, WIDTH)
    assert target["labels"].dtype == torch.int64
    assert target["labels"].shape == target["area"].shape == (0,)


def test_labels_by_id(folder):
    data = InstanceDataset(folder, folder / "instances.json", label_by="id")
    assert data[0][1]["labels"].tolist() == [5, 2]
    assert data.classes == ("N/A", "cat", "N/A", "N/A", "dog")
    assert data.category_ids == (1, 2, 3, 4, 5)


def test_masks_are_those_of_pycocotools(folder):
    coco = pytest.importorskip("pycocotools.coco")
    file = folder / "instances.json"
    theirs = coco.COCO(str(file))
    data = InstanceDataset(folder, file)
    for index, number in enumerate((3, 7)):
        expected = [theirs.annToMask(a) for a in theirs.loadAnns(theirs.getAnnIds(number))]
        assert np.array_equal(data[index][1]["masks"].numpy(), np.stack(expected))


def test_missing_image(folder):
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match=r"b.png: no such image, but the annotations list it"):
        InstanceDataset(folder, folder / "instances.json")


@pytest.mark.parametrize("name", ["../elsewhere/a.png", "/elsewhere/a.png", "b/../../a.png"])
def test_images_outside_of_the_folder(folder, coco_content, name):
    """An annotation file may come from anyone, and leads to no file but those of its images."""
    coco_content["images"][0]["file_name"] = name
    (folder / "instances.json").write_text(json.dumps(coco_content))
    with pytest.raises(InputError, match=r"a\.png: lies outside of .*below the image folder"):
        InstanceDataset(folder, folder / "instances.json")


def test_paths_that_stay_in_the_folder(folder, coco_content):
    coco_content["images"][0]["file_name"] = str(folder / "b.png")
    coco_content["images"][1]["file_name"] = "b/../a.png"
    (folder / "b").mkdir()
    (folder / "instances.json").write_text(json.dumps(coco_content))
    assert len(InstanceDataset(folder, folder / "instances.json")) == 3


def test_ids_that_are_too_large_for_labels(folder, coco_content):
    coco_content["categories"][0]["id"] = 2**40
    coco_content["annotations"] = []
    (folder / "instances.json").write_text(json.dumps(coco_content))
    assert InstanceDataset(folder, folder / "instances.json").category_ids[-1] == 2**40
    with pytest.raises(InputError, match="category id 1099511627776: label_by=id takes ids up to"):
        InstanceDataset(folder, folder / "instances.json", label_by="id")


def test_image_of_another_size(folder):
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(folder / "a.png")
    data = InstanceDataset(folder, folder / "instances.json")
    with pytest.raises(InputError, match=r"a.png: 30x21 pixels, but the annotations say 30x20"):
        data[0]


def test_scenes_written_as_coco_read_the_same(tmp_path):
    scenes = InstanceScenes(4, size=(64, 80), seed=3)
    file = write_instance_scenes(tmp_path, scenes)
    data = InstanceDataset(tmp_path / "images", file)
    assert data.classes == scenes.classes
    for (image, target), (expected, wanted) in zip(
        (data[i] for i in range(4)), (scenes[i] for i in range(4)), strict=True
    ):
        assert torch.equal(image, expected)
        for name in ("boxes", "masks", "labels", "iscrowd", "area"):
            assert torch.equal(target[name], wanted[name]), name


def coco_data(folder, **options):
    for split in ("train", "val"):
        length = {"train": 5, "val": 3}[split]
        write_instance_scenes(folder / split, InstanceScenes(length, split=split, size=(64, 80)))
    paths = {f"{s}_annotations": f"{s}/instances.json" for s in ("train", "val")}
    paths |= {f"{s}_images": f"{s}/images" for s in ("train", "val")}
    return CocoData(folder, **paths, workers=0, size=(64, 64), **options)


def test_data_module_repeats_itself_and_reads_each_image_once(tmp_path):
    data = coco_data(tmp_path, batch_size=2, steps_per_epoch=3)
    assert data.num_classes == 3
    first, second = (list(data.train_dataloader()) for _ in range(2))
    assert len(first) == 3
    for (images, targets), (others, wanted) in zip(first, second, strict=True):
        for image, other in zip(images, others, strict=True):
            assert image.shape == (3, 64, 64)
            assert torch.equal(image, other)
        for target, other in zip(targets, wanted, strict=True):
            assert torch.equal(target["masks"], other["masks"])
            assert type(target["boxes"]) is torch.Tensor
    seen = [t["image_id"] for _, targets in data.val_dataloader() for t in targets]
    assert seen == [1, 2, 3]
    assert [len(targets) for _, targets in data.test_dataloader()] == [1, 1, 1]


def test_splits_with_other_categories(tmp_path):
    coco_data(tmp_path)
    file = tmp_path / "val" / "instances.json"
    file.write_text(file.read_text().replace('"disc"', '"disk"'))
    data = CocoData(
        tmp_path,
        train_annotations="train/instances.json",
        train_images="train/images",
        val_annotations="val/instances.json",
        val_images="val/images",
    )
    with pytest.raises(InputError, match=r"val.*disk.* differ from those of the other splits"):
        data.setup("fit")


def test_collate_keeps_sizes():
    items = [InstanceScenes(1, size=size)[0] for size in ((64, 64), (48, 90))]
    images, targets = InstanceData.collate(items)
    assert [tuple(i.shape) for i in images] == [(3, 64, 64), (3, 48, 90)]
    assert [t["masks"].shape[1:] for t in targets] == [(64, 64), (48, 90)]


def test_missing_download_says_what_to_do(tmp_path):
    with pytest.raises(InputError) as raised:
        CocoData(tmp_path)
    line = str(raised.value)
    assert "no annotations/instances_train2017.json: give the data set's folder as --data" in line
    assert "or download annotations_trainval" in line
    assert "cocodataset.org" in line
    assert f"fsanet data check {tmp_path} --layout coco" in str(raised.value)


def test_published_layout_is_the_default(tmp_path):
    data = CocoData(write_coco(tmp_path), size=(64, 64), workers=0)
    assert data.num_classes == 80
    assert data.category_ids[11] == 13  # the ids have gaps, the labels none
    assert [len(t["labels"]) for _, t in (data.dataset("train")[i] for i in range(4))] == [
        *(2, 2, 2),
        0,
    ]
    image, target = data.dataset("val")[0]
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        x0, y0, x1, y1 = box.int().tolist()
        assert mask[y0:y1, x0:x1].all()
        assert mask.sum() == (x1 - x0) * (y1 - y0)
    assert image.shape == (3, 64, 80)
