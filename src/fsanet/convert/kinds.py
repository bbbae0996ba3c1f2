"""The kinds of attention that can be converted, and the options of a conversion."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.block import AttentionBlock, rename_published_keys
from fsanet.attention.dct import Band, BandLike
from fsanet.attention.similarity import Similarity
from fsanet.convert.grid import GridSelfAttention
from fsanet.convert.segformer import SegformerFrequencyAttention
from fsanet.convert.token_attention import Route, TokenAttention, check_route
from fsanet.convert.vit import (
    MultiheadFrequencyAttention,
    PatchGrid,
    TimmFrequencyAttention,
    TransformersFrequencyAttention,
    VitFrequencyAttention,
)
from fsanet.errors import InputError

__all__ = ["KINDS", "ConversionOptions", "Kind"]


Convert = Callable[[Any, nn.Module, "ConversionOptions"], nn.Module]


@dataclass(frozen=True)
class Kind:
    """A kind of attention module that can be converted.

    ``convert(module, network, options)`` returns the replacement: a module that shares the
    parameters of ``module`` and is called with the same arguments. ``network`` is what the module
    is part of, and ``options.k`` the band for this module. It raises an InputError for a module
    that cannot be converted. If the first argument of the replacement's ``forward`` is not the
    (B, C, H, W) map to low-pass, it needs a method ``input_map`` that returns this map, given the
    arguments of ``forward``.

    Attributes:
        description: the modules in words, for error messages.
        matches: whether a module is of this kind.
        convert: returns the replacement of a module.
    """

    description: str
    matches: Callable[[nn.Module], bool]
    convert: Convert


@dataclass(frozen=True)
class ConversionOptions:
    """What to convert, and how.

    Attributes:
        k: low frequencies to keep (a band, see :class:`fsanet.FrequencySelfAttention`), or
            ``{pattern: k}``: the first pattern that matches a module's name applies, and modules
            without a match are not converted.
        similarity: "dot", "linear_softmax", "linear" or "softmax"; None keeps each module's own.
        match: glob pattern or patterns for the names of the modules to convert.
        route: the keys of softmax. "tokens": all N positions. "grid": ``grid x grid`` points,
            evaluated from the coefficients, O(N m^2); with m >= max(H, W) both are equal.
        grid: m, or (mh, mw), for route "grid"; preferably at least k.
        drop_biases: omit the biases of queries, keys and values of MMSegmentation's non-local
            blocks, as the paper's no-retraining study did.
        token_grid: where the network does not provide the grid of its tokens: (rows, columns), or
            the name of the module whose output (B, C, H, W) is flattened to tokens.
        prefix_tokens: tokens before that grid, such as a class token.
        kinds: the kinds of attention to convert; ``(my_kind, *KINDS)`` adds one.

    Raises:
        InputError: for an invalid option.
    """

    k: BandLike | Mapping[str, BandLike] = 8
    similarity: Similarity | None = None
    match: str | Sequence[str] = "*"
    route: Route = "tokens"
    grid: int | tuple[int, int] = 16
    drop_biases: bool = False
    token_grid: tuple[int, int] | str | None = None
    prefix_tokens: int = 0
    kinds: Sequence[Kind] = field(default_factory=lambda: KINDS)

    def __post_init__(self) -> None:
        for band in self.bands.values():
            Band.of(band)
        check_route(self.route, self.grid, self.similarity or "softmax")

    @property
    def bands(self) -> dict[str, BandLike]:
        """The band for each pattern of module names."""
        return dict(self.k) if isinstance(self.k, Mapping) else {"*": self.k}

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of `match`."""
        return (self.match,) if isinstance(self.match, str) else tuple(self.match)

    @property
    def token_options(self) -> dict[str, Any]:
        """The arguments of a TokenAttention; the original similarity is softmax."""
        similarity = self.similarity or "softmax"
        return {"k": self.k, "similarity": similarity, "route": self.route, "grid": self.grid}

    def selects(self, name: str) -> bool:
        """Whether a module is to be converted, by its name."""
        return all(
            any(fnmatchcase(name, pattern) for pattern in patterns)
            for patterns in (self.patterns, self.bands)
        )

    def band_of(self, name: str) -> BandLike:
        """The band for a selected module."""
        return next(band for pattern, band in self.bands.items() if fnmatchcase(name, pattern))

    def for_module(self, name: str) -> ConversionOptions:
        """These options with the band for a selected module as `k`."""
        return replace(self, k=self.band_of(name))

    def kind_of(self, module: nn.Module) -> Kind | None:
        """The first kind that matches a module."""
        return next((kind for kind in self.kinds if kind.matches(module)), None)


# --- this library's layer, and non-local blocks -----------------------------------------


def _frequency_layer(
    channels: int, options: ConversionOptions, **block: Any
) -> FrequencySelfAttention:
    """The layer, its parameters not yet allocated."""
    if options.similarity is not None:
        block["similarity"] = options.similarity
    block |= {"k": options.k, "device": "meta"}
    if options.route == "grid":
        return GridSelfAttention(channels, grid=options.grid, **block)
    return FrequencySelfAttention(channels, **block)


def _convert_spatial(
    module: AttentionBlock, network: nn.Module, options: ConversionOptions
) -> nn.Module:
    layer = _frequency_layer(
        module.channels,
        options,
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
    layer.norm = module.norm  # keeps its momentum and epsilon, and SyncBatchNorm
    return layer


_SIMILARITIES: dict[str, Similarity] = {"embedded_gaussian": "softmax", "dot_product": "dot"}


def _is_nonlocal(module: nn.Module) -> bool:
    g, conv_out = getattr(module, "g", None), getattr(module, "conv_out", None)
    return isinstance(g, nn.Module) and hasattr(conv_out, "conv")


def _convert_nonlocal(module: Any, network: nn.Module, options: ConversionOptions) -> nn.Module:
    """Convert a non-local block with the names of MMSegmentation: theta, phi, g, conv_out.

    Each part holds a 1x1 ``conv``, and conv_out possibly a ``bn``. ``mode`` (default
    "embedded_gaussian") and ``use_scale`` (default True) are those of the published block; the
    scale is 1/sqrt(d) with the d channels of theta.
    """
    mode = getattr(module, "mode", "embedded_gaussian")
    if mode not in _SIMILARITIES:
        raise InputError(
            f"a non-local block of mode {mode!r}; only embedded_gaussian and dot_product are "
            "linear in the map before the similarity; exclude it with match"
        )
    convolutions = {part: _pointwise(module, part) for part in ("theta", "phi", "g", "conv_out")}
    theta, out = convolutions["theta"], convolutions["conv_out"]
    norm = getattr(module.conv_out, "bn", None)
    if norm is not None and not isinstance(norm, _BatchNorm):
        raise InputError(f"conv_out: expected a batch norm, got {type(norm).__name__}")
    biases = theta.bias is not None and not options.drop_biases
    layer = _frequency_layer(
        out.out_channels,
        options,
        similarity=_SIMILARITIES[mode],
        qk_channels=theta.out_channels,
        value_channels=convolutions["g"].out_channels,
        qkv_bias=biases,
        norm=norm is not None,
        scale=theta.out_channels**-0.5 if getattr(module, "use_scale", True) else 1.0,
    )
    state = {} if norm is None else norm.state_dict(prefix="conv_out.bn.")
    for part, convolution in convolutions.items():
        state[f"{part}.conv.weight"] = convolution.weight.detach()
        if biases and part != "conv_out" and convolution.bias is not None:
            state[f"{part}.conv.bias"] = convolution.bias.detach()
    layer.load_state_dict(rename_published_keys(state, "nonlocal"), assign=True)
    linears: tuple[Any, ...] = (layer.query, layer.key, layer.value, layer.out)
    for linear, convolution in zip(linears, convolutions.values(), strict=True):
        linear.requires_grad_(convolution.weight.requires_grad)
    layer.norm = norm
    if out.bias is not None:
        _keep_output_bias(layer, out.bias)
    return layer


def _pointwise(module: Any, part: str) -> nn.Conv2d:
    unit = getattr(module, part, None)
    convolution = getattr(unit, "conv", None)
    if (
        isinstance(convolution, nn.Conv2d)
        and convolution.weight[0, 0].numel() == 1
        and not getattr(unit, "with_activation", False)
    ):
        return convolution
    raise InputError(
        f"{part}: not a plain 1x1 convolution; a non-local block with sub-sampling or an "
        "activation cannot be converted; exclude it with match"
    )


def _keep_output_bias(layer: FrequencySelfAttention, bias: torch.Tensor) -> None:
    if layer.norm is None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    elif layer.norm.running_mean is not None:  # norm(x + b) is norm(x) with its mean moved by -b
        layer.norm = copy.deepcopy(layer.norm)  # the original keeps its running mean
        with torch.no_grad():
            layer.norm.running_mean -= bias  # type: ignore[operator]


def _is_frequency(module: nn.Module) -> bool:
    return isinstance(module, (FrequencySelfAttention, TokenAttention))


def _narrow(module: Any, network: nn.Module, options: ConversionOptions) -> nn.Module:
    """Frequency attention over a part of its band: of two low-passes the smaller counts."""
    band = Band.of(options.k)  # type: ignore[arg-type]
    if not module.band.contains(band):
        raise InputError(
            f"its attention sees the frequencies {module.band} alone; {band} reaches beyond; "
            "give a band inside it, or convert the original network"
        )
    if isinstance(module, FrequencySelfAttention):
        return _convert_spatial(module, network, options)
    narrowed = copy.copy(module)  # with the same parameters
    narrowed.band, narrowed.route, narrowed.grid = band, options.route, options.grid
    narrowed.similarity = options.similarity or module.similarity
    check_route(narrowed.route, narrowed.grid, narrowed.similarity)
    return narrowed


# --- attention over tokens --------------------------------------------------------------


def _convert_segformer(module: Any, network: nn.Module, options: ConversionOptions) -> nn.Module:
    return SegformerFrequencyAttention(module, **options.token_options)


# Modules whose output is the map that is flattened to tokens (timm, transformers, torchvision), and
# the attribute that counts the tokens before it. Without one, all tokens but the last N come before
# it, which would be wrong under the patch dropout of timm.
_MAPS = {
    "patch_embed.proj": "num_prefix_tokens",
    "embeddings.patch_embeddings": "",
    "embeddings.patch_embeddings.projection": "",
    "conv_proj": "",
}


def _convert_tokens(replacement: type[VitFrequencyAttention]) -> Convert:
    """Conversion to a class of attention over a grid of tokens; the network gives its size."""

    def convert(module: Any, network: nn.Module, options: ConversionOptions) -> nn.Module:
        prefix: int | None = options.prefix_tokens
        if isinstance(options.token_grid, tuple):
            grid = PatchGrid(options.token_grid)
        else:
            if options.token_grid is not None:
                source = _submodule(network, options.token_grid)
                if source is None:
                    raise InputError(f"token_grid={options.token_grid!r}: no module of this name")
            else:
                source, prefix = _map_around(module, network)
            hooks = [h for h in source._forward_hooks.values() if isinstance(h, PatchGrid)]
            grid = hooks[0] if hooks else PatchGrid()
            if not hooks:
                source.register_forward_hook(grid)
        converted = replacement(module, patch_grid=grid, prefix=prefix, **options.token_options)
        for owner in network.modules():  # nested tensors leave padding out, and so have no grid
            if isinstance(owner, nn.TransformerEncoder) and _contains(owner, module):
                owner.use_nested_tensor = False
        return converted

    return convert


def _map_around(module: nn.Module, network: nn.Module) -> tuple[nn.Module, int | None]:
    """The module that makes the map for an attention module, and the tokens before the map."""
    found = [
        (source, getattr(owner, prefix, None))
        for owner in network.modules()
        if _contains(owner, module)
        for name, prefix in _MAPS.items()
        if (source := _submodule(owner, name)) is not None
    ]
    if not found:
        raise InputError(
            "the grid of its tokens is unknown, because no module around it has a known patch "
            "embedding; give token_grid, (rows, columns) or the name of the module that makes "
            "the map, and prefix_tokens if there are any; or exclude it with match"
        )
    return found[-1]  # the innermost


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _contains(owner: nn.Module, module: nn.Module) -> bool:
    return any(inner is module for inner in owner.modules())


def _is_one_of(*classes: str) -> Callable[[nn.Module], bool]:
    """A test of modules: is it exactly of one of these classes, each "package.module:Name"?

    No library is imported for it: while it is not imported, no module is of its classes.
    """
    names = [name.split(":") for name in classes]

    def matches(module: nn.Module) -> bool:
        return any(
            type(module) is getattr(sys.modules.get(path), name, None) for path, name in names
        )

    return matches


_TRANSFORMERS_VITS = {
    f"transformers.models.{name}.modeling_{name}"
    for name in (
        "vit",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "eomt",
        "eomt_dinov3",
    )
}


def _is_transformers_vit(module: nn.Module) -> bool:
    """The module with the projections: in release 5.10 DINOv2's lies within another Attention."""
    found = type(module)
    return (
        found.__module__ in _TRANSFORMERS_VITS
        and found.__name__.endswith("Attention")
        and (hasattr(module, "q_proj") or hasattr(module, "query"))
    )


KINDS: tuple[Kind, ...] = (
    Kind(
        "fsanet's SpatialSelfAttention",
        lambda module: type(module) is SpatialSelfAttention,
        _convert_spatial,
    ),
    Kind("non-local blocks as named in MMSegmentation", _is_nonlocal, _convert_nonlocal),
    Kind(
        "transformers' SegFormer attention",
        _is_one_of("transformers.models.segformer.modeling_segformer:SegformerAttention"),
        _convert_segformer,
    ),
    Kind(
        "timm's ViT, EVA and DINOv3 attention",
        _is_one_of(
            "timm.layers:Attention", "timm.layers:AttentionRope", "timm.models.eva:EvaAttention"
        ),
        _convert_tokens(TimmFrequencyAttention),
    ),
    Kind(
        "transformers' ViT, DeiT, DINOv2, DINOv3 and EoMT attention",
        _is_transformers_vit,
        _convert_tokens(TransformersFrequencyAttention),
    ),
    Kind(
        "nn.MultiheadAttention over a grid of tokens",
        lambda module: type(module) is nn.MultiheadAttention,
        _convert_tokens(MultiheadFrequencyAttention),
    ),
    Kind("frequency attention over a wider band", _is_frequency, _narrow),
)
