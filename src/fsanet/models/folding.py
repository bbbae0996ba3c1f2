"""Batch norms folded into the convolutions before them, for prediction.

In evaluation a batch norm is an affine map of each channel, ``x * scale + shift``, which the
convolution before it can apply with its own weights: one pass less over the map.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fsanet.attention.norm import batch_norm_affine
from fsanet.models.encoder import timm
from fsanet.models.saving import SegmentationNetwork

__all__ = ["Folding"]

_SIDE = 64  # pixels of the image that shows what follows what


class _Fold(NamedTuple):
    """A convolution with the weights it gets, and a batch norm with what is left of it."""

    conv: nn.Conv2d
    weight: Tensor
    bias: Tensor
    norm: nn.BatchNorm2d
    forward: Callable[[Tensor], Tensor]


class Folding:
    """Makes versions of a network that compute the same with folded batch norms.

    Which batch norm takes the result of which convolution, and that nothing else takes it, is seen
    by running the network once on a small image, so that it holds for any encoder. This and the
    folded weights, which take as much memory as those they stand for, are kept until a module is
    replaced or a weight is changed (one that is written through ``Tensor.data`` goes unnoticed).

    All other batch norms stay, such as those that attention applies to coefficients. A network of
    another class, a compiled one, or one that refuses the image is used as it is.

    Args:
        network: a network, which is never changed.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._found: tuple[object, list[_Fold]] = None, []  # the state that folds were made for

    @torch.no_grad()
    def network(self) -> nn.Module:
        """The network, in evaluation mode, as it is now, with folded batch norms.

        It shares all else with the network; attributes that are set on one later, such as the band
        of an attention, do not reach the other.
        """
        if not isinstance(self._network, SegmentationNetwork):
            return self._network
        state = _state(self._network)
        if state != self._found[0]:
            self._found = state, _folds(self._network)
        if not self._found[1]:
            return self._network
        copies: dict[int, nn.Module] = {}
        folded = _shallow_copy(self._network, copies)
        for fold in self._found[1]:
            conv, norm = copies[id(fold.conv)], copies[id(fold.norm)]
            weights: dict[str, Any] = {"weight": fold.weight, "bias": fold.bias}
            conv._parameters |= weights
            norm.__dict__["forward"] = fold.forward
        return folded


def _shallow_copy(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    """Copy a module and its submodules, sharing their tensors; ``copies`` holds them by the id."""
    if id(module) not in copies:
        made = copies[id(module)] = copy.copy(module)
        made._parameters = module._parameters.copy()
        made._modules = {
            name: None if one is None else _shallow_copy(one, copies)
            for name, one in module._modules.items()
        }
    return copies[id(module)]


def _state(network: nn.Module) -> object:
    """What changes with the network's structure and weights."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    versions = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
    return [id(module) for module in network.modules()], versions


def _folds(network: SegmentationNetwork) -> list[_Fold]:
    if any(module._compiled_call_impl is not None for module in network.modules()):
        return []
    first = next(network.parameters())
    image = first.new_zeros(1, len(network.mean), _SIDE, _SIDE)  # (1, C, 64, 64)
    try:
        with _Trace(network) as trace:
            network(image)
    except Exception:  # an encoder for images of one size, which it reports in its own way
        return []
    return [_fold(conv, norm) for conv, norm in trace.pairs()]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> _Fold:
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    scale, shift = batch_norm_affine(norm, dtype)  # (C,)
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    weight = conv.weight * scale[:, None, None, None]  # (C, C / groups, kh, kw)
    return _Fold(
        conv, weight.to(conv.weight.dtype), shift.to(conv.weight.dtype), norm, _left_of(norm)
    )


def _left_of(norm: nn.BatchNorm2d) -> Any:
    """What a folded batch norm still does; None for a class that is not known."""
    forward = type(norm).forward
    if forward is nn.BatchNorm2d.forward:
        return lambda x: x
    if forward is timm.layers.BatchNormAct2d.forward:
        with_act: Any = norm
        return lambda x: with_act.act(with_act.drop(x))
    return None


class _Trace(TorchFunctionMode):
    """Records which batch norm takes the result of which convolution in a run of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._convs: dict[int, nn.Conv2d] = {}  # by the id of the weight
        self._norms: dict[int, nn.BatchNorm2d] = {}  # by the id of the running mean
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and "weight" in module._parameters:
                self._convs[id(module.weight)] = module
            elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                self._norms[id(module.running_mean)] = module
        self._made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the id of the result
        self._found: list[tuple[nn.Conv2d, Tensor, nn.BatchNorm2d]] = []
        self._taken: Counter[int] = Counter()  # how often each tensor is, by its id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, int | torch.Size | torch.dtype | torch.device):
            return result  # this only asked about a tensor
        self._taken.update(map(id, _tensors([args, kwargs or {}])))
        if func is F.conv2d and (conv := self._convs.get(id(args[1]))) is not None:
            self._made[id(result)] = conv, result  # held, so that its id stays its own
            self._taken[id(result)] = 0
        elif func is F.batch_norm and id(args[0]) in self._made:
            norm = self._norms.get(id(args[1]))
            if norm is not None and _left_of(norm) is not None:
                self._found.append((*self._made[id(args[0])], norm))
        return result

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Those of which the convolution, its result and the batch norm are taken only once."""
        return [
            (conv, norm)
            for conv, result, norm in self._found
            if all(self._taken[id(t)] == 1 for t in (conv.weight, result, norm.running_mean))
        ]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)
