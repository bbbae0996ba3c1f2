"""Weights of detectors and their backbones: published ones, local files, and what has to fit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import get_model_weights

from fsanet.errors import InputError
from fsanet.files import read_weights
from fsanet.models.saving import check_state

__all__ = ["load_detector", "load_resnet"]

_PUBLISHED = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")


def load_detector(model: nn.Module, source: str, *, replace_predictors: bool = False) -> None:
    """Weights of a torchvision Mask R-CNN into a model; its attention stays as it is.

    Args:
        source: path of a state_dict, or torchvision's name of published weights.
        replace_predictors: leave out the layers whose size is that of the classes.

    Raises:
        InputError: unless every other key fits, exactly once.
    """
    state = _published(source, _PUBLISHED) if _is_name(source) else read_weights(source)
    own = model.state_dict()
    state = {n: v for n, v in state.items() if n in own or not n.endswith("num_batches_tracked")}
    added = {name: value for name, value in own.items() if ".attention." in name}
    if replace_predictors:
        last = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
        added |= {name: value for name, value in own.items() if name.startswith(last)}
        state = {name: value for name, value in state.items() if not name.startswith(last)}
    merged = added | state
    try:
        check_state(model, merged, source)
    except InputError as error:
        hint = "" if replace_predictors else "; for other classes give replace_predictors: true"
        raise InputError(f"{error}{hint}") from error
    model.load_state_dict(merged)


def load_resnet(body: nn.Module, name: str, source: str) -> None:
    """ImageNet weights into the stages of a ResNet; the classifier in them is set aside."""
    state = _published(source, (name,)) if _is_name(source) else read_weights(source)
    own = body.state_dict()
    state = {n: v for n, v in state.items() if not n.startswith("fc.")}
    state = {n: v for n, v in state.items() if n in own or not n.endswith("num_batches_tracked")}
    state = {n: v for n, v in own.items() if ".attention." in n} | state
    check_state(body, state, source)
    body.load_state_dict(state)


def _is_name(source: str) -> bool:
    """Whether it is written as torchvision's weights are, "Kind_Weights.NAME"; not a path."""
    kind, _, member = source.partition(".")
    return kind.endswith("_Weights") and member.isidentifier()


def _published(source: str, models: Sequence[str]) -> dict[str, Tensor]:
    known = {f"{type(w).__name__}.{w.name}": w for m in models for w in get_model_weights(m)}
    if source not in known:
        raise InputError(f"weights {source!r}: give one of {', '.join(known)}, or a local file")
    try:
        return dict(known[source].get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise InputError(f"weights {source}: download failed ({error})") from error
