import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.miniature import SBD, VOC, VOC_TRAIN_AUG, write_voc
from torchvision import datasets

from fsanet.data import VocAug
from fsanet.data.datasets.voc import read_labels
from fsanet.errors import InputError

pytest.importorskip("scipy", reason="the miniature's .mat files are written with SciPy")


@pytest.mark.parametrize("sbd", ["mat", "png"])
def test_train_aug_is_the_union_without_val(tmp_path, sbd):
    data = VocAug(write_voc(tmp_path, sbd=sbd))
    assert data.names == list(VOC_TRAIN_AUG)
    assert set(data.names) == (set(SBD["train"] + SBD["val"]) | set(VOC["train"])) - set(VOC["val"])


@pytest.mark.parametrize("sbd", ["mat", "png"])
def test_labels_of_vocs_own_train_come_first(tmp_path, sbd):
    """2007_000032 has labels in both; VOC's have the outlines, 255."""
    root = write_voc(tmp_path, sbd=sbd)
    data = VocAug(root)
    own = np.asarray(Image.open(root / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png"))
    assert np.array_equal(data[0][1].numpy(), own)
    assert (own[:2] == 255).all()
    assert (data[2][1] != 255).all()  # 2008_000002, of SBD alone


def test_mat_and_png_say_the_same_and_as_torchvision(tmp_path):
    mats, pngs = write_voc(tmp_path / "a"), write_voc(tmp_path / "b", sbd="png")
    first, second = VocAug(mats), VocAug(pngs)
    for (_, a), (_, b) in zip(first, second, strict=True):
        assert torch.equal(a, b)
    sbd = datasets.SBDataset(
        str(mats / "benchmark_RELEASE/dataset"), image_set="val", mode="segmentation"
    )
    # torchvision reads the file's nested arrays its own way
    assert np.array_equal(np.asarray(sbd._get_target(sbd.masks[0])), first[3][1].numpy())


@pytest.mark.parametrize("split", ["train", "val"])
def test_plain_splits_are_torchvisions(tmp_path, split):
    root = write_voc(tmp_path, sbd="none")
    theirs = datasets.VOCSegmentation(str(root), image_set=split)
    data = VocAug(root, split)
    assert list(map(str, data.image_paths)) == theirs.images
    assert list(map(str, data.mask_paths)) == theirs.targets
    for index, (_, target) in enumerate(theirs):
        assert np.array_equal(data[index][1].numpy(), np.asarray(target))


def test_sbd_may_be_elsewhere(tmp_path):
    root = write_voc(tmp_path / "voc")
    (root / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
    with pytest.raises(
        InputError,
        match=r"dataset.cls: .*benchmark.tgz from http://home.bharathh.info[^ ]*,",
    ):
        VocAug(root)
    assert VocAug(root, sbd=tmp_path / "elsewhere/dataset").names == list(VOC_TRAIN_AUG)
    with pytest.raises(InputError, match=r"voc: no folder cls; give SBD's folder"):
        VocAug(root, sbd=root)
    assert VocAug(root / "VOCdevkit", "val").names == list(VOC["val"])
    assert VocAug(root / "VOCdevkit/VOC2012", "val").names == list(VOC["val"])


def test_list_of_train_aug_is_taken_and_must_not_leak_val(tmp_path):
    root = write_voc(tmp_path, sbd="png")
    file = root / "VOCdevkit/VOC2012/ImageSets/SegmentationAug/train_aug.txt"
    file.parent.mkdir()
    line = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"
    file.write_text("".join(line.format(name) for name in ("2008_000003", "2007_000032")))
    assert VocAug(root).names == ["2007_000032", "2007_000039", "2008_000003"]
    file.write_text(line.format("2007_000033"))
    with pytest.raises(InputError, match=r"train_aug.txt: 1 images of VOC's val.*2007_000033"):
        VocAug(root)


def test_without_scipy_the_line_says_what_to_install(tmp_path, monkeypatch):
    root = write_voc(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match=r"pip install scipy, or put .*ClassAug"):
        VocAug(root)
    assert len(VocAug(root, "val")) == 2


def test_missing_download_and_faults(tmp_path):
    with pytest.raises(
        InputError, match=r"VOCtrainval_11-May-2012.tar from http://host.robots[^ ]*,"
    ):
        VocAug(tmp_path, "val")
    with pytest.raises(InputError, match=r"split='test': VOC has train, val, train_aug"):
        VocAug(tmp_path, "test")
    root = write_voc(tmp_path)
    voc = root / "VOCdevkit/VOC2012"
    mat = root / "benchmark_RELEASE/dataset/cls/2008_000002.mat"
    mat.write_bytes(mat.read_bytes()[:200])
    with pytest.raises(InputError, match=r"2008_000002.mat: labels cannot be read \(damaged"):
        VocAug(root)[2]
    mat.unlink()
    with pytest.raises(InputError, match=r"2008_000002.jpg: image has no labels .*2008_000002.mat"):
        VocAug(root)
    (voc / "JPEGImages/2007_000042.jpg").unlink()
    with pytest.raises(InputError, match=r"2007_000042.jpg: no such image, but the lists name it"):
        VocAug(root, "val")


def test_mat_of_another_kind(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"GTinst": {"Segmentation": np.zeros((2, 3), np.uint8)}})
    with pytest.raises(InputError, match=r"a.mat: labels cannot be read"):
        read_labels(tmp_path / "a.mat")
    with pytest.raises(InputError, match=r"b.mat: no such label file"):
        read_labels(tmp_path / "b.mat")
