"""What two processes run in the test of the losses; they import it by name."""

import numpy as np
import torch
import torch.distributed as dist

from fsanet.train.losses import SegmentationLoss


def example(seed=0, shape=(2, 5, 4, 6), ignored=0.3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * 2
    labels = rng.integers(0, shape[1], size=(shape[0], *shape[2:]))
    labels[rng.random(labels.shape) < ignored] = 255
    return logits, labels


def uneven():
    """A batch of four whose second half holds few valid pixels."""
    logits, labels = example(seed=7, shape=(4, 5, 4, 6))
    labels[2:] = np.where(np.arange(6) < 5, 255, labels[2:])
    return logits, labels


def one_of_two(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        results = {}
        logits, labels = uneven()
        part = slice(2 * rank, 2 * rank + 2)
        for name, loss in losses_for_two().items():
            tensor = torch.tensor(logits[part], requires_grad=True)
            to_differentiate, value = loss(tensor, torch.tensor(labels[part]))
            to_differentiate.backward()
            results[name] = (value, tensor.grad / 2)  # what DistributedDataParallel's mean does
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def losses_for_two():
    weights = [0.5, 2.0, 1.0, 0.1, 3.0]
    return {
        "plain": SegmentationLoss(),
        "weighted": SegmentationLoss(class_weights=weights),
        "ohem": SegmentationLoss(ohem=True, threshold=0.05, min_kept=30),
        "ohem, few kept by the second": SegmentationLoss(ohem=True, threshold=0.05, min_kept=5),
    }
