"""An encoder without its first stages: from their features to those of all stages."""

# B images of H x W pixels, C channels of a feature, h x w its grid

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.errors import InputError
from fsanet.models.saving import SegmentationNetwork
from fsanet.models.stages import PROBE, graph_leaves, in_evaluation

__all__ = ["EncoderTail"]


class EncoderTail:
    """Computes all features of a network's encoder from those of its first stages.

    The modules that run before the last of these features is there are replaced by the identity,
    which is right for encoders that run one module after the other. Whether it is right for this
    one is tested here.

    Args:
        model: the network; its weights are never copied.
        stages: how many stages are left out, or "encoder" for all.

    Attributes:
        kept: indices of the features that have to be given: those that the heads need, and the
            input of what is left of the encoder.
        channels, strides: of these features.

    Raises:
        InputError: the encoder cannot be cut there.
    """

    kept: list[int]

    def __init__(self, model: SegmentationNetwork, stages: int | str) -> None:
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand(1, len(model.mean), PROBE, PROBE, generator=generator)
        probe = probe.to(next(model.parameters()))
        order: list[tuple[str, Any]] = []
        with in_evaluation(model):
            hooks = [
                module.register_forward_hook(lambda *args, n=name: order.append((n, args[-1])))
                for name, module in model.named_modules()
            ]
            try:
                with torch.no_grad():
                    whole = model.encoder_features(probe)
            finally:
                for hook in hooks:
                    hook.remove()
            self.count = len(whole)
            self.stages = stages = self.count if isinstance(stages, str) else stages
            leaves = [feature.detach().requires_grad_() for feature in whole]
            with torch.enable_grad():
                outputs = model.forward_with_auxiliary(probe, leaves)  # type: ignore[operator]
            needed = {leaf for out in outputs if out is not None for leaf in graph_leaves(out)}
            self.kept = [i for i in range(stages) if leaves[i] in needed]
            cut = stages < self.count
            if cut and stages - 1 not in self.kept:
                self.kept.append(stages - 1)
            self.channels = [whole[i].shape[1] for i in self.kept]
            self.strides = [PROBE // whole[i].shape[-1] for i in self.kept]
            ends = [t for t, (_, output) in enumerate(order) if output is whole[stages - 1]]
            self._done = {name for name, _ in order[: ends[-1] + 1]} if ends else set()
            if cut and not (ends and self._agrees(model, whole)):
                raise InputError(
                    f"cache_features: this encoder cannot be cut after {stages} of its "
                    f"{self.count} stages; give --task.freeze encoder"
                )

    def __call__(self, model: SegmentationNetwork, given: Mapping[int, Tensor]) -> list[Tensor]:
        """Features of all stages, from those whose index is in `kept`; others are left empty."""
        first = next(iter(given.values()))
        result = [given.get(i, first.new_empty(0)) for i in range(self.stages)]
        if self.stages < self.count:
            rest = _without(model, self._done)
            result += rest.encoder_features(given[self.stages - 1])[self.stages :]
        return result

    def grids(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Sizes (h, w, C) of the kept features of an image of H x W pixels."""
        both = zip(self.strides, self.channels, strict=True)
        return [(-(-height // stride), -(-width // stride), channels) for stride, channels in both]

    def unpack(self, vectors: Tensor, height: int, width: int) -> dict[int, Tensor]:
        """Kept features, float32 (B, C, h, w) by their index.

        Args:
            vectors: (B, N), for each of B images its features (h, w, C), one after the other.
            height, width: of the images, in pixels.
        """
        found, place = {}, 0
        for index, grid in zip(self.kept, self.grids(height, width), strict=True):
            part = vectors[:, place : place + math.prod(grid)]
            place += math.prod(grid)
            found[index] = part.reshape(-1, *grid).permute(0, 3, 1, 2).float()
        return found

    def _agrees(self, model: SegmentationNetwork, whole: list[Tensor]) -> bool:
        try:
            with torch.no_grad():
                found = self(model, {i: whole[i] for i in self.kept})
        except Exception:  # whatever a network raises that is given features for an image
            return False
        pairs = zip(found[self.stages :], whole[self.stages :], strict=True)
        return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def _without(module: nn.Module, done: set[str], path: str = "") -> Any:
    """The same module, with the submodules of these names replaced by the identity."""
    if path in done:
        return nn.Identity()
    if path and not any(name.startswith(f"{path}.") for name in done):
        return module
    clone = copy.copy(module)
    dot = f"{path}." if path else ""
    clone._modules = {
        name: None if child is None else _without(child, done, dot + name)
        for name, child in module._modules.items()
    }
    return clone
