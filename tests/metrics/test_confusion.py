import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from fsanet.metrics.confusion import class_rows, markdown_table, scores_of


def loop(labels, predictions, classes):
    """IoU of each class by counting sets of pixels; nan for a class without label."""
    found = []
    for c in range(classes):
        intersection = union = labelled = 0
        for label, prediction in zip(labels, predictions, strict=True):
            if label == 255:
                continue
            intersection += label == c and prediction == c
            union += label == c or prediction == c
            labelled += label == c
        found.append(intersection / union if labelled else math.nan)
    return found


def matrix(labels, predictions, classes):
    counts = torch.zeros(classes, classes, dtype=torch.long)
    for label, prediction in zip(labels, predictions, strict=True):
        if label != 255:
            counts[label, prediction] += 1
    return counts


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 2, 3)])
def test_against_a_loop(present):
    rng = np.random.default_rng(0)
    labels = rng.choice([*present, 255], size=400)
    predictions = np.where(rng.random(400) < 0.6, labels % 255, rng.integers(0, 4, 400))
    scores = scores_of(matrix(labels, predictions, 4), ("a", "b", "c", "d"))
    expected = loop(labels, predictions, 4)
    assert scores.iou == pytest.approx(expected, nan_ok=True)
    assert scores.miou == pytest.approx(np.nanmean(expected))
    valid = labels != 255
    assert scores.pixel_accuracy == pytest.approx((labels == predictions)[valid].mean())
    recalls = [(predictions[labels == c] == c).mean() for c in present]
    assert scores.mean_accuracy == pytest.approx(np.mean(recalls))
    assert scores.pixels == tuple((labels == c).sum() for c in range(4))


def test_agrees_with_torchmetrics_where_every_class_occurs():
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    expected = MulticlassJaccardIndex(5)(torch.tensor(predictions), torch.tensor(labels))
    got = scores_of(matrix(labels, predictions, 5), tuple("abcde")).miou
    assert got == pytest.approx(expected.item(), rel=1e-6)


def test_nothing_labelled_is_nan_and_json_has_null():
    scores = scores_of(torch.zeros(2, 2), ("a", "b"))
    assert math.isnan(scores.miou)
    text = json.dumps(scores.as_dict(), allow_nan=False)
    assert json.loads(text)["classes"]["a"] == {"iou": None, "accuracy": None, "pixels": 0}


def test_one_class():
    """For which torchmetrics gives a scalar."""
    scores = scores_of(torch.tensor(7), ("a",))
    assert (scores.miou, scores.pixels) == (1.0, (7,))


def test_rows_are_the_numbers_by_hand():
    confusion = torch.tensor([[30, 10, 0], [5, 45, 0], [0, 0, 0]])
    header, *rows, mean = class_rows(scores_of(confusion, ("road", "path", "sky")))
    assert header == ["class", "IoU %", "accuracy %", "pixels"]
    assert rows[0] == ["road", "66.67", "75.00", "40"]  # 30 / 45, 30 / 40
    assert rows[1] == ["path", "75.00", "90.00", "50"]
    assert rows[2] == ["sky", "", "", "0"]
    assert mean == ["mean", "70.83", "82.50", "90"]


def test_names_do_not_break_a_table():
    lines = markdown_table([["class", "IoU %"], ["a\nb|c\x1b[31m", "1.00"]]).split("\n")
    assert lines[2:] == ["| a\\nb\\|c\\x1b[31m | 1.00 |"]
