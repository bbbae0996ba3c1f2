"""Logits and labels for the losses, and the share that one of two processes has of them."""

import numpy as np
import torch

from fsanet.train.losses import SegmentationLoss


def example(seed=0, shape=(2, 5, 4, 6), ignored=0.3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * 2
    labels = rng.integers(0, shape[1], size=(shape[0], *shape[2:]))
    labels[rng.random(labels.shape) < ignored] = 255
    return logits, labels


def uneven():
    """A batch of four whose second half has few valid pixels."""
    logits, labels = example(seed=7, shape=(4, 5, 4, 6))
    labels[2:] = np.where(np.arange(6) < 5, 255, labels[2:])
    return logits, labels


def losses():
    return {
        "plain": SegmentationLoss(),
        "weighted": SegmentationLoss(class_weights=[0.5, 2.0, 1.0, 0.1, 3.0]),
        "dice": SegmentationLoss(dice_weight=0.5),
        "ohem": SegmentationLoss(ohem=True, threshold=0.05, min_kept=30),
        "ohem, few kept by the second": SegmentationLoss(ohem=True, threshold=0.05, min_kept=5),
    }


def values_and_gradients(part=slice(None)):
    """Of each loss on some of the images of `uneven`."""
    found = {}
    logits, labels = uneven()
    for name, loss in losses().items():
        tensor = torch.tensor(logits[part], requires_grad=True)
        to_differentiate, value = loss(tensor, torch.tensor(labels[part]))
        to_differentiate.backward()
        found[name] = (value, tensor.grad)
    return found


def of_half(rank):
    return values_and_gradients(slice(2 * rank, 2 * rank + 2))
