"""Pixel losses averaged over the valid pixels of the global batch.

Legend: B batch, C classes, H W label size.

Averaging per process is wrong as soon as processes have different numbers of valid pixels: the
mean of means is not the mean. Here every process divides its own sum by the number of pixels
counted on *all* processes (one all-reduce of two numbers) and multiplies by the number of
processes. The gradient averaged by DistributedDataParallel then equals the gradient that one
process would compute on the whole batch.

Gradient accumulation: each of the `accumulate` partial batches has its own mean over all
processes, and the trainer averages these means. That equals the mean over the whole batch exactly
when the partial batches count equally many pixels; otherwise it weighs partial batches, not
pixels, equally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fsanet.errors import InputError, check_range

__all__ = [
    "SegmentationLoss",
    "dice_loss",
    "global_mean",
    "hardest_pixels",
    "median_frequency_weights",
]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_mean(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Average over all processes, from a local sum and a local (weighted) count, both 0-d.

    Returns:
        ``(loss, value)``. The loss is for differentiation: this process's share times the number
        of processes, so that averaging gradients over processes gives the gradient of the value.
        The value is detached and the same on every process. Both are 0, with zero gradients, if
        the count is 0 on all processes.
    """
    sums = torch.stack([total.detach(), count.detach().to(total.dtype)])
    world = _world_size()
    if world > 1:
        dist.all_reduce(sums)
    # Where the count is 0, so is the sum: 0 / 1 instead of 0 / 0.
    denominator = torch.where(sums[1] > 0, sums[1], torch.ones_like(sums[1]))
    return total * (world / denominator), sums[0] / denominator


def hardest_pixels(losses: Tensor, valid: Tensor, *, threshold: float, min_kept: int) -> Tensor:
    """Select the pixels that online hard example mining keeps.

    A valid pixel is kept if the probability of its true class is below `threshold`, or if it is
    among the `min_kept` hardest of the global batch (all processes together; ties with the last of
    these are kept, too). With fewer than `min_kept` valid pixels, all are kept.

    Args:
        losses: (B, H, W) unweighted cross-entropy, `-log(probability of the true class)`.
        valid: (B, H, W) bool, False where the label is ignored.

    Returns:
        (B, H, W) bool.
    """
    losses = losses.detach()
    # Ranked by loss, not by probability: confident pixels all round to probability 1.
    easy = losses <= -math.log(threshold)
    if min_kept > 0:
        pool = losses.masked_fill(~valid, -math.inf).flatten()  # (B*H*W,)
        hardest = pool.topk(min(min_kept, pool.numel()), sorted=False).values
        hardest = F.pad(hardest, (0, min_kept - hardest.numel()), value=-math.inf)  # (min_kept,)
        if _world_size() > 1:
            gathered = [torch.empty_like(hardest) for _ in range(_world_size())]
            dist.all_gather(gathered, hardest)
            hardest = torch.cat(gathered).topk(min_kept, sorted=False).values
        easy &= losses < hardest.min()
    # "not easy" rather than "hard": a nan loss is kept, and so gets noticed.
    return valid & ~easy


def dice_loss(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """One minus the mean Dice coefficient of the classes labelled in the global batch.

    The Dice coefficient of a class is ``2 sum(p t) / (sum(p) + sum(t))``, with its probabilities p
    and its labels t (0 or 1) over the valid pixels of the whole batch. Each class counts equally,
    however few its pixels are.

    Source: V-Net, arXiv 1606.04797; over the batch as in nnU-Net, arXiv 1809.10486. (Squares in
    the denominator, as the first has them, are left out, as in the second.)

    Args:
        logits: (B, C, H, W).
        target: labels (B, H, W), int64.
        ignore_index: label of pixels that do not count.

    Returns:
        What `global_mean` does. Both are 0, with zero gradients, if no pixel is valid.
    """
    classes = logits.shape[1]
    valid = target != ignore_index  # (B, H, W)
    labels = target[valid]  # (P,)
    chances = logits.softmax(1) * valid[:, None]  # (B, C, H, W)
    right = chances.gather(1, target.where(valid, 0)[:, None])[:, 0][valid]  # (P,)
    local = torch.stack(
        [
            right.new_zeros(classes).index_add(0, labels, right),
            chances.sum((0, 2, 3)),
            torch.bincount(labels, minlength=classes).to(right),
        ]
    )  # (3, C): sums of p t, p and t
    sums = local.detach().clone()
    world = _world_size()
    if world > 1:
        dist.all_reduce(sums)
    # The value is the global one; its gradient flows through this process's part.
    overlap, predicted, labelled = sums + (local - local.detach())
    present = labelled > 0
    if not present.any():
        return local.sum() * 0, sums.sum() * 0
    loss = 1 - (2 * overlap / (predicted + labelled))[present].mean()
    return loss * world, loss.detach()


def median_frequency_weights(pixels: Tensor, present: Tensor) -> Tensor:
    """Class weights by median frequency balancing.

    The frequency of a class is its share of the labelled pixels of the images that it is in; its
    weight is the median frequency divided by its own. A class without a pixel has weight 1, and no
    part in the median.

    Source: Eigen and Fergus, arXiv 1411.4734.

    Args:
        pixels: (C,) labelled pixels of each class.
        present: (C,) labelled pixels of all images that contain the class.

    Returns:
        (C,) float32.

    >>> median_frequency_weights(torch.tensor([60, 30, 10, 0]), torch.tensor([100, 100, 50, 0]))
    tensor([0.5000, 1.0000, 1.5000, 1.0000])
    """
    seen = pixels > 0
    frequency = pixels[seen].double() / present[seen].double()
    weights = torch.ones(len(pixels), dtype=torch.float64)
    weights[seen] = frequency.quantile(0.5) / frequency if len(frequency) else frequency
    return weights.float()


class SegmentationLoss(nn.Module):
    """Cross-entropy, or online hard example mining (OHEM), over the global batch.

    With class weights, the mean is sum(weight * loss) / sum(weight), as in
    `torch.nn.functional.cross_entropy`; OHEM ranks pixels by the unweighted loss. The Dice loss,
    where it is added, takes neither into account.

    Args:
        ignore_index: label of pixels that do not count.
        ohem: keep only hard pixels, see `hardest_pixels`.
        threshold: OHEM keeps pixels whose true class is less probable than this, in (0, 1].
        min_kept: OHEM keeps at least this many pixels of the global batch.
        class_weights: one weight of at least 0 per class; None for 1 each.
        dice_weight: weight at which `dice_loss` is added.

    Raises:
        InputError: an option is out of range.

    Example:
        >>> loss = SegmentationLoss(ignore_index=255)
        >>> logits = torch.zeros(1, 4, 2, 2)
        >>> target = torch.tensor([[[0, 1], [255, 255]]])
        >>> to_differentiate, value = loss(logits, target)
        >>> round(value.item(), 4)  # log(4): the two ignored pixels do not count
        1.3863
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        ohem: bool = False,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        class_weights: Sequence[float] | None = None,
        dice_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_range("dice_weight", dice_weight, 0.0, 1e6)
        if not 0.0 < threshold <= 1.0:
            raise InputError(f"OHEM threshold {threshold}: give a probability, 0 < t <= 1")
        if min_kept < 0:
            raise InputError(f"OHEM min_kept={min_kept}: give a number of pixels, 0 or more")
        if class_weights is not None and any(
            not math.isfinite(weight) or weight < 0 for weight in class_weights
        ):
            raise InputError(f"class weights {list(class_weights)}: give finite numbers >= 0")
        self.ignore_index = ignore_index
        self.ohem = ohem
        self.threshold = threshold
        self.min_kept = min_kept
        self.dice_weight = dice_weight
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)
        # Not persistent: an option of the training, not part of the model.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss, in float32 at least; returns what `global_mean` does.

        Args:
            logits: (B, C, H, W), any float type.
            target: labels (B, H, W), int64.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss, value = self._cross_entropy(logits, target)
        if self.dice_weight > 0:
            dice, dice_value = dice_loss(logits, target, self.ignore_index)
            loss, value = loss + self.dice_weight * dice, value + self.dice_weight * dice_value
        return loss, value

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        valid = target != self.ignore_index  # (B, H, W)
        if not self.ohem:
            total = F.cross_entropy(
                logits,
                target,
                weight=self._weights(logits),
                ignore_index=self.ignore_index,
                reduction="sum",
            )
            return global_mean(total, self._count(valid, target, logits))
        losses = F.cross_entropy(
            logits, target, ignore_index=self.ignore_index, reduction="none"
        )  # (B, H, W)
        kept = hardest_pixels(
            losses, valid, threshold=self.threshold, min_kept=self.min_kept
        )  # (B, H, W)
        weighted = losses * self._pixel_weights(target, logits)
        total = torch.where(kept, weighted, torch.zeros_like(weighted)).sum()
        return global_mean(total, self._count(kept, target, logits))

    def _weights(self, logits: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        if self.class_weights.numel() != logits.shape[1]:
            raise InputError(
                f"{self.class_weights.numel()} class weights for {logits.shape[1]} classes: "
                "give one weight per class"
            )
        return self.class_weights.to(logits)

    def _pixel_weights(self, target: Tensor, logits: Tensor) -> Tensor:
        weights = self._weights(logits)
        if weights is None:
            return torch.ones((), dtype=logits.dtype, device=logits.device)
        # Ignored labels are no valid index; their weight is never used.
        return weights[target.masked_fill(target == self.ignore_index, 0)]  # (B, H, W)

    def _count(self, counted: Tensor, target: Tensor, logits: Tensor) -> Tensor:
        if self.class_weights is None:
            return counted.sum().to(logits.dtype)
        return (self._pixel_weights(target, logits) * counted).sum()
