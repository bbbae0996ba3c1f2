"""Parts of resized images against the whole, resized by torchvision and in float64 by hand."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fsanet.data.regions import Region, resized_ids, resized_pixels

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
    exact = np.einsum(
        "ih,chw,jw->cij",
        weights(before[0], size[0]),
        image.numpy().astype(np.float64),
        weights(before[1], size[1]),
    )[window]
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
    for size in range(900, 4200, 37):
        whole = F.resize(mask[None], [1, size], interpolation=InterpolationMode.NEAREST_EXACT)[0]
        assert torch.equal(resized_ids(mask, (1, size), Region(0, 0, 1, size)), whole)
