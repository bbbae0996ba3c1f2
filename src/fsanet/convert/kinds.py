"""The kinds of attention that can be converted, one function each.

A kind is a plain function ``(module, wanted) -> replacement or None``: None where the module is
not of that kind, an InputError where it is but cannot be converted. ``convert_attention`` takes
further ones as ``kinds=(my_kind, *KINDS)``.

A replacement shares the parameters of what it replaces, and takes the same arguments. If its
first argument is not the (B, C, H, W) map that is low-passed, it has a method ``input_map`` that
gives it, called with the arguments of ``forward``.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.block import rename_published_keys
from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.convert.grid import GridSelfAttention
from fsanet.convert.token_attention import Route, check_route
from fsanet.errors import InputError

__all__ = [
    "KINDS",
    "Kind",
    "Wanted",
    "mmseg_nonlocal",
    "segformer_attention",
    "spatial_self_attention",
    "timm_vit_attention",
]


@dataclass(frozen=True)
class Wanted:
    """What one module shall become.

    Attributes:
        name: of the module in the network.
        network: that the module is part of.
        k: band of frequencies.
        similarity: None keeps the module's own.
        route: "tokens" or "grid".
        grid: points of a side on route "grid".
        drop_biases: leave out the biases of queries, keys and values of non-local blocks.
        token_grid: (H, W) of token attention whose network does not tell.
        prefix_tokens: tokens before those of that grid.
    """

    name: str
    network: nn.Module
    k: BandLike = 8
    similarity: Similarity | None = None
    route: Route = "tokens"
    grid: int | tuple[int, int] = 16
    drop_biases: bool = False
    token_grid: tuple[int, int] | None = None
    prefix_tokens: int = 0

    @property
    def token_options(self) -> dict[str, Any]:
        """Arguments of a TokenAttention whose network was trained with softmax."""
        return {
            "k": self.k,
            "similarity": self.similarity or "softmax",
            "route": self.route,
            "grid": self.grid,
        }


Kind = Callable[[nn.Module, Wanted], nn.Module | None]


def spatial_self_attention(module: nn.Module, wanted: Wanted) -> nn.Module | None:
    """This library's :class:`SpatialSelfAttention`, exactly, on the low-passed map."""
    if type(module) is not SpatialSelfAttention:
        return None
    layer = _frequency_layer(
        module.channels,
        wanted,
        similarity=module.similarity,
        recurrence=module.recurrence,
        block=module.block,
        qk_channels=module.query.out_features,
        value_channels=module.value.out_features,
        qkv_bias=module.qkv_bias,
        norm=module.norm is not None,
        scale=module.scale,
    )
    layer.load_state_dict(module.state_dict(keep_vars=True), assign=True)
    layer.norm = module.norm  # its momentum and epsilon, too, and SyncBatchNorm if it is that
    return layer


def mmseg_nonlocal(module: nn.Module, wanted: Wanted) -> nn.Module | None:
    """A non-local block with the names of MMSegmentation: theta, phi, g, conv_out.

    Known by its parts, not by its class: each holds a 1x1 ``conv``, conv_out a ``bn`` or none.
    ``mode`` (default "embedded_gaussian") and ``use_scale`` (default True) are those of the
    published block; the scale is 1/sqrt(d) with the channels d of theta.
    """
    parts: dict[str, Any] = {
        name: getattr(module, name, None) for name in ("theta", "phi", "g", "conv_out")
    }
    if not all(isinstance(part, nn.Module) for part in (parts["g"], parts["conv_out"])):
        return None
    if not hasattr(parts["conv_out"], "conv"):
        return None
    mode = getattr(module, "mode", "embedded_gaussian")
    similarities: dict[str, Similarity] = {"embedded_gaussian": "softmax", "dot_product": "dot"}
    if mode not in similarities:
        raise InputError(
            f"{wanted.name}: a non-local block of mode {mode!r}; only embedded_gaussian and "
            "dot_product are linear in the map before the similarity; leave it out with match"
        )
    convolutions: dict[str, Any] = {
        name: getattr(part, "conv", None) for name, part in parts.items()
    }
    for name, convolution in convolutions.items():
        plain = isinstance(convolution, nn.Conv2d) and convolution.weight[0, 0].numel() == 1
        if not plain or getattr(parts[name], "with_activation", False):
            raise InputError(
                f"{wanted.name}.{name}: not a plain 1x1 convolution (a sub-sampled or activated "
                "non-local block is not convertible); leave it out with match"
            )
    theta, g, out = (convolutions[name] for name in ("theta", "g", "conv_out"))
    norm = getattr(parts["conv_out"], "bn", None)
    if norm is not None and not isinstance(norm, _BatchNorm):
        raise InputError(f"{wanted.name}.conv_out: {type(norm).__name__} is no batch norm")
    biases = theta.bias is not None and not wanted.drop_biases
    layer = _frequency_layer(
        out.out_channels,
        wanted,
        similarity=similarities[mode],
        qk_channels=theta.out_channels,
        value_channels=g.out_channels,
        qkv_bias=biases,
        norm=norm is not None,
        scale=theta.out_channels**-0.5 if getattr(module, "use_scale", True) else 1.0,
    )
    state = {
        f"{name}.conv.{key}": value
        for name, convolution in convolutions.items()
        for key, value in convolution.state_dict().items()
        if key == "weight" or (biases and name != "conv_out")
    }
    if norm is not None:
        state |= {f"conv_out.bn.{key}": value for key, value in norm.state_dict().items()}
    layer.load_state_dict(rename_published_keys(state, "nonlocal"), assign=True)
    linears: tuple[Any, ...] = (layer.query, layer.key, layer.value, layer.out)
    for linear, convolution in zip(linears, convolutions.values(), strict=True):
        linear.requires_grad_(convolution.weight.requires_grad)
    layer.norm = norm
    if out.bias is not None:
        _keep_output_bias(layer, out.bias)
    return layer


def _keep_output_bias(layer: FrequencySelfAttention, bias: torch.Tensor) -> None:
    if layer.norm is None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    elif layer.norm.running_mean is not None:  # norm(x + b) is norm with its mean moved by -b
        layer.norm = _moved(layer.norm, bias)


def _moved(norm: _BatchNorm, bias: torch.Tensor) -> _BatchNorm:
    norm = copy.deepcopy(norm)  # the original's running mean stays
    with torch.no_grad():
        norm.running_mean -= bias  # type: ignore[operator]
    return norm


def _frequency_layer(channels: int, wanted: Wanted, **options: Any) -> FrequencySelfAttention:
    """The layer with its parameters not yet allocated."""
    if wanted.similarity is not None:
        options["similarity"] = wanted.similarity
    check_route(wanted.route, wanted.grid, options["similarity"])
    if wanted.route == "grid":
        return GridSelfAttention(channels, grid=wanted.grid, k=wanted.k, device="meta", **options)
    return FrequencySelfAttention(channels, k=wanted.k, device="meta", **options)


def segformer_attention(module: nn.Module, wanted: Wanted) -> nn.Module | None:
    """The attention of transformers' SegFormer, with or without reduction of its keys."""
    if type(module) is not _loaded(
        "transformers.models.segformer.modeling_segformer", "SegformerAttention"
    ):
        return None
    from fsanet.convert.segformer import SegformerFrequencyAttention

    return SegformerFrequencyAttention(module, **wanted.token_options)


def timm_vit_attention(module: nn.Module, wanted: Wanted) -> nn.Module | None:
    """The attention of timm's VisionTransformer; its grid is that of the patch embedding."""
    if type(module) is not _loaded("timm.layers", "Attention"):
        return None
    from fsanet.convert.vit import PatchGrid, VitFrequencyAttention

    if wanted.token_grid is not None:
        return VitFrequencyAttention(
            module,
            grid_of=PatchGrid(wanted.token_grid),
            prefix=wanted.prefix_tokens,
            **wanted.token_options,
        )
    for depth in range(wanted.name.count(".") + 1, -1, -1):
        owner: Any = wanted.network.get_submodule(".".join(wanted.name.split(".")[:depth]))
        embedding: Any = getattr(owner, "patch_embed", None)
        if hasattr(embedding, "dynamic_feat_size") and hasattr(owner, "num_prefix_tokens"):
            hooks = embedding._forward_hooks.values()
            grid_of = next((hook for hook in hooks if isinstance(hook, PatchGrid)), None)
            if grid_of is None:
                grid_of = PatchGrid()
                embedding.register_forward_hook(grid_of)
            return VitFrequencyAttention(
                module, grid_of=grid_of, prefix=owner.num_prefix_tokens, **wanted.token_options
            )
    raise InputError(
        f"{wanted.name}: tokens of a grid that is not known, as no module above it has a "
        "patch_embed; give token_grid=(rows, columns), and prefix_tokens if there are any"
    )


def _loaded(module: str, name: str) -> Any:
    """A class of a library, if that is loaded: without it no module can be of the class."""
    return getattr(sys.modules.get(module), name, None)


KINDS: tuple[Kind, ...] = (
    spatial_self_attention,
    mmseg_nonlocal,
    segformer_attention,
    timm_vit_attention,
)
