"""Colours against torchvision, the standard library's HSV, and arithmetic in float64."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from fsanet.data import colours
from fsanet.data.colours import look_up, offset_and_scale, turn_hue

LEVELS = (0, 1, 17, 100, 128, 200, 254, 255)


def all_colours() -> torch.Tensor:
    """Every combination of the levels: uint8 (3, 32, 16)."""
    colours = torch.tensor(list(itertools.product(LEVELS, repeat=3)), dtype=torch.uint8)
    return colours.T.reshape(3, 32, 16)


@pytest.mark.parametrize("turn", [-0.5, -0.17, -0.16, -0.1, 0.0, 0.05, 0.1, 0.31, 0.5])
def test_hue(turn):
    image = all_colours()
    found = turn_hue(image, turn)
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
    monkeypatch.setattr(colours, "_PIXELS", 60)  # 3 rows, and 1 at the end
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (37, 20, 3), generator=generator, dtype=torch.uint8)
    view = pixels.permute(2, 0, 1)[:, 1:, 3:]
    before = pixels.clone()
    found = turn_hue(view, 0.07)
    rows = [turn_hue(row[:, None], 0.07) for row in view.unbind(1)]  # of (3, 1, W)
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
