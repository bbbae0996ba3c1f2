import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.errors import InputError
from fsanet.metrics.boundary import BoundaryQuality
from fsanet.metrics.confusion import scores_of
from fsanet.report.confusion import draw_confusion, write_scores

MATRIX = torch.tensor([[30, 10, 0], [5, 45, 0], [0, 0, 0]])
NAMES = ("road", "path, or | other", "sky")


def test_files_hold_everything_and_parse_again(tmp_path):
    edges = BoundaryQuality(NAMES)
    label = torch.tensor([[0, 0, 1, 1]] * 4)[None]
    edges.update(label, label)
    scores = dataclasses.replace(scores_of(MATRIX, NAMES), boundary=edges.scores())
    write_scores(scores, tmp_path, {"model": "runs/a", "split": "val", "testing": {"flip": True}})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classes.csv",
        "classes.md",
        "confusion.csv",
        "confusion.png",
        "scores.json",
    ]
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["confusion"] == MATRIX.tolist()
    assert content["boundary"]["boundary_iou"] == 1.0
    assert content["testing"] == {"flip": True}
    rows = list(csv.reader(io.StringIO((tmp_path / "classes.csv").read_text())))
    assert rows[2] == ["path, or | other", "75.00", "90.00", "100.00", "50"]
    counts = list(csv.reader(io.StringIO((tmp_path / "confusion.csv").read_text())))
    assert counts[0][1:] == list(NAMES)
    assert [[int(n) for n in row[1:]] for row in counts[1:]] == MATRIX.tolist()
    table = (tmp_path / "classes.md").read_text()
    assert table.startswith("model: runs/a, split: val\n\n| class | IoU % |")
    assert r"| path, or \| other | 75.00 |" in table
    assert "| 16 | 100.00 | 100.00 | 16 |" in table  # trimap


def picture(matrix, names):
    with Image.open(io.BytesIO(draw_confusion(scores_of(matrix, names)))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def dark(pixels):
    """Pixels as dark as a cell of a class that is always right."""
    return int(((pixels[..., 2] - pixels[..., 0] > 60) & (pixels.sum(-1) < 330)).sum())


def test_picture_is_normalised_by_row():
    """Rows of 10 and of 10 million pixels look alike; a confused matrix does not."""
    names = ("a", "b", "c", "d")
    even = picture(torch.eye(4).long() * 10, names)
    uneven = picture(torch.diag(torch.tensor([10, 100, 1000, 10_000_000])), names)
    assert (even == uneven).all()
    spread = picture(torch.full((4, 4), 10), names)
    assert dark(even) > 4 * dark(spread)


def test_row_without_label_is_grey():
    matrix = torch.eye(3).long() * 5
    matrix[2] = 0
    grey = (picture(matrix, ("a", "b", "c")) == 0xD5).all(-1).sum()
    full = (picture(torch.eye(3).long(), ("a", "b", "c")) == 0xD5).all(-1).sum()
    assert grey > 100 * max(full, 1)


@pytest.mark.slow
def test_many_classes_get_a_larger_picture():
    small = picture(torch.eye(19).long(), [f"class {i}" for i in range(19)]).shape
    large = picture(torch.eye(70).long(), [f"class {i}" for i in range(70)]).shape
    # 70 labels of 7 points need 70 * 0.16 inches at 140 dots
    assert large[0] > 70 * 0.16 * 140 > small[0]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_scores(scores_of(MATRIX, NAMES), tmp_path / "file", {})
