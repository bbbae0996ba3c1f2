import io

import numpy as np
from PIL import Image

from fsanet.report.sweep_figure import draw_sweep
from fsanet.report.sweeps import attention_points

POINTS = attention_points(["2", "8", "full"], ["low", "high"])
PLAIN = {"as trained": 0.6, "attention removed": 0.2, "k=2": 0.4, "k=8": 0.58, "k=full": 0.6}
BANDS = {"low 0:8": 0.58, "high 16:": 0.25}


def picture(*arguments):
    with Image.open(io.BytesIO(draw_sweep(*arguments))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def of_colour(pixels, colour):
    return int((np.abs(pixels - np.array(colour)).sum(-1) < 12).sum())


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
