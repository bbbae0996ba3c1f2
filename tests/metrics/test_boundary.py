"""Against brute force: erosion by SciPy and plain loops over pixels, class by class."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from fsanet.errors import InputError
from fsanet.metrics.boundary import BoundaryQuality, near_edges

IGNORE = 255


def blobs(rng, height, width, classes, *, ignored=True):
    """Blocks of classes with ragged edges, and an ignored region that touches several."""
    coarse = rng.integers(0, classes, (height // 5 + 1, width // 5 + 1))
    mask = coarse.repeat(5, 0).repeat(5, 1)[:height, :width]
    noise = rng.random((height, width)) < 0.06
    mask = np.where(noise, rng.integers(0, classes, mask.shape), mask)
    if ignored:
        mask[3:8, 2 : width // 2] = IGNORE
        mask[-1, -3:] = IGNORE
    return mask


def pairs(seed=0, sizes=((23, 31), (17, 12), (40, 9)), classes=4):
    rng = np.random.default_rng(seed)
    for height, width in sizes:
        label = blobs(rng, height, width, classes)
        wrong = rng.random(label.shape) < 0.2
        prediction = np.where(wrong, rng.integers(0, classes, label.shape), label)
        prediction = np.roll(prediction, 1, 1)
        yield np.where(prediction == IGNORE, 0, prediction), label


def eroded_band(member, reach):
    """Pixels of a region that reach erosions take away; what is outside of the image takes, too."""
    square = np.ones((3, 3), bool)
    padded = np.pad(member, 1)
    return member & ~ndimage.binary_erosion(padded, square, iterations=reach)[1:-1, 1:-1]


def reference_boundary(samples, classes, ratio):
    hit, union, labelled = np.zeros((3, classes), int)
    for prediction, label in samples:
        reach = max(1, round(ratio * math.hypot(*label.shape)))
        ignored = label == IGNORE
        for c in range(classes):
            # An ignored pixel may be of any class: it does not end the region.
            of_label = eroded_band((label == c) | ignored, reach) & ~ignored
            of_prediction = eroded_band((prediction == c) | ignored, reach) & ~ignored
            hit[c] += (of_label & of_prediction).sum()
            union[c] += (of_label | of_prediction).sum()
            labelled[c] += of_label.sum()
    return [h / u if n else math.nan for h, u, n in zip(hit, union, labelled, strict=True)]


def in_trimap(label, y, x, width):
    top, left = max(0, y - width), max(0, x - width)
    around = label[top : y + width + 1, left : x + width + 1]
    return ((around != label[y, x]) & (around != IGNORE)).any()


def reference_trimap(samples, classes, width):
    counts = np.zeros((classes, classes), int)
    for prediction, label in samples:
        for y, x in np.ndindex(*label.shape):
            if label[y, x] != IGNORE and in_trimap(label, y, x, width):
                counts[label[y, x], prediction[y, x]] += 1
    hit = counts.diagonal()
    present = counts.sum(1) > 0
    iou = hit[present] / (counts.sum(0) + counts.sum(1) - hit)[present]
    return iou.mean(), hit.sum() / counts.sum(), counts.sum()


def measure(samples, classes=4, **options):
    metric = BoundaryQuality([f"c{i}" for i in range(classes)], ignore_index=IGNORE, **options)
    for prediction, label in samples:
        metric.update(torch.tensor(prediction)[None], torch.tensor(label)[None])
    return metric.scores()


@pytest.mark.parametrize("ratio", [0.02, 0.04, 0.07, 0.2])
def test_boundary_iou_is_that_of_erosions(ratio):
    samples = list(pairs())
    scores = measure(samples, ratio=ratio)
    expected = reference_boundary(samples, 4, ratio)
    assert scores.iou == pytest.approx(expected)
    assert scores.mean_iou == pytest.approx(np.mean(expected))
    assert 0.05 < scores.mean_iou < 0.95


def test_trimap_is_that_of_a_loop_over_pixels():
    samples = list(pairs())
    scores = measure(samples, widths=(3, 1, 2, 7))
    assert list(scores.trimap_miou) == [1, 2, 3, 7]
    for width in scores.trimap_miou:
        miou, accuracy, pixels = reference_trimap(samples, 4, width)
        assert scores.trimap_miou[width] == pytest.approx(miou)
        assert scores.trimap_accuracy[width] == pytest.approx(accuracy)
        assert scores.trimap_pixels[width] == pixels


def test_distance_is_that_of_the_nearest_other_class():
    """For every reach, also those that are no power of two and exceed the map."""
    rng = np.random.default_rng(3)
    ids = blobs(rng, 19, 26, 3, ignored=False)
    far = np.full(ids.shape, 1000)
    for c in range(3):
        others = ndimage.distance_transform_cdt(ids == c, metric="chessboard")
        far = np.where(ids == c, others, far)
    reaches = (1, 2, 3, 5, 6, 11, 30)
    found = near_edges(torch.tensor(ids, dtype=torch.int16), reaches)
    for reach, near in zip(reaches, found, strict=True):
        assert (near.numpy() == (far <= reach)).all(), reach


def test_batches_and_splits_count_alike():
    samples = list(pairs(sizes=((20, 24),) * 4))
    whole = BoundaryQuality("abcd", ignore_index=IGNORE)
    whole.update(*(torch.tensor(np.stack(part)) for part in zip(*samples, strict=True)))
    assert whole.scores() == dataset_of(samples)
    per_image = np.mean([measure([sample]).mean_iou for sample in samples])
    assert whole.scores().mean_iou != pytest.approx(per_image, rel=1e-6)  # not a mean of images


def dataset_of(samples):
    metric = BoundaryQuality("abcd", ignore_index=IGNORE)
    for prediction, label in samples:
        metric.update(torch.tensor(prediction)[None], torch.tensor(label)[None])
    return metric.scores()


def test_perfect_prediction_and_shifted_one():
    label = np.zeros((40, 60), int)
    label[:, 30:] = 1
    shifted = np.zeros_like(label)
    shifted[:, 33:] = 1
    assert measure([(label, label)], classes=2).mean_iou == 1
    scores = measure([(shifted, label)], classes=2, widths=(1, 2, 16))
    assert scores.trimap_accuracy[1] == 0.5  # right on the side of class 0 only
    assert scores.trimap_accuracy[16] == pytest.approx(29 / 32)
    plain = 57 / 60
    assert scores.mean_iou < plain


def test_class_without_a_label_is_left_out_and_json_says_null():
    label = np.zeros((12, 12), int)
    label[:, 6:] = 1
    scores = measure([(np.full_like(label, 2), label)], classes=4)
    assert scores.iou[:2] == (0, 0)
    assert all(math.isnan(value) for value in scores.iou[2:])
    content = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert content["classes"] == {"c0": 0.0, "c1": 0.0, "c2": None, "c3": None}
    assert content["trimap"][0] == {"width": 1, "miou": 0.0, "pixel_accuracy": 0.0, "pixels": 24}


def test_only_ignored_pixels():
    label = np.full((6, 7), IGNORE)
    scores = measure([(np.zeros_like(label), label)])
    assert math.isnan(scores.mean_iou)
    assert math.isnan(scores.trimap_miou[1])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"ratio": 0}, "boundary_ratio=0"),
        ({"ratio": 1e308}, r"boundary_ratio=1e\+308"),
        ({"ratio": math.nan}, "boundary_ratio=nan"),
        ({"widths": (0, 1)}, "trimap=0"),
        ({"widths": (10**20,)}, "trimap=1000"),
    ],
)
def test_options_out_of_range(options, name):
    with pytest.raises(InputError, match=f"{name}.*: must be"):
        BoundaryQuality("ab", **options)


def test_distances_beyond_the_image_are_those_to_its_end():
    ids = torch.zeros(1, 30, 20, dtype=torch.int16)
    ids[..., 0, 0] = 1
    far = near_edges(ids, (29, 30, 10**9, 10**9 + 1))  # in memory of the image, not of the distance
    assert all(found.all() for found in far)
    assert not near_edges(ids, (28,))[0].all()


def test_width_given_twice():
    with pytest.raises(InputError, match="each width once"):
        BoundaryQuality("ab", widths=(2, 2))
