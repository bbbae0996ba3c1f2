"""Training steps on random tensors: what a training costs without its data and its trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.train.callbacks import depthwise_in_float32

__all__ = ["make_training_step"]


def make_training_step(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    num_classes: int,
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Any]],
    auxiliary_weight: float = 0.4,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
    channels_last: bool = False,
) -> Callable[[], None]:
    """A step of forward, loss of both heads, backward and SGD, on the same tensors each time.

    Modes of the network are left as they are. Gradients and momentum exist from the first call on
    and are kept between calls.

    Args:
        network: has ``forward_with_auxiliary(images) -> (logits, auxiliary logits or None)``; it is
            moved to the device and trained in place.
        shape: of the images, (B, 3, H, W).
        num_classes: labels are 0 .. num_classes - 1.
        loss: logits (B, num_classes, H, W), labels (B, H, W) -> (loss, anything).
        auxiliary_weight: weight of the loss of the auxiliary logits.
        device: where network and tensors are.
        bfloat16: compute like `fsanet train --precision bf16-mixed`.
        channels_last: memory format of network and images.
    """
    device = torch.device(device)
    network.to(device)
    images = torch.randn(shape, device=device)
    labels = torch.randint(num_classes, (shape[0], *shape[2:]), device=device)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    if bfloat16 and device.type == "cpu":
        depthwise_in_float32(network)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits, auxiliary = network.forward_with_auxiliary(images)  # type: ignore[operator]
            total = loss(logits, labels)[0]
            if auxiliary is not None:
                total = total + auxiliary_weight * loss(auxiliary, labels)[0]
        total.backward()
        optimizer.step()

    return step
