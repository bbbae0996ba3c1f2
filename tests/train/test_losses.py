"""Losses against loops over pixels in NumPy."""

import math

import numpy as np
import pytest
import torch
from support.pixels import example, of_half, values_and_gradients
from support.two_processes import in_two_processes

from fsanet.errors import InputError
from fsanet.train.losses import SegmentationLoss


def pixels(logits, labels):
    """(loss, probability of the true class, label) of each valid pixel, one at a time."""
    for b, i, j in np.ndindex(*labels.shape):
        label = labels[b, i, j]
        if label == 255:
            continue
        exponents = [math.exp(value) for value in logits[b, :, i, j]]
        probability = exponents[label] / sum(exponents)
        yield -math.log(probability), probability, label


def reference(logits, labels, *, weights=None, ohem=None):
    found = list(pixels(logits, labels))
    if ohem is not None:
        threshold, min_kept = ohem
        found.sort(key=lambda pixel: pixel[1])
        hard = sum(probability < threshold for _, probability, _ in found)
        found = found[: max(hard, min_kept)]
    total = count = 0.0
    for loss, _, label in found:
        weight = 1.0 if weights is None else weights[label]
        total += weight * loss
        count += weight
    return total / count


def value_of(loss, logits, labels):
    to_differentiate, value = loss(torch.tensor(logits), torch.tensor(labels))
    torch.testing.assert_close(to_differentiate, value)  # one process
    return value.item()


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 0.0, 3.0]])
def test_cross_entropy(weights):
    logits, labels = example()
    got = value_of(SegmentationLoss(class_weights=weights), logits, labels)
    assert got == pytest.approx(reference(logits, labels, weights=weights), rel=1e-6)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 0.0, 3.0]])
@pytest.mark.parametrize(
    ("threshold", "min_kept"),
    [(0.7, 0), (0.02, 0), (0.02, 40), (0.7, 3), (0.02, 10_000), (1.0, 5)],
)
def test_ohem(threshold, min_kept, weights):
    logits, labels = example(seed=3)
    if weights is None and (threshold, min_kept) == (0.02, 40):
        hard = sum(p < threshold for _, p, _ in pixels(logits, labels))
        assert 0 < hard < 40  # the case where the minimum decides
    loss = SegmentationLoss(
        ohem=True, threshold=threshold, min_kept=min_kept, class_weights=weights
    )
    expected = reference(logits, labels, weights=weights, ohem=(threshold, min_kept))
    assert value_of(loss, logits, labels) == pytest.approx(expected, rel=1e-6)


def test_dice():
    logits, labels = example(seed=4)
    labels[labels == 3] = 255  # a class without a label has no coefficient
    overlap, predicted, labelled = np.zeros((3, 5))
    for b, i, j in np.argwhere(labels != 255):
        exponents = np.exp(logits[b, :, i, j])
        chances = exponents / exponents.sum()
        overlap[labels[b, i, j]] += chances[labels[b, i, j]]
        labelled[labels[b, i, j]] += 1
        predicted += chances
    coefficients = (2 * overlap / (predicted + labelled))[[0, 1, 2, 4]]
    added = 1 - coefficients.mean()
    expected = reference(logits, labels) + 0.3 * added
    got = value_of(SegmentationLoss(dice_weight=0.3), logits, labels)
    assert got == pytest.approx(expected, rel=1e-6)


def test_ohem_gives_gradient_to_kept_pixels_only():
    logits, labels = example(seed=5)
    tensor = torch.tensor(logits, requires_grad=True)
    SegmentationLoss(ohem=True, threshold=0.3, min_kept=0)(tensor, torch.tensor(labels))[
        0
    ].backward()
    touched = tensor.grad.abs().sum(1) > 0
    probability = tensor.softmax(1).gather(1, torch.tensor(labels).clamp(max=4)[:, None])[:, 0]
    assert torch.equal(touched, (torch.tensor(labels) != 255) & (probability < 0.3))


@pytest.mark.parametrize("ohem", [False, True])
@pytest.mark.parametrize("weights", [None, [1.0] * 5])
@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_nothing_valid_is_zero_with_zero_gradient(ohem, weights, dice):
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    labels = torch.full((2, 3, 3), 255)
    options = {"ohem": ohem, "class_weights": weights, "dice_weight": dice}
    loss, value = SegmentationLoss(**options)(logits, labels)
    loss.backward()
    assert loss.item() == value.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("ohem", [False, True])
def test_nan_is_not_swallowed(ohem):
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 0, 0, 0] = math.nan
    _, value = SegmentationLoss(ohem=ohem, min_kept=2)(logits, torch.zeros(1, 2, 2).long())
    assert math.isnan(value)


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = example(shape=(2, 5, 64, 64))
    half = torch.tensor(logits).bfloat16()
    _, value = SegmentationLoss()(half, torch.tensor(labels))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference(half.double().numpy(), labels), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"min_kept": -1},
        {"class_weights": [1.0, -1.0]},
        {"dice_weight": -0.1},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(InputError):
        SegmentationLoss(**options)


def test_wrong_number_of_class_weights():
    with pytest.raises(InputError, match="2 class weights for 5 classes"):
        value_of(SegmentationLoss(class_weights=[1.0, 2.0]), *example())


def test_two_processes_give_the_gradient_of_one():
    expected = values_and_gradients()
    for rank, part in enumerate(in_two_processes(of_half)):
        for name, (value, gradient) in expected.items():
            torch.testing.assert_close(part[name][0], value, msg=name)
            # DistributedDataParallel averages the gradients of the processes.
            mine = gradient[2 * rank : 2 * rank + 2]
            torch.testing.assert_close(part[name][1] / 2, mine, msg=name)
