from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fsanet.errors import InputError
from fsanet.predict import draw as render

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def test_colours_by_id() -> None:
    mask = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    expected = [[PALETTE[0], PALETTE[1]], [PALETTE[2], render.UNLABELLED]]
    np.testing.assert_array_equal(render.colourise(mask, PALETTE), expected)
    assert len(render.full_palette(PALETTE)) == 768
    assert len(render.full_palette([(1, 2, 3)] * 256)) == 768


@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_boundaries_against_a_loop(thickness: int) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (9, 11)).repeat(3, 0).repeat(3, 1)
    edge = np.zeros(mask.shape, bool)
    for y, x in np.ndindex(*mask.shape):
        for dy, dx in ((0, 1), (1, 0)):
            inside = y + dy < mask.shape[0] and x + dx < mask.shape[1]
            if inside and mask[y, x] != mask[y + dy, x + dx]:
                for ty, tx in np.ndindex(thickness, thickness):
                    if y + ty < mask.shape[0] and x + tx < mask.shape[1]:
                        edge[y + ty, x + tx] = True
    np.testing.assert_array_equal(render.find_boundaries(mask, thickness), edge)
    assert 0 < edge.mean() < 1


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_blend_against_numpy(alpha: float) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, (5, 6), dtype=np.uint8)
    mask[2, 3] = 255
    drawn = render.overlay(mask, PALETTE, image, alpha=alpha, boundaries=False).to_image()
    assert drawn.mode == "RGB"
    assert drawn.size == (6, 5)
    colours = np.array([*PALETTE, *[(0, 0, 0)] * 253])[mask]
    expected = image * (1 - alpha) + colours * alpha
    expected[2, 3] = image[2, 3]  # without a label: as it was
    assert np.abs(np.asarray(drawn) - expected).max() <= 0.51


def test_alpha_outside_its_range() -> None:
    with pytest.raises(InputError, match=r"alpha is 1\.5; give"):
        render.overlay(np.zeros((2, 2), np.uint8), PALETTE, alpha=1.5)


def test_boundaries_are_drawn_between_classes_only() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 15:] = 1
    image = np.full((20, 30, 3), 90, np.uint8)
    plain = np.asarray(render.overlay(mask, PALETTE, image, boundaries=False).to_image())
    lined = np.asarray(render.overlay(mask, PALETTE, image, boundaries=True).to_image())
    changed = (plain != lined).any(-1)
    assert changed[:, 14].all()
    assert not changed[:, :14].any()
    assert not changed[:, 15:].any()


@pytest.mark.parametrize(
    ("size", "count"),
    [((200, 300), 40), ((300, 200), 40), ((20, 30), 3), ((30, 20), 3), ((1, 1), 1), ((30, 450), 3)],
)
def test_legend_leaves_the_picture_whole_and_holds_every_class(
    size: tuple[int, int], count: int
) -> None:
    rng = np.random.default_rng(2)
    palette = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(count)]
    entries = [(f"class {i}", palette[i], 1 / count) for i in range(count)]
    mask = np.zeros(size, np.uint8)
    drawn = render.overlay(mask, palette, legend=entries).to_image()
    factor = min(8, -(-192 // min(size)))
    height, width = size[0] * factor, size[1] * factor
    pixels = np.asarray(drawn)
    assert (pixels[:height, :width] == palette[0]).all()
    # Outside of the picture each entry has a swatch of its colour, and text.
    outside = np.ones(pixels.shape[:2], bool)
    outside[:height, :width] = False
    for colour in palette:
        assert ((pixels == colour).all(-1) & outside).sum() >= 50
    assert ((pixels == render.TEXT).all(-1) & outside).sum() > 20 * count
    assert drawn.width > width or drawn.height > height
    # Nothing runs over the border: the last rows and columns outside are background.
    assert (pixels[height:, -1] == 255).all()
    assert (pixels[-1, width:] == 255).all()


def test_long_names_widen_the_canvas() -> None:
    mask = np.zeros((300, 400), np.uint8)
    short = render.overlay(mask, PALETTE, legend=[("a", (1, 2, 3), 0.5)])
    long = render.overlay(mask, PALETTE, legend=[("a" * 80, (1, 2, 3), 0.5)])
    assert short.width == 400
    assert long.width > 500
    endless = render.overlay(mask, PALETTE, legend=[("a" * 100_000, (1, 2, 3), 0.5)])
    assert endless.width < 1.5 * long.width


def test_control_characters_of_names_are_written_out() -> None:
    mask = np.zeros((300, 400), np.uint8)
    odd, escaped = (
        render.overlay(mask, PALETTE, legend=[(name, (1, 2, 3), 0.5)]).to_image()
        for name in ("a\nb", "a\\nb")
    )
    np.testing.assert_array_equal(odd, escaped)


def test_the_font_scales_and_has_letters_beyond_ascii() -> None:
    assert render.font(30).getlength("abc") > 1.5 * render.font(15).getlength("abc")
    glyphs = {bytes(render.font(24).getmask(letter)) for letter in "éßжλ"}
    assert len(glyphs) == 4  # a missing glyph would be the same box for all


def test_no_entries_no_legend() -> None:
    picture = render.overlay(np.zeros((200, 300), np.uint8), PALETTE, legend=[])
    assert picture[:2] == (300, 200)


@pytest.mark.parametrize("size", [(300, 200), (210, 400), (20, 30)])
def test_bands_and_files_do_not_change_the_picture(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rows, in a file, and at once."""
    rng = np.random.default_rng(4)
    mask = rng.integers(0, 4, (size[0] // 5, size[1] // 5), np.uint8).repeat(5, 0).repeat(5, 1)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    legend = [(f"class {i}", PALETTE[i], 0.3) for i in range(3)] * 5

    def drawn() -> render.Picture:
        return render.overlay(mask, PALETTE, image, legend=legend)

    monkeypatch.setattr(render, "_BAND_PIXELS", mask.size)
    (whole,) = list(render.overlay(mask, PALETTE, image).bands)
    pixels = np.asarray(drawn().to_image())
    if size[0] > 192:
        np.testing.assert_array_equal(pixels[: size[0], : size[1]], whole)
    monkeypatch.setattr(render, "_BAND_PIXELS", 1000)
    assert max(len(band) for band in render.overlay(mask, PALETTE, image).bands) <= 1000 / 30
    stream = io.BytesIO()
    drawn().write_png(stream)
    with Image.open(stream) as stored:
        assert stored.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(stored), pixels)


@pytest.mark.parametrize("alpha", [0, 1 / 3, 0.5, 1])
@pytest.mark.parametrize("classes", [1, 11, 256])
def test_colours_are_blended_as_computed_in_float32(classes: int, alpha: float) -> None:
    rng = np.random.default_rng(classes)
    palette = [tuple(map(int, colour)) for colour in rng.integers(0, 256, (classes, 3))]
    mask = rng.integers(0, 256, (40, 60), np.uint8)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    drawn = render.overlay(mask, palette, image, alpha=alpha, boundaries=False).to_image()
    weight = np.where(mask < classes, np.float32(alpha), np.float32(0))[..., None]
    colours = render.colourise(mask, palette)
    expected = image * (1 - weight) + colours * weight + np.float32(0.5)
    np.testing.assert_array_equal(np.asarray(drawn), expected.astype(np.uint8))


def test_heat_map_is_red_above_and_blue_below():
    image = np.full((3, 200, 300), 128, np.uint8)
    values = np.array([[0.5, 0.1, -0.3]])
    drawn = np.asarray(render.heat_map(values, image, centre=0.1)).astype(int)
    assert drawn.shape == (200, 300, 3)
    red, grey, blue = drawn[100, 50], drawn[100, 150], drawn[100, 250]
    assert red[0] > red[2] + 80
    assert np.ptp(grey) == 0
    assert blue[2] > blue[0] + 80
    small = render.heat_map(values, image[:, :48, :90], at=(10, 20))
    assert small.size == (4 * 90, 4 * 48)
    ring = np.asarray(small).astype(int)
    assert (ring.min(-1) == 255).any()
    assert (ring.max(-1) == 0).any()
