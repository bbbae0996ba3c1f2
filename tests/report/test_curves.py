from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsanet.errors import InputError
from fsanet.report.curves import History, _smoothed, draw_curves, read_history


def test_read_history(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,train/loss,val/miou\n5,0,1.5,\n1,0,2.0,\n9,1,,0.25\n10,1,nan,0.5\n")
    history = read_history(path)
    assert history == History(loss=((1, 2.0), (5, 1.5)), miou=((9, 0.25), (10, 0.5)))
    path.write_text("step,epoch,other\n1,0,2\n")
    assert read_history(path) == History(loss=(), miou=())


@pytest.mark.parametrize(
    "text", ["step,train/loss\n1,abc\n", "train/loss\n1\n", "step,train/loss\nx,1\n"]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"metrics\.csv: not a metrics file"):
        read_history(path)
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        read_history(tmp_path / "none.csv")


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_curves_are_drawn_on_the_ground_they_are_for() -> None:
    history = History(
        loss=tuple((s, 2.0 / (1 + s)) for s in range(50)),
        miou=tuple((s, s / 100) for s in range(0, 50, 10)),
    )
    light, dark = pixels(draw_curves(history)), pixels(draw_curves(history, dark=True))
    assert light.shape == dark.shape == (720, 2000, 3)
    assert light[0, 0].tolist() == [255, 255, 255]
    assert dark[0, 0].max() < 50
    empty = pixels(draw_curves(History((), ())))
    for half in (slice(0, 1000), slice(1000, 2000)):
        blue = (light[:, half, 2] - light[:, half, 0] > 80).sum()
        assert blue > 1000
        assert (empty[:, half, 2] - empty[:, half, 0] > 80).sum() == 0


def test_smoothing_is_a_running_mean() -> None:
    values = np.random.default_rng(0).normal(size=100)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(100)]
    np.testing.assert_allclose(_smoothed(values), expected)
    assert _smoothed(np.array([3.0])).tolist() == [3.0]
