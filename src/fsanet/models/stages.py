"""The stages of an encoder: which parameters each of its features needs, and freezing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.errors import InputError

__all__ = ["PROBE", "encoder_stages", "freeze_stages", "graph_leaves", "in_evaluation"]

#: Side, in pixels, of the image that finds the stages.
PROBE = 128


def encoder_stages(model: Any) -> list[list[nn.Parameter]]:
    """Parameters of an encoder by stage: those its first feature needs, those its second adds, ...

    They are found by walking the autograd graph of each feature, so any encoder will do. Parameters
    that no feature needs belong to the last stage.

    Args:
        model: has ``encoder_features(images)``, features by stage with the finest first, and
            optionally ``encoder_prefixes``, how the names of the encoder's parameters start.

    Raises:
        InputError: the model has no ``encoder_features``.
    """
    if not hasattr(model, "encoder_features"):
        raise InputError(
            f"{type(model).__name__} has no method encoder_features, which says what the stages of "
            "its encoder are: leave out freeze and layer_decay"
        )
    prefixes = tuple(getattr(model, "encoder_prefixes", ("encoder.",)))
    rest = {p: p.requires_grad for name, p in model.named_parameters() if name.startswith(prefixes)}
    trained = dict(rest)
    first = next(iter(rest), torch.empty(0))
    channels = len(getattr(model, "mean", (0.0,) * 3))
    images = torch.zeros(1, channels, PROBE, PROBE, device=first.device, dtype=first.dtype)
    stages = []
    try:
        for parameter in rest:
            parameter.requires_grad_(True)
        with in_evaluation(model), torch.enable_grad():
            for feature in model.encoder_features(images):
                stages.append([p for p in graph_leaves(feature) if rest.pop(p, None) is not None])
    finally:
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)
    stages[-1] += rest
    return stages


def freeze_stages(model: nn.Module, stages: int | str) -> list[nn.Module]:
    """Stop the parameters of an encoder's first stages from training, in place.

    Attention layers of this library within them are left to train.

    Args:
        stages: how many, or "encoder" for all.

    Returns:
        The modules that hold nothing but frozen parameters. They are to stay in evaluation mode.

    Raises:
        InputError: there are fewer stages, or see `encoder_stages`.
    """
    if stages == 0:
        return []
    found = encoder_stages(model)
    count = len(found) if stages == "encoder" else stages
    if not isinstance(count, int) or not 0 <= count <= len(found):
        raise InputError(
            f"freeze={stages!r}: the encoder has {len(found)} stages; give 0 to {len(found)}, or "
            "'encoder' for all"
        )
    frozen = {parameter for stage in found[:count] for parameter in stage}
    for module in model.modules():
        if isinstance(module, FrequencySelfAttention | SpatialSelfAttention):
            frozen -= set(module.parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
    inside = [(module, set(module.parameters())) for module in model.modules()]
    return [module for module, parameters in inside if parameters and parameters <= frozen]


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within this block; afterwards each module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def graph_leaves(result: Tensor) -> list[Any]:
    """The leaves of the autograd graph of a tensor."""
    leaves, seen, waiting = [], set(), [result.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves
