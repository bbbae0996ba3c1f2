import os
from pathlib import Path

import pytest
import torch

from fsanet.data import CamVid, CamVidData
from fsanet.data.datasets.camvid import CLASSES, PALETTE


def root() -> Path:
    shared = os.environ.get("FSANET_SHARED") or Path(__file__).parents[4] / "shared"
    return Path(shared) / "data" / "camvid"


needs_data = pytest.mark.skipif(
    not root().is_dir(), reason="CamVid is not there; set FSANET_SHARED to the folder above data/"
)


def test_preset_reads_its_layout_without_being_told_the_classes(write):
    write.pairs("val", ["a", "b"], classes=11)
    data = CamVid(write.root, "val")
    assert data.names == ["a", "b"]
    assert data.classes == CLASSES
    assert len(CLASSES) == len(set(PALETTE)) == 11
    assert data.palette == PALETTE


def test_trainval_is_train_followed_by_val(write):
    write.pairs("train", ["c", "d"], classes=11)
    write.pairs("val", ["a"], classes=11)
    data = CamVidData(write.root, train_split="trainval")
    assert data.make_dataset("train").names == ["c", "d", "a"]
    assert data.make_dataset("val").names == ["a"]


@needs_data
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_real_splits(split, count):
    data = CamVid(root(), split)
    assert len(data) == count
    image, mask = data[count // 2]
    assert image.shape == (3, 360, 480)
    assert mask.shape == (360, 480)
    assert set(mask.unique().tolist()) <= {*range(11), 255}


@needs_data
def test_real_classes_are_where_they_belong():
    """Sky lies above road: the order of the names is the order of the ids."""
    mask = CamVid(root(), "val")[0][1]
    rows = torch.arange(360.0)[:, None].expand_as(mask)
    mean_row = {
        name: rows[mask == CLASSES.index(name)].mean() for name in ("sky", "road", "building")
    }
    assert mean_row["sky"] < mean_row["building"] < mean_row["road"]


@needs_data
def test_real_batches():
    data = CamVidData(root(), crop=(96, 128), batch_size=2, steps_per_epoch=1, workers=0)
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 96, 128)
    assert masks.shape == (2, 96, 128)
    images, masks = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 360, 480)
    assert masks.dtype is torch.int64
