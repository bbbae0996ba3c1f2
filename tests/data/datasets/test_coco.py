"""Annotation files: what is read from them, and the one line for each thing wrong."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.miniature import write_coco as write_published

pytest.importorskip("faster_coco_eval")

from fsanet.data import CocoData, InstanceData, InstanceDataset
from fsanet.data.annotations import decode_masks, encode_masks, read_annotations
from fsanet.data.datasets.instance_scenes import InstanceScenes, write_coco
from fsanet.errors import InputError

HEIGHT, WIDTH = 20, 30


def content():
    """Three images; the last has nothing on it; categories with gaps."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 9, "file_name": "c.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {
                "id": 11,
                "image_id": 3,
                "category_id": 5,
                "bbox": [2, 4, 10, 6],
                "segmentation": [[2, 4, 12, 4, 12, 10, 2, 10]],
                "area": 55.5,
                "iscrowd": 0,
            },
            {
                "id": 12,
                "image_id": 3,
                "category_id": 2,
                "bbox": [0, 0, 30, 20],
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 600]},
                "iscrowd": 1,
            },
            {
                "id": 13,
                "image_id": 7,
                "category_id": 2,
                "bbox": [20, 10, 10, 10],
                "segmentation": [[20, 10, 25, 10, 25, 20, 20, 20], [27, 10, 30, 10, 30, 12]],
            },
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        Image.new("RGB", (WIDTH, HEIGHT), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def written(folder, value):
    file = folder / "instances.json"
    file.write_text(json.dumps(value))
    return file


def test_items(folder):
    data = InstanceDataset(folder, written(folder, content()))
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
    _, target = InstanceDataset(folder, written(folder, content()))[2]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, HEIGHT, WIDTH)
    assert target["labels"].dtype == torch.int64
    assert target["labels"].shape == target["area"].shape == (0,)


def test_labels_by_id(folder):
    data = InstanceDataset(folder, written(folder, content()), label_by="id")
    assert data[0][1]["labels"].tolist() == [5, 2]
    assert data.classes == ("N/A", "cat", "N/A", "N/A", "dog")
    assert data.category_ids == (1, 2, 3, 4, 5)


def test_masks_are_those_of_pycocotools(folder):
    coco = pytest.importorskip("pycocotools.coco")
    file = written(folder, content())
    theirs = coco.COCO(str(file))
    data = InstanceDataset(folder, file)
    for index, number in enumerate((3, 7)):
        expected = [theirs.annToMask(a) for a in theirs.loadAnns(theirs.getAnnIds(number))]
        assert np.array_equal(data[index][1]["masks"].numpy(), np.stack(expected))


def test_rle_there_and_back():
    masks = torch.rand(5, 17, 23, generator=torch.Generator().manual_seed(0)) > 0.6
    encoded = encode_masks(masks)
    json.dumps(encoded)
    assert encoded[0]["size"] == [17, 23]
    assert torch.equal(decode_masks(encoded, 17, 23).bool(), masks)
    assert decode_masks([], 4, 5).shape == (0, 4, 5)


def change(path, value):
    *parents, last = path

    def apply(whole):
        part = whole
        for key in parents:
            part = part[key]
        part[last] = value

    return apply


A0 = ("annotations", 0)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (change((*A0, "category_id"), 4), r"annotation 11: category_id 4 is not .*\(2, 5\)"),
        (change((*A0, "image_id"), 4), r"annotation 11: image_id 4 is not among the images"),
        (change((*A0, "bbox"), [2, 4, 0, 6]), r"annotation 11 \(image a.png\): bbox .* no area"),
        (change((*A0, "bbox"), [25, 4, 10, 6]), r"a.png.*reaches out of the 30x20 image"),
        (change((*A0, "bbox"), [2, 4, float("nan"), 6]), r"bbox .*nan.* is no box"),
        (change((*A0, "bbox"), [2, 4, 10]), r"annotation 11"),
        (change((*A0, "segmentation"), [[2, 4, 12, 4]]), r"three points or more"),
        (change((*A0, "segmentation"), [[2, 4, 2, 4, 2, 4]]), r"covers no pixel"),
        (change((*A0, "segmentation"), []), r"neither a list of polygons nor RLE"),
        (
            change(("annotations", 1, "segmentation", "size"), [30, 20]),
            r"annotation 12.*RLE of size \[30, 20\]",
        ),
        (
            change(("annotations", 1, "segmentation", "counts"), [0, 599]),
            r"annotation 12.*599 pixels of 600",
        ),
        (change(("categories", 0, "id"), 2), r"two with the same id"),
        (change(("categories", 0, "id"), 0), r"ids start at 1"),
        (change(("images", 0, "id"), 3), r"two images with the same id"),
        (change(("images", 0, "height"), 0), r"image 7 is 30x0 pixels"),
        (lambda whole: whole["images"][0].pop("width"), r"image 7 lacks"),
        (lambda whole: whole.pop("categories"), r"no list 'categories'"),
        (lambda whole: whole["annotations"][0].pop("bbox"), r"annotation 11.*no 'bbox'"),
    ],
)
def test_wrong_file_is_named_with_the_place(folder, edit, line):
    whole = copy.deepcopy(content())
    edit(whole)
    with pytest.raises(InputError, match=line) as raised:
        read_annotations(written(folder, whole))
    assert "instances.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_files(folder):
    with pytest.raises(InputError, match=r"none.json: no such annotation file"):
        read_annotations(folder / "none.json")
    (folder / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad.json: not readable as JSON"):
        read_annotations(folder / "bad.json")
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match=r"b.png: no such image, but the annotations list it"):
        InstanceDataset(folder, written(folder, content()))


def test_image_of_another_size(folder):
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(folder / "a.png")
    data = InstanceDataset(folder, written(folder, content()))
    with pytest.raises(InputError, match=r"a.png: 30x21 pixels, but the annotations say 30x20"):
        data[0]


# --- the built-in pictures, and the data module -----------------------------------------


def test_scenes_written_as_coco_read_the_same(tmp_path):
    scenes = InstanceScenes(4, size=(64, 80), seed=3)
    file = write_coco(scenes, tmp_path)
    data = InstanceDataset(tmp_path / "images", file)
    assert data.classes == scenes.classes
    for (image, target), (expected, wanted) in zip(
        (data[i] for i in range(4)), (scenes[i] for i in range(4)), strict=True
    ):
        assert torch.equal(image, expected)
        for name in ("boxes", "masks", "labels", "iscrowd", "area"):
            assert torch.equal(target[name], wanted[name]), name


def test_scenes_depend_on_seed_and_split_alone():
    first, again = InstanceScenes(3, size=(64, 64)), InstanceScenes(9, size=(64, 64))
    assert torch.equal(first[2][0], again[2][0])
    assert not torch.equal(first[2][0], InstanceScenes(3, size=(64, 64), split="val")[2][0])
    assert not torch.equal(first[2][0], InstanceScenes(3, size=(64, 64), seed=1)[2][0])


def test_scene_masks_do_not_overlap_and_are_in_sight():
    for index in range(20):
        _, target = InstanceScenes(20, size=(64, 80))[index]
        assert target["masks"].sum(0).max() == 1
        assert target["masks"].flatten(1).sum(1).min() >= 40


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"length": 0}, "at least one picture"),
        ({"size": (40, 80)}, "at least 48"),
        ({"split": "dev"}, "choose one of"),
        ({"seed": -1}, "negative"),
    ],
)
def test_scenes_refuse(options, match):
    with pytest.raises(InputError, match=match):
        InstanceScenes(**{"length": 1, **options})


def coco_data(folder, **options):
    for split in ("train", "val"):
        length = {"train": 5, "val": 3}[split]
        write_coco(InstanceScenes(length, split=split, size=(64, 80)), folder / split)
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


# --- COCO 2017 itself --------------------------------------------------------------------


def many(count):
    """A file of so many sound annotations, and two boxes of height 0 as in COCO's train2017."""
    whole = content()
    sound = whole["annotations"][0]
    whole["annotations"] = [{**sound, "id": number} for number in range(count)]
    flat = {"image_id": 7, "bbox": [2, 4, 1.03, 0.0], "segmentation": [[2, 4, 2, 4, 3, 4, 3, 4]]}
    whole["annotations"] += [{**sound, **flat, "id": count + i} for i in range(2)]
    return whole


def test_few_annotations_without_area_are_left_out_with_a_warning(folder):
    with pytest.warns(UserWarning, match=r"2 of 2000 annotations left out.*1998 \(image b.png\)"):
        file = read_annotations(written(folder, many(1998)))
    assert [len(image.annotations) for image in file.images] == [1998, 0, 0]
    with pytest.raises(InputError, match=r"annotation 1997 .*has no area"):
        read_annotations(written(folder, many(1997)))  # more than one in a thousand


def test_missing_download_is_told(tmp_path):
    with pytest.raises(InputError) as raised:
        CocoData(tmp_path)
    assert "no annotations/instances_train2017.json: download annotations_trainval" in str(
        raised.value
    )
    assert "cocodataset.org" in str(raised.value)
    assert f"fsanet data check {tmp_path} --layout coco" in str(raised.value)


def test_published_layout_is_the_default(tmp_path):
    data = CocoData(write_published(tmp_path), size=(64, 64), workers=0)
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
