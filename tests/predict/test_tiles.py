"""Bands against sums over the whole image, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsanet.predict.tiles import sliding_rows, window_starts


@pytest.mark.parametrize("length", range(1, 30))
@pytest.mark.parametrize(("window", "stride"), [(7, 3), (7, 7), (4, 1), (1, 1)])
def test_windows_cover_the_axis_and_stay_inside(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    covered = {p for start in starts for p in range(start, min(start + window, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert starts[-1] == max(0, length - window)
    # As few as possible.
    assert len(starts) == max(0, -(-(length - window) // stride)) + 1


def averaged(values: np.ndarray, window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """What `position_dependent` below should give, in whole-image sums. values (3, H, W)."""
    height, width = values.shape[1:]
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    y = 0
    while True:
        top = max(0, min(y, height - window[0]))
        x = 0
        while True:
            left = max(0, min(x, width - window[1]))
            part = values[:, top : top + window[0], left : left + window[1]].astype(float)
            rows = np.arange(part.shape[1])[:, None]
            columns = np.arange(part.shape[2])[None]
            total[0, top : top + window[0], left : left + window[1]] += part[0] * (rows + 1)
            total[1, top : top + window[0], left : left + window[1]] += part[1] - 3 * columns
            count[top : top + window[0], left : left + window[1]] += 1
            if x + window[1] >= width:
                break
            x += stride[1]
        if y + window[0] >= height:
            break
        y += stride[0]
    return total / count


class PositionDependent:
    """Logits depend on the place within the window, so that every average is visible."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, tiles: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
        self.batches.append(len(tiles))
        h, w = tiles.shape[2:]
        out = torch.full((len(tiles), 2, *window), float("nan"))
        out[:, 0, :h, :w] = tiles[:, 0].float() * (torch.arange(h)[:, None] + 1)
        out[:, 1, :h, :w] = tiles[:, 1].float() - 3 * torch.arange(w)
        return out


@pytest.mark.parametrize("size", [(13, 17), (5, 23), (23, 5), (4, 4), (6, 9), (40, 7), (1, 1)])
@pytest.mark.parametrize(
    ("window", "stride"),
    [((6, 9), (4, 6)), ((6, 9), (6, 9)), ((6, 9), (1, 2)), ((5, 5), (3, 4)), ((50, 3), (7, 3))],
)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_rows_equal_brute_force_averages(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], batch_size: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    forward = PositionDependent()
    pieces = list(
        sliding_rows(
            torch.from_numpy(images),
            forward,
            window=window,
            stride=stride,
            batch_size=batch_size,
        )
    )
    assert max(forward.batches) <= batch_size
    assert all(piece.shape[2] <= window[0] for piece in pieces)
    result = torch.cat(pieces, 2).numpy()
    for image, one in zip(images, result, strict=True):
        np.testing.assert_allclose(one, averaged(image, window, stride), rtol=1e-5, atol=1e-3)


def test_windows_of_several_images_share_a_batch() -> None:
    images = torch.zeros(3, 3, 8, 20, dtype=torch.uint8)
    forward = PositionDependent()
    list(sliding_rows(images, forward, window=(8, 8), stride=(4, 4), batch_size=5))
    assert forward.batches == [5, 5, 2]  # 3 images x 4 windows
