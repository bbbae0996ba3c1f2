"""Row-by-row windows, resizing and averaging against the same on whole maps, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsanet.models import segmenter
from fsanet.models.tiles import (
    ResizedRows,
    class_scores,
    resized,
    sliding_rows,
    window_starts,
)


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


@pytest.mark.parametrize("source", [(11, 7), (30, 12), (3, 40), (1, 1), (64, 5)])
@pytest.mark.parametrize("size", [(11, 7), (5, 9), (24, 3), (1, 1), (9, 40)])
@pytest.mark.parametrize("piece", [1, 4, 100])
@pytest.mark.parametrize("align_corners", [False, True])
def test_resized_rows_equal_interpolation_of_the_whole(
    source: tuple[int, int], size: tuple[int, int], piece: int, align_corners: bool
) -> None:
    whole = torch.randn(2, 3, *source, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(whole, size, mode="bilinear", align_corners=align_corners)

    def arriving() -> Iterator[torch.Tensor]:
        for start in range(0, source[0], 3):
            yield whole[:, :, start : start + 3]

    rows = ResizedRows(arriving(), source, size, align_corners)
    taken = [rows.take(y, min(y + piece, size[0])) for y in range(0, size[0], piece)]
    torch.testing.assert_close(torch.cat(taken, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "size"), [(0.5, (6, 4)), (1.0, (11, 7)), (1.75, (19, 12)), (0.01, (1, 1))]
)
def test_image_sizes_after_scaling(scale: float, size: tuple[int, int]) -> None:
    image = torch.full((1, 3, 11, 7), 200, dtype=torch.uint8)
    scaled = resized(image, scale)
    assert scaled.dtype is torch.uint8
    assert scaled.shape == (1, 3, *size)
    assert (scaled == 200).all()


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = torch.zeros(1, 3, 8, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    small = resized(stripes, 0.25)[..., 2:-2].float()
    assert (small - 127.5).abs().max() <= 2


def column_model(tiles: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits (b, 2, h, w) that depend on colour, row and column: no mirror symmetry anywhere."""
    logits = torch.zeros(len(tiles), 2, *size)
    h, w = tiles.shape[2:]
    logits[:, 0, :h, :w] = tiles[:, 0] / 50 + torch.arange(w) / 7
    logits[:, 1, :h, :w] = tiles[:, 1] / 70 + torch.arange(h)[:, None] / 5
    return logits


def scores(images: torch.Tensor, forward: Any, **options: Any) -> torch.Tensor:
    """All blocks of `class_scores` put together, each pixel in exactly one of them."""
    options = {"band": images.shape[2], "align_corners": False} | options
    blocks = list(class_scores(images, forward, **options))
    count, _, height, width = images.shape
    whole = torch.empty(count, blocks[0].scores.shape[1], height, width)
    seen = torch.zeros(count, height, width)
    for block in blocks:
        whole[block.images, :, block.rows, block.columns] = block.scores
        seen[block[:3]] += 1
    assert (seen == 1).all()
    return whole


def test_windows_give_the_bits_of_whole_sums() -> None:
    """The sums of the whole image, of every view, by the order of the windows."""
    rng = np.random.default_rng(3)
    weights = torch.from_numpy(rng.normal(0, 0.02, (5, 1, 1)).astype(np.float32))

    def forward(tiles: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        logits = torch.full((len(tiles), 5, *size), float("nan"))
        h, w = tiles.shape[2:]
        place = torch.arange(h)[:, None] / 7 + torch.arange(w) / 3
        logits[:, :, :h, :w] = tiles[:, :1] * weights + tiles[:, 1:2] / 50 + place.sin()
        return logits

    for case in range(24):
        height, width = (int(v) for v in rng.integers(1, 70, 2))
        window = tuple(int(v) for v in rng.integers(1, 30, 2))
        stride = tuple(int(rng.integers(1, side + 1)) for side in window)
        scales = [(1.0,), (1.0,), (0.6,), (0.75, 1.0, 1.3)][case % 4]
        flip, probabilities = bool(rng.random() < 0.4), bool(rng.random() < 0.4)
        images = torch.from_numpy(rng.integers(0, 256, (2, 3, height, width), dtype=np.uint8))

        def view(scale: float, mirror: bool) -> ResizedRows:
            seen = resized(images, scale)  # noqa: B023
            h, w = seen.shape[2:]
            seen = seen.flip(3) if mirror else seen
            total, count = torch.zeros(2, 5, h, w), torch.zeros(h, w)
            for top in window_starts(h, window[0], stride[0]):  # noqa: B023
                for left in window_starts(w, window[1], stride[1]):  # noqa: B023
                    place = (slice(top, top + window[0]), slice(left, left + window[1]))  # noqa: B023
                    tiles = seen[:, :, *place]
                    logits = forward(tiles, window)  # noqa: B023
                    total[:, :, *place] += logits[:, :, : tiles.shape[2], : tiles.shape[3]]
                    count[place] += 1
            mean = total / count
            rows = iter([mean.flip(3) if mirror else mean])
            return ResizedRows(rows, (h, w), (height, width))  # noqa: B023

        views = [view(scale, mirror) for scale in scales for mirror in ((False, True)[: 1 + flip])]
        expected = []
        for top in range(0, height, stride[0]):
            rows = [one.take(top, min(top + stride[0], height)) for one in views]
            if probabilities or len(rows) > 1:
                rows = [one.softmax(1) for one in rows]
                total = rows[0]
                for one in rows[1:]:
                    total = total + one
                rows = [total / len(rows)]
            expected.append(rows[0])
        options = {"window": window, "stride": stride, "scales": scales, "flip": flip}
        options |= {"batch_size": int(rng.integers(1, 6)), "probabilities": probabilities}
        got = scores(images, forward, **options)
        whole = torch.cat(expected, 2)
        if probabilities and not flip and scales == (1.0,):  # softmax by windows, not by rows
            torch.testing.assert_close(got, whole, rtol=1e-6, atol=0)
        else:
            assert torch.equal(got, whole), (height, width, options)


def test_wide_windows_do_not_pad_the_image() -> None:
    fed = []

    def forward(tiles: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        fed.append(size)
        return column_model(tiles, size)

    images = torch.zeros(1, 3, 8, 9, dtype=torch.uint8)
    for window in [(10**9, 10), (20, 4000)]:
        list(sliding_rows(images, forward, window=window, stride=window, batch_size=1))
    assert fed == [(8, 10), (20, 9)]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_whole_image_views_by_their_definition(flip: bool, scales: tuple[float, ...]) -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, 14, 9), np.uint8))
    expected = []
    for scale in scales:
        for mirror in (False, True) if flip else (False,):
            seen = resized(images, scale)
            if mirror:
                seen = torch.from_numpy(seen.numpy()[:, :, :, ::-1].copy())
            logits = column_model(seen, (seen.shape[2], seen.shape[3])).numpy()
            if mirror:
                logits = logits[:, :, :, ::-1].copy()
            back = F.interpolate(
                torch.from_numpy(logits).double(), (14, 9), mode="bilinear", align_corners=False
            )
            expected.append(softmax(back[0].numpy()))
    options = {"window": None, "stride": None, "scales": scales, "flip": flip, "batch_size": 1}
    for band in (1, 5, 14):
        got = scores(images, column_model, **options, band=band, probabilities=True)
        np.testing.assert_allclose(got[0].numpy(), np.mean(expected, axis=0), atol=1e-5)
    # The definition tells a mirrored row axis from a mirrored column axis.
    if flip:
        assert np.abs(expected[0] - expected[1][:, ::-1]).max() > 0.1


def test_windowed_views_equal_whole_views_of_a_pixelwise_model() -> None:
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 3, 37, 23), np.uint8))

    def pixelwise(tiles: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        h, w = tiles.shape[2:]
        return F.pad(tiles[:, :2].float() / 40, (0, size[1] - w, 0, size[0] - h))

    options = {"scales": (0.5, 1.0, 1.25), "flip": True, "batch_size": 3, "probabilities": True}
    whole = scores(images, pixelwise, window=None, stride=None, **options)
    for window, stride in [((8, 8), (5, 5)), ((16, 30), (16, 30)), ((100, 6), (10, 3))]:
        pieces = scores(images, pixelwise, window=window, stride=stride, **options)
        torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)


def test_a_single_view_keeps_its_logits() -> None:
    images = torch.full((1, 3, 4, 4), 250, dtype=torch.uint8)
    options = {"window": None, "stride": None, "scales": (1.0,), "flip": False, "batch_size": 1}
    for band in (1, 3, 4):
        got = scores(images, column_model, **options, band=band, probabilities=False)
        torch.testing.assert_close(got, column_model(images, (4, 4)))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("window", [None, (9, 8)])
def test_coarse_logits_are_upsampled_by_bands(window: Any, align_corners: bool) -> None:
    """Equal to logits that the model upsamples itself, at several scales and mirrored."""
    images = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (2, 3, 23, 17), np.uint8))
    resize = partial(F.interpolate, mode="bilinear", align_corners=align_corners)

    def coarse(tiles: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.adaptive_avg_pool2d(column_model(tiles, size), (size[0] // 4 + 1, 5))

    def fine(tiles: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return resize(coarse(tiles, size), size)

    for scales, flip in [((1.0,), False), ((0.5, 1.0, 1.5), True)]:
        options = {"window": window, "stride": window, "scales": scales, "flip": flip}
        options |= {"batch_size": 2, "probabilities": flip, "align_corners": align_corners}
        expected = scores(images, fine, **options)
        for band in (1, 6, 22, 23):
            got = scores(images, coarse, **options, band=band)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            if (window, band, flip) == (None, 23, False):  # upsampled at once
                assert torch.equal(got, expected)


@pytest.mark.parametrize("pixels", [1, 40, 2**20])
def test_highest_score_by_bands_is_argmax(pixels, monkeypatch):
    monkeypatch.setattr(segmenter, "_ARGMAX_PIXELS", pixels)
    scores = torch.randint(0, 4, (2, 200, 9, 7)).float()  # with many ties
    assert torch.equal(segmenter.highest(scores), scores.max(1).indices.to(torch.uint8))
