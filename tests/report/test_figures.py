from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsanet.convert import Calibration
from fsanet.convert.variants import attention_variants
from fsanet.errors import InputError
from fsanet.report.figures import (
    History,
    draw_calibration,
    draw_curves,
    draw_sweep,
    read_history,
    running_mean,
)


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
    with pytest.raises(InputError, match=r"none\.csv: no such metrics file"):
        read_history(tmp_path / "none.csv")
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"metrics\.csv: metrics file is not UTF-8"):
        read_history(path)


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_curves_are_drawn_on_the_ground_they_are_for() -> None:
    history = History(
        loss=tuple((s, 2.0 / (1 + s)) for s in range(50)),
        miou=tuple((s, s / 100) for s in range(0, 50, 10)),
    )
    light, dark = (pixels(draw_curves({"a": history}, dark=dark)) for dark in (False, True))
    assert light.shape == dark.shape == (720, 2000, 3)
    assert light[0, 0].tolist() == [255, 255, 255]
    assert dark[0, 0].max() < 50
    empty = pixels(draw_curves({"a": History((), ())}))
    for half in (slice(0, 1000), slice(1000, 2000)):
        blue = (light[:, half, 2] - light[:, half, 0] > 80).sum()
        assert blue > 1000
        assert (empty[:, half, 2] - empty[:, half, 0] > 80).sum() == 0


def test_the_axis_of_miou_follows_the_values() -> None:
    """A change of 2 points fills the panel; with 0 to 100 % it would be a flat line."""
    rising = History((), tuple((s, 0.7 + s / 2500) for s in range(0, 50, 10)))
    rows, _ = np.nonzero(of_colours(pixels(draw_curves({"a": rising}, ["miou"])), BLUE))
    assert np.ptp(rows) > 300  # of 720


def test_two_histories_have_two_colours_and_names() -> None:
    history = History(((0, 2.0), (9, 1.0)), ((0, 0.2), (9, 0.5)))
    one = pixels(draw_curves({"a": history}))
    two = pixels(draw_curves({"a": history, "b": History(((0, 2.0), (9, 1.5)), ((9, 0.3),))}))
    assert not of_colours(one, ORANGE).any()
    assert of_colours(two, ORANGE)[:, :1000].any()
    assert of_colours(two, ORANGE)[:, 1000:].any()


def test_smoothing_is_a_running_mean() -> None:
    values = np.random.default_rng(0).normal(size=100)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(100)]
    np.testing.assert_allclose(running_mean(values), expected)
    assert running_mean(np.array([3.0])).tolist() == [3.0]


POINTS = attention_variants(["2", "8", "full"], ["low", "high"])
PLAIN = {"as trained": 0.6, "attention removed": 0.2, "k=2": 0.4, "k=8": 0.58, "k=full": 0.6}
BANDS = {"low 0:8": 0.58, "high 16:": 0.25}


def picture(*arguments):
    return pixels(draw_sweep(*arguments))


def of_colours(pixels, colour):
    return np.abs(pixels - np.array(colour)).sum(-1) < 12


def of_colour(pixels, colour):
    return int(of_colours(pixels, colour).sum())


BLUE, ORANGE = (0x1F, 0x6F, 0xC4), (0xD9, 0x73, 0x0D)


def test_one_panel_a_kind_of_points():
    both, only_k = picture(POINTS, PLAIN | BANDS), picture(POINTS, PLAIN)
    assert both.shape[1] == 2 * only_k.shape[1]
    assert of_colour(both, BLUE) > of_colour(only_k, BLUE) > 1000


def test_networks_trained_anew_are_drawn_beside():
    before, after = (picture(POINTS, PLAIN | BANDS, again) for again in (None, {"k=2": [0.5]}))
    assert of_colour(before, ORANGE) == 0
    assert of_colour(after, ORANGE) > 100


def test_values_move_what_is_drawn():
    low = picture(POINTS, PLAIN | {"k=2": 0.1})
    assert (low != picture(POINTS, PLAIN)).any()


def test_nothing_measured():
    assert picture(POINTS, {}).shape[2] == 3


def test_calibration_draws_a_line_for_each_module() -> None:
    ks = (1, 2, 4)
    errors = {name: {k: scale / k for k in ks} for name, scale in (("a", 0.1), ("b", 0.4))}
    energy = {name: {k: k / 4 for k in ks} for name in errors}
    found = Calibration(k={"a": 2}, tolerance=0.05, errors=errors, energy=energy)
    light, dark = pixels(draw_calibration(found)), pixels(draw_calibration(found, dark=True))
    assert light.shape[1] == 2400
    assert light.mean() > 200 > 60 > dark.mean()
    red, green, blue = light.reshape(-1, 3).T
    assert ((red < 80) & (green < 20) & (blue > 70)).any()  # the first module: dark violet
    assert ((red > 150) & (green > 200) & (blue < 60)).any()  # the last: yellow
