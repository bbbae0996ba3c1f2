"""Published checkpoints to networks of this library.

Three kinds: the paper's CCNet-lineage network, the paper's MMSegmentation head, and
MMSegmentation's own non-local networks (docs/checkpoints.md, docs/method.md sections 3 to 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.convert.published_names import Source, encoder_arguments, published_name, weight
from fsanet.data.datasets import LABEL_SETS, LabelSet, label_set
from fsanet.data.masks import class_palette
from fsanet.errors import InputError
from fsanet.files import read_checkpoint
from fsanet.models import FsaNet

__all__ = ["PublishedNetwork", "convert_checkpoint", "convert_state", "match_state"]

# Of the channels red, green, blue, in 0..255; CCNet takes them as BGR and divides by nothing.
_CCNET_MEAN = (122.67891434, 116.66876762, 104.00698793)
_MMSEG_MEAN = (123.675, 116.28, 103.53)
_MMSEG_STD = (58.395, 57.12, 57.375)

_TOKENS = ("query", "key", "value")


@dataclass
class PublishedNetwork:
    """What a published state_dict is, in this library's terms.

    Attributes:
        kind: in words.
        arguments: of :class:`fsanet.FsaNet`.
        weights: its whole state_dict.
        assumed: arguments that neither the file nor the caller told, with the value taken.
        left_out: published weights that were left out on request.
    """

    kind: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    assumed: dict[str, Any]
    left_out: list[str]

    def build(self) -> FsaNet:
        """The network, in evaluation mode, in the dtype of the weights (float32 at least)."""
        with torch.device("meta"):
            model = FsaNet(**self.arguments)
        model.load_state_dict(self.weights, assign=True)
        return model.eval()


def convert_checkpoint(file: str | Path, source: Source, **options: Any) -> PublishedNetwork:
    """Read a published checkpoint as a network of this library that computes the same.

    Args:
        file: ``.pth`` or ``.safetensors``; see :func:`fsanet.files.read_checkpoint`.
        source: "ccnet" or "mmseg".
        **options: of :func:`convert_state`.

    Raises:
        InputError: one line that names the file and what does not fit.
    """
    state, rest = read_checkpoint(file)
    meta = rest.get("meta")
    meta = meta if isinstance(meta, Mapping) else None
    try:
        return convert_state(state, source, meta=meta, **options)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def convert_state(
    state: Mapping[str, Tensor],
    source: Source,
    *,
    meta: Mapping[str, Any] | None = None,
    similarity: Similarity | None = None,
    k: BandLike = None,
    recurrence: int | None = None,
    align_corners: bool | None = None,
    classes: str | Sequence[str] | None = None,
    drop_biases: bool = False,
    leave_out: Iterable[str] = (),
) -> PublishedNetwork:
    """A published state_dict as a network of this library that computes the same.

    Args:
        state: weights by their published names, on any device.
        source: "ccnet" (the paper's CCNet lineage) or "mmseg" (the paper's MMSegmentation head,
            or MMSegmentation's own non-local networks; the weights tell which).
        meta: what an MMSegmentation file says of its classes and their palette.
        similarity: by default "dot"; "softmax" for MMSegmentation's own.
        k: band of frequencies. By default 8 ("ccnet") and 5 (the paper's MMSegmentation head);
            MMSegmentation's own networks stay regular attention unless it is given.
        recurrence: by default 2; 1 for MMSegmentation's own.
        align_corners: by default True for Cityscapes, otherwise False.
        classes: "cityscapes", "ade20k", "voc", or names; by default those in ``meta``, and
            Cityscapes for "ccnet".
        drop_biases: leave out the biases on queries, keys and values, as the paper's study of
            MMSegmentation's own networks does.
        leave_out: patterns (``*`` and ``?``) of published names to leave out.

    Raises:
        InputError: one line that names what does not fit, such as the weights that are missing
            or left over.
    """
    if source not in get_args(Source):
        raise InputError(f"source={source!r}: use one of {', '.join(get_args(Source))}")
    state, left_out = _without(state, leave_out)
    biases = [published_name(f"head.attention.{token}.bias", "mmseg") for token in _TOKENS]
    biases = [name for name in biases if name in state and source == "mmseg"]
    if drop_biases:
        if not biases:
            raise InputError("has no biases on queries, keys and values to drop")
        state = {name: value for name, value in state.items() if name not in biases}
        left_out, biases = left_out + biases, []

    arguments = encoder_arguments(state, source)
    arguments["num_classes"] = weight(state, "head.classify", source).shape[0]
    arguments["head_channels"] = weight(state, "head.reduce.0", source).shape[0]
    auxiliary = {"ccnet": "dsn.", "mmseg": "auxiliary_head."}[source]
    has_auxiliary = any(name.startswith(auxiliary) for name in state)
    arguments["aux_channels"] = 0
    if has_auxiliary:
        arguments["aux_channels"] = weight(state, "auxiliary.reduce.0", source).shape[0]
    arguments["block"] = "ccnet" if source == "ccnet" else "nonlocal"
    arguments["qkv_bias"] = bool(biases)
    labels = _labels(classes, meta or {}, source, arguments["num_classes"])
    arguments |= {"classes": labels.classes, "palette": labels.palette}

    # The paper's head works on coefficients with 1-d convolutions, MMSegmentation's on maps.
    regular = source == "mmseg" and weight(state, "head.attention.query", source).ndim == 4
    defaults: dict[str, Any] = {
        "similarity": "softmax" if regular else "dot",
        "recurrence": 1 if regular else 2,
        "align_corners": labels.classes == label_set("cityscapes").classes,
    }
    if not regular:
        defaults["k"] = 8 if source == "ccnet" else 5
    given = {
        "similarity": similarity,
        "k": k,
        "recurrence": recurrence,
        "align_corners": align_corners,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    assumed = {name: value for name, value in defaults.items() if name not in chosen}
    arguments |= chosen | assumed
    arguments["attention"] = "spatial" if regular and "k" not in chosen else "frequency"
    arguments |= _normalisation(source)

    kind = {"ccnet": "CCNet-lineage FsaNet", "mmseg": "MMSegmentation FSA head"}[source]
    with torch.device("meta"):
        wanted = FsaNet(**arguments).state_dict()
    return PublishedNetwork(
        kind="MMSegmentation non-local network" if regular else kind,
        arguments=arguments,
        weights=match_state(state, wanted, source),
        assumed=assumed,
        left_out=left_out,
    )


def match_state(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Source
) -> dict[str, Tensor]:
    """Published weights under this library's names; each is used exactly once.

    Args:
        state: published weights.
        wanted: the network's state_dict, of which names and shapes are looked at.
        source: lineage of the names.

    Returns:
        Weights for every name in ``wanted``, floats in float32 at least. Counters of batches
        that the file lacks are 0: they are used by no network here.

    Raises:
        InputError: naming the weights that are missing, left over, or of another shape.
    """
    rest, weights = dict(state), {}
    missing, misshapen = [], []
    for ours, like in wanted.items():
        name = published_name(ours, source)
        value = rest.pop(name, None)
        if value is None:
            if ours.endswith(".num_batches_tracked"):
                weights[ours] = torch.zeros((), dtype=torch.long)
            else:
                missing.append(name)
            continue
        shape = tuple(value.shape)
        if ours.startswith("head.attention.") and like.ndim <= 2:
            value = _without_ones(value, like.ndim)
        if value.shape != like.shape:
            misshapen.append(f"{name} {shape} for {tuple(like.shape)}")
        weights[ours] = _float32_at_least(value)
    if source == "ccnet" and "auxiliary.reduce.0.weight" in wanted:
        # Its convolution has a bias, ours has none: batch norm takes it off with the mean.
        bias, mean = rest.pop("dsn.0.bias", None), weights.get("auxiliary.reduce.1.running_mean")
        if bias is None:
            missing.append("dsn.0.bias")
        elif mean is not None and bias.shape != mean.shape:
            misshapen.append(f"dsn.0.bias {tuple(bias.shape)} for {tuple(mean.shape)}")
        elif mean is not None:
            weights["auxiliary.reduce.1.running_mean"] = mean - _float32_at_least(bias)
    problems = [
        f"{len(names)} {title}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
        for title, names in (
            ("missing", missing),
            ("unexpected", list(rest)),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise InputError(f"weights do not fit --from {source} ({'; '.join(problems)})")
    return weights


def _without_ones(value: Tensor, ndim: int) -> Tensor:
    """Weights of 1x1 convolutions (o, i, 1[, 1]) as (o, i), and a bias (1, C, 1) as (C)."""
    if ndim == 1 and value.ndim == 3 and value.shape[0] == value.shape[2] == 1:
        return value.flatten()
    if ndim == 2 and value.ndim > 2 and all(side == 1 for side in value.shape[2:]):
        return value.flatten(1)
    return value


def _float32_at_least(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _without(
    state: Mapping[str, Tensor], patterns: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    left_out: list[str] = []
    for pattern in patterns:
        found = [name for name in state if fnmatchcase(name, pattern)]
        if not found:
            raise InputError(f"no weight is named {pattern!r}, so it cannot be left out")
        left_out += [name for name in found if name not in left_out]
    return {name: value for name, value in state.items() if name not in left_out}, left_out


def _normalisation(source: Source) -> dict[str, Any]:
    """In terms of ``FsaNet.normalise``: values of 0..1, mean and std in the order RGB."""
    if source == "ccnet":
        mean, std, bgr = _CCNET_MEAN, (1.0, 1.0, 1.0), True
    else:
        mean, std, bgr = _MMSEG_MEAN, _MMSEG_STD, False
    return {"mean": [m / 255 for m in mean], "std": [s / 255 for s in std], "bgr": bgr}


def _labels(
    classes: str | Sequence[str] | None, meta: Mapping[str, Any], source: Source, count: int
) -> LabelSet:
    names: Any
    palette: Any = None
    if isinstance(classes, str):
        if classes not in LABEL_SETS:
            raise InputError(f"classes {classes!r}: use {', '.join(LABEL_SETS)}, or a list")
        where, (names, palette) = classes, label_set(classes)
    elif classes is not None:
        where, names = "classes", classes
    else:
        newer = meta.get("dataset_meta")  # MMSegmentation 1.x
        told = newer if isinstance(newer, Mapping) else meta
        where, names = "its meta", told.get("CLASSES") or told.get("classes")
        palette = told.get("PALETTE") or told.get("palette")
        if names is None and source == "ccnet":
            where, (names, palette) = "cityscapes", label_set("cityscapes")
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise InputError(
                f"does not name its {count} classes; give --classes with one of "
                f"{', '.join(LABEL_SETS)}, or a file of names"
            )
        names = [name.strip() for name in names]
    if len(names) != count:
        raise InputError(
            f"has {count} classes, but {where} has {len(names)}; give --classes with one of "
            f"{', '.join(LABEL_SETS)}, or a file of {count} names"
        )
    return LabelSet(tuple(names), class_palette(palette, count))
