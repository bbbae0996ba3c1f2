import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.data.masks import check_ids, class_names, class_palette, looks_scaled, read_mask
from fsanet.errors import InputError

IDS = np.random.default_rng(3).integers(0, 200, (9, 11), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.pgm"])
def test_grey_and_palette_files_give_ids(tmp_path, name):
    image = Image.fromarray(IDS)
    image.save(tmp_path / name)
    assert np.array_equal(read_mask(tmp_path / name).numpy(), IDS)
    assert read_mask(tmp_path / name).dtype is torch.uint8


def test_palette_png_gives_indices_not_colours(tmp_path):
    image = Image.fromarray(IDS)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png").numpy(), IDS)


def test_black_and_white_file_gives_0_and_1(tmp_path):
    Image.fromarray(IDS > 100).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png").numpy(), IDS > 100)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_refused(tmp_path, mode):
    Image.fromarray(IDS).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(InputError) as error:
        read_mask(tmp_path / "a.png")
    assert f"{tmp_path / 'a.png'}: mask holds colours (mode {mode})" in str(error.value)
    assert "8-bit" in str(error.value)


def test_16_bits_are_refused(tmp_path):
    Image.fromarray(IDS.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: mask has more than 8 bits"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "mask file is empty"), (b"no image", "not an image"), (None, "damaged or truncated")],
)
def test_damaged_files_are_named(tmp_path, content, line):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError) as error:
        read_mask(path)
    assert str(error.value).startswith(f"{path}: {line}")
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"b\.png: no such mask file"):
        read_mask(tmp_path / "b.png")


def ids(*values: int) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.uint8)


def test_good_ids_pass():
    check_ids(ids(0, 1, 2, 255), "m.png", 3, 255)
    check_ids(ids(0, 1, 2, 0), "m.png", 3, 0)
    check_ids(ids(254, 255), "m.png", 255, 255)


@pytest.mark.parametrize(
    ("values", "classes", "ignore", "message"),
    [
        ((0, 255), 2, 254, "class id 255 out of range.*0/255 mask: divide it by 255"),
        ((1, 2, 3), 3, 255, "class id 3 out of range.*shifted by one: subtract 1"),
        ((0, 9), 3, 255, "class id 9 .*raise num_classes to at least 10"),
        (tuple(range(40)), 3, 255, r"class ids 3, 4, 5, 6, 7, 8, 9, 10, \.\.\. out of range"),
    ],
)
def test_wrong_ids_name_file_values_and_likely_cause(values, classes, ignore, message):
    with pytest.raises(InputError, match=rf"m\.png: {message}"):
        check_ids(ids(*values), "m.png", classes, ignore)


def save(folder, rows):
    paths = []
    for i, row in enumerate(rows):
        paths.append(folder / f"{i:03d}.png")
        Image.fromarray(np.array([row], dtype=np.uint8)).save(paths[-1])
    return paths


def test_looks_scaled(tmp_path):
    scaled = [[0, 255]] * 30
    assert looks_scaled(save(tmp_path, scaled))
    assert not looks_scaled(save(tmp_path, [[0, 0]] * 30))
    for position in (0, 13, 29):
        rows = [*scaled]
        rows[position] = [0, 1]
        assert not looks_scaled(save(tmp_path, rows))


def test_looks_scaled_leaves_damaged_files_to_the_reader(tmp_path):
    paths = save(tmp_path, [[0, 255]] * 3)
    paths[1].write_bytes(b"")
    assert looks_scaled(paths)


# ---- classes and colours


def test_class_names():
    assert class_names(None, 2) == ("class 0", "class 1")
    assert class_names(["a", "b"], 2) == ("a", "b")


@pytest.mark.parametrize(
    ("classes", "count", "message"),
    [
        (None, None, "give classes="),
        (["a", "b"], 3, "num_classes=3, but 2 class names"),
        (["a", "b", "a"], None, "classes: a given twice"),
        (None, 0, "num_classes=0: must be at least 1"),
        ([f"{i}" for i in range(256)], None, "256 classes"),
        ("ab", None, "list of names"),
        ([1, 2], None, "list of names"),
        (["a\ud800"], None, "list of names"),  # no Unicode text
    ],
)
def test_bad_class_names(classes, count, message):
    with pytest.raises(InputError, match=message):
        class_names(classes, count)


@pytest.mark.parametrize("count", [2, 19, 150])
def test_default_palette_is_distinct(count):
    palette = class_palette(None, count)
    assert len(set(palette)) == count
    assert class_palette([list(colour) for colour in palette], count) == palette  # and valid


def test_bad_palettes():
    with pytest.raises(InputError, match="2 colours for 3 classes"):
        class_palette([(0, 0, 0), (1, 1, 1)], 3)
    with pytest.raises(InputError, match=r"0\.\.255"):
        class_palette([(0, 0, 256)], 1)
