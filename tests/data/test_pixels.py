"""Pixel arithmetic against torchvision, the standard library's HSV, and float64 by hand."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fsanet.data import pixels as module
from fsanet.data.pixels import (
    Region,
    look_up,
    offset_and_scale,
    resized_ids,
    resized_pixels,
    shift_hue,
)

LEVELS = (0, 1, 17, 100, 128, 200, 254, 255)


def all_colours() -> torch.Tensor:
    """Every combination of the levels: uint8 (3, 32, 16)."""
    colours = torch.tensor(list(itertools.product(LEVELS, repeat=3)), dtype=torch.uint8)
    return colours.T.reshape(3, 32, 16)


@pytest.mark.parametrize("turn", [-0.5, -0.17, -0.16, -0.1, 0.0, 0.05, 0.1, 0.31, 0.5])
def test_hue(turn):
    image = all_colours()
    found = shift_hue(image, turn)
    assert found.dtype is torch.uint8
    assert found.shape == image.shape
    difference = (found.int() - F.adjust_hue(image, turn).int()).abs()
    assert difference.max() <= 1
    for rgb, ours in zip(image.flatten(1).T.tolist(), found.flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in rgb))
        expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
        for level, exact in zip(ours, expected, strict=True):
            assert -1.001 <= level - 255 * exact <= 0.001  # cut, as torchvision does


def test_hue_of_views_and_any_number_of_rows(monkeypatch):
    monkeypatch.setattr(module, "_PIXELS", 60)  # 3 rows, and 1 at the end
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (37, 20, 3), generator=generator, dtype=torch.uint8)
    view = pixels.permute(2, 0, 1)[:, 1:, 3:]
    before = pixels.clone()
    found = shift_hue(view, 0.07)
    rows = [shift_hue(row[:, None], 0.07) for row in view.unbind(1)]  # of (3, 1, W)
    assert torch.equal(found, torch.cat(rows, 1))
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(("offset", "scale"), [(20.0, 0.5), (-31.7, 1.43), (0.0, 1.5), (9.3, 1.0)])
def test_offset_and_scale(offset, scale):
    image = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    shifted = np.clip(np.arange(256) + offset, 0, 255) * scale
    expected = np.clip(np.rint(shifted), 0, 255)
    found = offset_and_scale(image, offset, scale).flatten().numpy()
    near_half = np.abs(shifted % 1 - 0.5) < 1e-4  # float32 rounds either way
    assert np.array_equal(found[~near_half], expected[~near_half])
    assert np.abs(found - expected).max() <= 1


def test_look_up_of_any_shape():
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(256, (256,), generator=generator, dtype=torch.uint8)
    values = torch.randint(256, (5, 4, 3), generator=generator, dtype=torch.uint8)
    for given in (values, values.permute(2, 0, 1), values[0, 0], values[1:, ::2]):
        found = look_up(given, table)
        assert found.shape == given.shape
        assert torch.equal(found, table[given.long()])
    found = look_up(values, table)
    found.fill_(1)  # its own memory
    assert not torch.equal(values, found)


# ---- regions of resized images

# (H, W) of the image, of the whole after resizing, and the part
CASES = [
    ((60, 91), (30, 45), (0, 0, 30, 45)),
    ((60, 91), (30, 45), (7, 11, 20, 30)),
    ((60, 91), (61, 92), (40, 0, 21, 92)),
    ((60, 91), (120, 182), (119, 181, 1, 1)),
    ((60, 91), (113, 170), (31, 65, 40, 41)),
    ((60, 91), (60, 140), (13, 90, 40, 41)),
    ((60, 91), (17, 91), (3, 30, 14, 41)),
    ((60, 91), (60, 91), (3, 30, 14, 41)),
    ((64, 9), (7, 1), (2, 0, 4, 1)),
]


def weights(length: int, size: int) -> np.ndarray:
    """(size, length): the triangle filter that resizes an axis, as wide as a step at least."""
    step = length / size
    centres = (np.arange(size) + 0.5) * step
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(1.0, step)
    kernel = np.clip(1 - distance, 0, None)
    return kernel / kernel.sum(1, keepdims=True)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("before", "size", "part"), CASES)
def test_pixels_are_those_of_the_whole(before, size, part, interleaved):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (*before, 3), generator=generator, dtype=torch.uint8)
    image = image.permute(2, 0, 1) if interleaved else image.permute(2, 0, 1).contiguous()
    top, left, height, width = part
    window = (slice(None), slice(top, top + height), slice(left, left + width))
    found = resized_pixels(image, size, Region(*part))
    whole = F.resize(image, list(size), antialias=True)[window]
    # Elsewhere torch resizes floating point, which is rounded once more between the axes.
    level = 0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 1
    assert (found.int() - whole.int()).abs().max() <= level
    # rounded after each axis: off by less than one from the unrounded
    rows, columns = weights(before[0], size[0]), weights(before[1], size[1])
    exact = (rows @ image.numpy().astype(np.float64) @ columns.T)[window]
    assert np.abs(found.numpy() - exact).max() < 1.1
    doubles = resized_pixels(image.double(), size, Region(*part))
    assert np.abs(doubles.numpy() - exact).max() < 1e-3  # torch keeps these weights in float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(("before", "size", "part"), CASES)
def test_ids_are_those_of_the_whole(before, size, part, dtype):
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(256, before, generator=generator).to(dtype)
    top, left, height, width = part
    whole = F.resize(mask[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT)[0]
    found = resized_ids(mask, size, Region(*part))
    assert found.dtype is dtype
    assert torch.equal(found, whole[top : top + height, left : left + width])
    # the source pixel whose square holds the centre; which of two is free where it is on an edge
    rows = (np.arange(top, top + height) + 0.5) * before[0] / size[0]
    columns = (np.arange(left, left + width) + 0.5) * before[1] / size[1]
    off_edge = ~np.isclose(rows, rows.round())[:, None] & ~np.isclose(columns, columns.round())
    by_hand = mask.numpy()[
        np.minimum(rows.astype(int), before[0] - 1)[:, None],
        np.minimum(columns.astype(int), before[1] - 1),
    ]
    assert np.array_equal(found.numpy()[off_edge], by_hand[off_edge])


def test_ids_at_every_length():
    """Rounding in float32 is torchvision's at all sizes that recipes reach."""
    mask = torch.arange(2048)[None]
    for size in range(900, 4200, 101):
        whole = F.resize(mask[None], [1, size], interpolation=InterpolationMode.NEAREST_EXACT)[0]
        assert torch.equal(resized_ids(mask, (1, size), Region(0, 0, 1, size)), whole)
