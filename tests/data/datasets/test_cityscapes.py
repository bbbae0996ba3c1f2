import numpy as np
import pytest
import torch
from PIL import Image
from support.miniature import CITYSCAPES, write_cityscapes
from torchvision import datasets, tv_tensors

from fsanet.data import Cityscapes, CityscapesData
from fsanet.data.datasets.cityscapes import ID_TABLE
from fsanet.errors import InputError

# The labels as the data set's site lists them: id, name, and whether it is evaluated. Written
# down here a second time, by name; train ids count the evaluated ones.
LABELS = """
0 unlabeled -
1 ego vehicle -
2 rectification border -
3 out of roi -
4 static -
5 dynamic -
6 ground -
7 road +
8 sidewalk +
9 parking -
10 rail track -
11 building +
12 wall +
13 fence +
14 guard rail -
15 bridge -
16 tunnel -
17 pole +
18 polegroup -
19 traffic light +
20 traffic sign +
21 vegetation +
22 terrain +
23 sky +
24 person +
25 rider +
26 car +
27 truck +
28 bus +
29 caravan -
30 trailer -
31 train +
32 motorcycle +
33 bicycle +
"""


def all_ids():
    return torch.arange(34, dtype=torch.uint8)[None]


def test_label_ids_to_train_ids_name_by_name():
    mapped = ID_TABLE(all_ids(), "all")[0].tolist()
    data_classes = CityscapesData("nowhere").classes
    evaluated = 0
    for line in LABELS.split("\n")[1:-1]:
        number, *name, mark = line.split()
        if mark == "+":
            assert mapped[int(number)] == evaluated, line
            assert data_classes[evaluated] == " ".join(name)
            evaluated += 1
        else:
            assert mapped[int(number)] == 255, line
    assert evaluated == len(data_classes) == 19


def test_table_names_and_colours_agree_with_torchvision():
    mapped = ID_TABLE(all_ids(), "all")[0].tolist()
    data = CityscapesData("nowhere")
    for label in datasets.Cityscapes.classes:
        if label.id >= 0:
            assert mapped[label.id] == label.train_id, label
        if 0 <= label.train_id < 255:
            assert data.classes[label.train_id] == label.name
            assert data.palette[label.train_id] == label.color


@pytest.mark.parametrize(("split", "labels"), [("train", "fine"), ("train_extra", "coarse")])
def test_same_pairs_as_torchvision(tmp_path, split, labels):
    root = write_cityscapes(tmp_path, coarse=True)
    theirs = datasets.Cityscapes(str(root), split, labels, "semantic")
    expected = sorted((i, t[0]) for i, t in zip(theirs.images, theirs.targets, strict=True))
    data = Cityscapes(root, split, labels=labels)
    assert list(zip(map(str, data.image_paths), map(str, data.mask_paths), strict=True)) == expected
    assert data.names == sorted(CITYSCAPES[split])


def test_item(tmp_path):
    root = write_cityscapes(tmp_path)
    data = Cityscapes(root, "val")
    image, mask = data[1]
    stem = root / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png"
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(stem)))
    values = np.asarray(
        Image.open(root / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png")
    )
    train_id = {c.id: c.train_id for c in datasets.Cityscapes.classes}
    assert np.array_equal(mask.numpy(), np.vectorize(train_id.__getitem__)(values))
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype is torch.int64


def test_trainval_is_both_and_test_has_no_labels(tmp_path):
    root = write_cityscapes(tmp_path)
    assert Cityscapes(root, "trainval").names == [
        *sorted(CITYSCAPES["train"]),
        *sorted(CITYSCAPES["val"]),
    ]
    data = Cityscapes(root, "test")
    image, mask = data[0]
    assert data.mask_paths == [None]
    assert mask.shape == image.shape[1:]
    assert mask.unique().tolist() == [255]


@pytest.mark.parametrize(
    ("split", "labels", "line"),
    [
        ("tran", "fine", r"split='tran': Cityscapes with fine labels has train, val, test"),
        ("train_extra", "fine", r"split='train_extra'"),
        ("train", "rough", r"labels='rough'"),
    ],
)
def test_unknown_splits(tmp_path, split, labels, line):
    with pytest.raises(InputError, match=line):
        Cityscapes(tmp_path, split, labels=labels)


def test_missing_download_names_archives_site_place_and_check(tmp_path):
    with pytest.raises(InputError) as raised:
        Cityscapes(tmp_path / "none")
    line = str(raised.value)
    for part in (
        "leftImg8bit/train",
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
        "www.cityscapes-dataset.com",
        f"unpack in {tmp_path / 'none'}",
        f"fsanet data check {tmp_path / 'none'} --layout cityscapes",
    ):
        assert part in line
    assert "\n" not in line
    root = write_cityscapes(tmp_path)
    with pytest.raises(InputError, match=r"leftImg8bit_trainextra.zip and gtCoarse.zip"):
        Cityscapes(root, "train_extra", labels="coarse")
    with pytest.raises(InputError, match=r"no gtCoarse/train: .* or download gtCoarse.zip from"):
        Cityscapes(root, "train", labels="coarse")


def test_data_module(tmp_path):
    root = write_cityscapes(tmp_path, coarse=True)
    options = {"crop": (16, 24), "batch_size": 2, "steps_per_epoch": 1, "workers": 0}
    data = CityscapesData(root, **options)
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 16, 24)
    assert masks.dtype is torch.int64
    assert len(data.test_dataloader()) == len(data.val_dataloader()) == 2
    coarse = CityscapesData(
        root, train_split="train_extra", train_labels="coarse", test_split="test", **options
    )
    assert coarse.dataset("train").names == sorted(CITYSCAPES["train_extra"])
    assert coarse.dataset("val").names == sorted(CITYSCAPES["val"])
    assert coarse.dataset("test").names == ["berlin_000000_000019"]
