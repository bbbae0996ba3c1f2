"""Masks whose pixels are colours: tables, reading by them, and counting what is there."""

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.data.colours import (
    ColourTable,
    count_colours,
    hex_names,
    read_colour_table,
)
from fsanet.errors import InputError

SKY, ROAD, VOID = (128, 128, 128), (128, 64, 128), (0, 0, 0)


@pytest.fixture
def table(tmp_path):
    def write(text):
        (tmp_path / "colours.txt").write_text(text)
        return read_colour_table(tmp_path / "colours.txt")

    return write


@pytest.mark.parametrize(
    "text",
    [
        "128 128 128\tsky\n128 64 128\t\troad\n0 0 0 Void\n",  # CamVid's own
        "name,r,g,b\nsky,128,128,128\nroad, 128, 64, 128\nvoid,0,0,0\n",
        "# label:color_rgb:parts:actions\nsky:128,128,128::\nroad:128,64,128::\nvoid:0,0,0::\n",
        "#808080 sky\n\n#804080 road\nunlabelled #000000",
    ],
)
def test_tables_as_they_are_found(table, text):
    found = table(text)
    assert found.classes == ("sky", "road")
    assert found.palette == (SKY, ROAD)
    assert found.ids == {SKY: 0, ROAD: 1, VOID: 255}


def test_names_with_digits_and_one_class_of_two_colours(table):
    found = table("class 3 1 2 3\nclass 3:4,5,6::\n7 8 9 lane 2\n")
    assert found.classes == ("class 3", "lane 2")
    assert found.ids == {(1, 2, 3): 0, (4, 5, 6): 0, (7, 8, 9): 1}
    assert found.palette == ((1, 2, 3), (7, 8, 9))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("road 1 2 3\nsky", "line 2: 'sky' has no colour"),
        ("1 2 3", "has no name"),
        ("road 1 2 300", "0..255"),
        ("road 1 2 3\nsky 1 2 3", "line 2: the colour (1, 2, 3) occurs twice"),
        ("void 0 0 0", "no class in it"),
    ],
)
def test_wrong_tables(table, text, line):
    with pytest.raises(InputError) as error:
        table(text)
    assert line in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_reading_in_any_mode(tmp_path, mode):
    colours = [(9, 9, 9), (200, 200, 200)] if mode == "L" else [SKY, ROAD]
    ids = np.random.default_rng(0).integers(0, 2, (5, 7))
    image = Image.fromarray(np.array(colours, dtype=np.uint8)[ids])
    if mode == "P":
        image = image.quantize(2)
    image.convert(mode).save(tmp_path / "a.png")
    found = ColourTable(("a", "b"), dict(zip(colours, (0, 1), strict=True))).read(
        tmp_path / "a.png"
    )
    assert found.dtype is torch.uint8
    assert np.array_equal(found.numpy(), ids)


def test_a_colour_that_is_not_in_the_table_is_named(tmp_path):
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[0, :3] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: 3 % of the pixels .*: \(1, 2, 3\); add"):
        ColourTable(("a",), {(0, 0, 0): 0}).read(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: 100 % of the pixels"):
        ColourTable(("a",), {(9, 9, 9): 0}).read(tmp_path / "a.png")


def test_counting_colours(tmp_path):
    pixels = np.zeros((2, 10, 3), np.uint8)
    pixels[0, :3] = (255, 128, 0)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    found = count_colours([tmp_path / "a.png", tmp_path / "b.png"])
    assert found == {(0, 0, 0): 34, (255, 128, 0): 6}
    assert hex_names(found).ids == {(0, 0, 0): 0, (255, 128, 0): 1}


def test_photographs_are_no_masks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"the masks have \d+ colours"):
        count_colours([tmp_path / "a.png"])
