"""Swap attention inside a trained network for frequency attention: weights kept, no retraining.

Source: FsaNet (arXiv 2211.15595), section IV: trained attention, given the low-passed map, works
almost as well as before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from fsanet.attention.dct import Band, BandLike
from fsanet.attention.similarity import Similarity
from fsanet.convert.kinds import KINDS, Kind, Wanted
from fsanet.convert.report import Conversion, Converted, set_module
from fsanet.convert.token_attention import Route, check_route
from fsanet.errors import InputError

__all__ = ["convert_attention"]

_KNOWN = (
    "fsanet's SpatialSelfAttention, non-local blocks as MMSegmentation names them, "
    "transformers' SegFormer attention, timm's ViT attention"
)


def convert_attention(
    model: nn.Module,
    k: BandLike | Mapping[str, BandLike] = 8,
    similarity: Similarity | None = None,
    match: str | Sequence[str] = "*",
    *,
    route: Route = "tokens",
    grid: int | tuple[int, int] = 16,
    drop_biases: bool = False,
    token_grid: tuple[int, int] | None = None,
    prefix_tokens: int = 0,
    kinds: Sequence[Kind] = KINDS,
    in_place: bool = False,
) -> Conversion:
    """Replace the attention of a network by frequency attention with the same weights.

    Each module then computes what it computed before, of a map whose high frequencies are taken
    away; the residual around it is not low-passed. With ``k=None`` nothing is taken away, and
    the outputs are those of the original.

    Args:
        model: any network.
        k: low frequencies kept (a band, see :class:`fsanet.FrequencySelfAttention`), or
            ``{pattern: k}``: the first pattern that fits a module's name decides, and modules
            that none fits stay as they are.
        similarity: None keeps each module's own; else "dot", "linear_softmax", "linear" or
            "softmax".
        match: glob pattern or patterns; modules whose name fits one are converted.
        route: how softmax gets its keys. "tokens": all N of them. "grid": ``grid x grid`` of
            them, evaluated from the coefficients, O(N m^2); from m = max(H, W) on the same.
        grid: m, or (mh, mw), of route "grid"; best not below k.
        drop_biases: leave out the biases of queries, keys and values of MMSegmentation's
            non-local blocks, as the paper's no-retraining study did.
        token_grid: (rows, columns) of tokens where the network does not tell.
        prefix_tokens: tokens before that grid, such as a class token.
        kinds: what can be converted, see `fsanet.convert.kinds`; add your own.
        in_place: convert the network itself; by default a deep copy, the original untouched.

    Returns:
        the network and the report.

    Raises:
        InputError: nothing to convert, a pattern that fits nothing, or an option that makes no
            sense.

    Source: arXiv 2211.15595, section IV.

    >>> import fsanet
    >>> layer = fsanet.SpatialSelfAttention(32)
    >>> fsanet.convert_attention(layer, k=4).modules[0].becomes
    'FrequencySelfAttention'
    """
    patterns = (match,) if isinstance(match, str) else tuple(match)
    bands: dict[str, BandLike] = dict(k) if isinstance(k, Mapping) else {"*": k}
    for band in bands.values():
        Band.of(band)
    if similarity is not None or route != "tokens":
        check_route(route, grid, similarity or "softmax")
    if not in_place:
        model = copy.deepcopy(model)
    done: dict[int, nn.Module] = {}  # a module can stand at several names
    replaced: dict[str, nn.Module] = {}
    report = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        pattern = next((p for p in bands if fnmatchcase(name, p)), None)
        if pattern is None or not any(fnmatchcase(name, p) for p in patterns):
            continue
        wanted = Wanted(
            name=name,
            network=model,
            k=bands[pattern],
            similarity=similarity,
            route=route,
            grid=grid,
            drop_biases=drop_biases,
            token_grid=token_grid,
            prefix_tokens=prefix_tokens,
        )
        replacement = done.get(id(module)) or replacement_of(module, wanted, kinds)
        if replacement is None:
            continue
        replacement.train(module.training)
        done[id(module)] = replacement
        replaced[name] = module
        report.append(_entry(name, module, replacement, wanted))
    for pattern in (*patterns, *bands):
        if not any(fnmatchcase(name, pattern) for name in replaced):
            raise InputError(_nothing(model, pattern, kinds))
    if "" in replaced and in_place:
        raise InputError("the network is itself the attention: it cannot be replaced in place")
    for name, module in replaced.items():
        model = set_module(model, name, done[id(module)])
    return Conversion(model=model, modules=tuple(report), replaced=replaced)


def attention_names(model: nn.Module, kinds: Sequence[Kind] = KINDS) -> list[str]:
    """Names of the modules that one of the kinds knows, convertible or not."""
    names = []
    for name, module in model.named_modules():
        # With a grid given, no kind has to ask the network for it.
        wanted = Wanted(name=name, network=model, token_grid=(1, 1))
        try:
            known = replacement_of(module, wanted, kinds) is not None
        except InputError:
            known = True
        if known:
            names.append(name)
    return names


def chosen_modules(
    model: nn.Module, match: str | Sequence[str], kinds: Sequence[Kind]
) -> list[tuple[str, nn.Module]]:
    """The known modules whose name fits a pattern.

    Raises:
        InputError: a pattern that fits none.
    """
    patterns = (match,) if isinstance(match, str) else tuple(match)
    names = attention_names(model, kinds)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(_nothing(model, pattern, kinds))
    return [
        (name, model.get_submodule(name))
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def replacement_of(module: nn.Module, wanted: Wanted, kinds: Sequence[Kind]) -> nn.Module | None:
    """What the first kind that knows the module makes of it."""
    made = (kind(module, wanted) for kind in kinds)
    return next((one for one in made if one is not None), None)


def _nothing(model: nn.Module, pattern: str, kinds: Sequence[Kind]) -> str:
    names = attention_names(model, kinds)
    if not names:
        return f"{type(model).__name__} holds no attention to convert; known are {_KNOWN}"
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"the pattern {pattern!r} fits no attention to convert; there are {some}"


def _entry(name: str, module: nn.Module, replacement: nn.Module, wanted: Wanted) -> Converted:
    return Converted(
        name=name,
        kind=type(module).__name__,
        becomes=type(replacement).__name__,
        k=wanted.k,
        similarity=getattr(replacement, "similarity", wanted.similarity),
        route=wanted.route,
        grid=wanted.grid if wanted.route == "grid" else None,
    )
