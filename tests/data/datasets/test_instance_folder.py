"""Instances of one's own: masks that number them, and shapes, both against the annotation file."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.miniature import write_instance_scenes

pytest.importorskip("faster_coco_eval")

from fsanet.data import CocoData, InstanceDataset, InstanceFolderData, InstanceScenes
from fsanet.data.datasets.instance_folder import numbered_masks
from fsanet.errors import InputError

MASKS = {"images": "images/*.png", "masks": "masks/{stem}.png"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six pictures in one folder, with an annotation file, numbers and colours of instances."""
    root = tmp_path_factory.mktemp("scenes")
    scenes = InstanceScenes(6, size=(64, 80))
    write_instance_scenes(root, scenes)
    (root / "masks").mkdir()
    (root / "colours").mkdir()
    for name, (_, target) in zip(scenes.names, scenes, strict=False):
        numbers = np.zeros((64, 80), np.uint16)
        for number, mask in enumerate(target["masks"].numpy(), 1):
            numbers[mask > 0] = 300 * number
        Image.fromarray(numbers).save(root / "masks" / name)
        colours = np.stack([numbers // 300 * 40, numbers * 0, numbers * 0], -1).astype(np.uint8)
        Image.fromarray(colours).save(root / "colours" / name)
    return root


def assert_same(one, other, *, labels=True):
    assert torch.equal(one["masks"], other["masks"])
    torch.testing.assert_close(one["boxes"].float(), other["boxes"].float())
    assert torch.equal(one["area"], other["area"])
    assert not labels or torch.equal(one["labels"], other["labels"])


@pytest.mark.parametrize("folder", ["masks", "colours"])
def test_numbers_and_colours_are_the_instances(root, folder):
    data = InstanceFolderData(root, images="images/*.png", masks=folder + "/{stem}.png")
    known = InstanceDataset(root / "images", root / "instances.json")
    found = data.dataset("all")
    assert (data.classes, data.category_ids) == (("object",), (1,))
    assert len(found) == 6
    for (image, target), (same, other) in zip(found, known, strict=False):
        assert torch.equal(image, same)
        assert_same(target, other, labels=False)
        assert set(target["labels"].tolist()) == {1}
    named = InstanceFolderData(root, **MASKS, classes=["cell"], val_fraction=0.3)
    assert named.classes == ("cell",)


def test_shapes_are_those_of_coco(root):
    how = {"annotations": "../instances.json", "val_fraction": 0.34}
    data = InstanceFolderData(root / "images", **how, size=(48, 40), workers=0)
    known = InstanceDataset(root / "images", root / "instances.json")
    assert data.classes == known.classes
    names = {stage: data.dataset(stage).names for stage in ("train", "val", "test")}
    assert (len(names["train"]), len(names["val"])) == (4, 2)
    assert names["val"] == names["test"]
    assert not {*names["val"]} & {*names["train"]}
    by_name = {name.removesuffix(".png"): item for name, item in zip(known.names, known)}  # noqa: B905
    for name, (image, target) in zip(names["train"], data.dataset("train"), strict=False):
        assert torch.equal(image, by_name[name][0])
        assert_same(target, by_name[name][1])
    assert next(iter(data.train_dataloader()))[1][0]["masks"].shape[1:] == (48, 40)


def test_category_ids_are_those_of_the_file(coco_content, write):
    for image in coco_content["images"]:
        write.image(image["file_name"], (20, 30))
    (write.root / "shapes.json").write_text(json.dumps(coco_content))
    data = InstanceFolderData(write.root, annotations="shapes.json", val_fraction=0.4)
    paths = {"train_annotations": "shapes.json", "train_images": "."}
    coco = CocoData(write.root, **paths)
    assert (data.classes, data.category_ids) == (coco.classes, coco.category_ids)
    assert data.category_ids == (2, 5)
    other = coco_content | {"categories": [{"id": 2, "name": "dog"}, {"id": 5, "name": "cow"}]}
    for split, content in (("train", coco_content), ("val", other)):
        (write.root / f"{split}.json").write_text(json.dumps(content))
    data = InstanceFolderData(write.root, annotations="{split}.json")
    assert data.classes == ("cat", "dog", "cow")
    assert data.category_ids == (1, 2, 3)  # 5 is dog in one file and cow in the other
    labels = [target["labels"].tolist() for _, target in data.dataset("val")]
    assert sorted(itertools.chain(*labels)) == [2, 2, 3]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (MASKS | {"classes": ["a", "b"]}, "2 classes: masks that number instances"),
        ({"annotations": "instances.json", "classes": ["a"]}, "leave out classes"),
        ({"annotations": "instances.json", **MASKS}, "annotations take the place of masks"),
    ],
)
def test_wrong_options(root, options, line):
    with pytest.raises(InputError, match=line):
        InstanceFolderData(root, **options)


def test_a_photograph_is_no_mask(tmp_path, monkeypatch):
    monkeypatch.setattr("fsanet.data.datasets.instance_folder.MASK_BYTES", 600)
    with pytest.raises(InputError, match=r"a\.png: 7 values in one mask are too many"):
        numbered_masks(torch.arange(100).reshape(10, 10) % 8, tmp_path / "a.png")


def test_another_size(root, write):
    write.image("a.jpg", (12, 16))
    write.mask("a_mask.png", np.ones((12, 18)))
    data = InstanceFolderData(write.root, images="*.jpg", masks="{stem}_mask.png")
    with pytest.raises(InputError, match=r"a_mask\.png: labels are 18x12 pixels"):
        data.dataset("all")[0]
