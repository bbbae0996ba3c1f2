"""Ways of testing, each against the plain computation it stands for."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.tiny import CLASSES, TinyData, TinyNet
from torch.nn.functional import interpolate

from fsanet.errors import InputError
from fsanet.train import evaluate

HOW = {"accelerator": "cpu", "progress": False}


class Whole(TinyNet):
    """What it says of a pixel depends on its place in the image: a resized image changes it."""

    def forward(self, images):
        logits = super().forward(images)
        place = torch.linspace(-1, 1, images.shape[-1]).sin() * images.shape[-1] / 12
        return logits + place * torch.tensor([1.0, 0.0, -1.0])[:, None, None]


@pytest.fixture
def net():
    torch.manual_seed(4)
    return Whole(dropout=0.0).eval()


def counted(predict, data):
    matrix = np.zeros((3, 3), int)
    for image, label in data.val_set:
        predicted = predict(image[None])[0].numpy()
        for row, column in zip(label.numpy().flat, predicted.flat, strict=True):
            if row != 255:
                matrix[row, column] += 1
    return tuple(map(tuple, matrix.tolist()))


def test_confusion_matrix_is_that_of_a_loop(net):
    data = TinyData(size=(8, 13))
    with torch.no_grad():
        expected = counted(lambda image: net(net.normalise(image)).argmax(1), data)
    assert evaluate(net, data, split="val", **HOW).confusion == expected


@pytest.mark.parametrize(("resize", "size"), [((26, 16), (16, 26)), ((40, 6), (6, 10))])
def test_resized_images_are_scored_at_the_size_of_the_labels(net, resize, size):
    """(8, 13) fits into both limits: twice as large, and three quarters; shape kept."""
    data = TinyData(size=(8, 13))

    def predict(image):
        shrinks = size[0] < 8
        seen = interpolate(image, size, mode="bilinear", antialias=shrinks)
        return interpolate(net(net.normalise(seen)), (8, 13), mode="bilinear").argmax(1)

    with torch.no_grad():
        expected = counted(predict, data)
    scores = evaluate(net, data, split="val", resize=resize, **HOW)
    assert scores.confusion == expected
    assert scores.confusion != evaluate(net, data, split="val", **HOW).confusion


def test_resize_is_a_factor_on_every_scale(net):
    data = TinyData(size=(8, 12))
    one = evaluate(net, data, split="val", resize=(24, 16), scales=(0.5, 1.0), flip=True, **HOW)
    other = evaluate(net, data, split="val", scales=(1.0, 2.0), flip=True, **HOW)
    assert one.confusion == other.confusion


def test_windows_at_once_do_not_change_the_result(net):
    data = TinyData(size=(16, 20))
    how = {"split": "val", "window": 8, "stride": 6, **HOW}
    assert evaluate(net, data, **how) == evaluate(net, data, window_batch=5, **how)


def test_boundary_of_the_same_predictions(net):
    data = TinyData(size=(14, 17))
    scores = evaluate(net, data, split="val", boundary=True, trimap=(1, 3), **HOW)
    assert scores.confusion == evaluate(net, data, split="val", **HOW).confusion
    hit, union = np.zeros((2, 3), int)
    with torch.no_grad():
        for image, label in data.val_set:
            label = label.numpy()
            predicted = net(net.normalise(image[None])).argmax(1)[0].numpy()
            ignored = label == 255
            for c in range(3):
                bands = []
                for ids in (label, predicted):  # 0.02 of the diagonal rounds to 0, so 1
                    region = np.pad((ids == c) | ignored, 1)
                    inner = ndimage.binary_erosion(region, np.ones((3, 3)))[1:-1, 1:-1]
                    bands.append((ids == c) & ~inner & ~ignored)
                hit[c] += (bands[0] & bands[1]).sum()
                union[c] += (bands[0] | bands[1]).sum()
    assert scores.boundary.iou == pytest.approx(hit / union)
    assert list(scores.boundary.trimap_miou) == [1, 3]
    content = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert list(content["boundary"]["classes"]) == list(CLASSES)


def test_second_evaluation_starts_from_nothing(net):
    data = TinyData()
    first, second = (evaluate(net, data, split="val", boundary=True, **HOW) for _ in range(2))
    assert first == second


def test_lines_where_no_bar_can_be_drawn(net, capsys, monkeypatch):
    monkeypatch.setattr("fsanet.progress.LINE_EVERY", 0.0)
    evaluate(net, TinyData(val=3), split="val", accelerator="cpu")
    lines = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert [line.split(" images")[0] for line in lines[-3:]] == [
        "val split 1/3",
        "val split 2/3",
        "val split 3/3",
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"resize": (0, 512)}, "resize"),
        ({"stride": 4}, "stride is 4, but there is no window"),
        ({"window": 8, "window_batch": 0}, "batch_size is 0"),
        ({"boundary": True, "trimap": (0,)}, "trimap=0: must be at least 1"),
        ({"boundary": True, "boundary_ratio": 0.0}, "boundary_ratio=0.0: must be above 0"),
    ],
)
def test_options_out_of_range(net, options, line):
    with pytest.raises(InputError, match=line):
        evaluate(net, TinyData(), split="val", **options, **HOW)
