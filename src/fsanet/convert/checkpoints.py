"""Published checkpoints as networks of this library.

There are three kinds: the paper's CCNet-lineage network, the paper's MMSegmentation head, and
MMSegmentation's own non-local networks (docs/checkpoints.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.convert.published_names import LINEAGES, Lineage, Source, encoder_arguments, weight
from fsanet.data.datasets import LABEL_SETS, LabelSet, label_set
from fsanet.data.masks import class_palette
from fsanet.errors import InputError, printable
from fsanet.files import read_checkpoint
from fsanet.models import FsaNet
from fsanet.models.meta import without_values
from fsanet.models.saving import check_finite

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)

__all__ = ["PublishedNetwork", "convert_checkpoint", "convert_state"]


@dataclass
class PublishedNetwork:
    """A published network in terms of this library.

    Attributes:
        kind: what the file holds, in words.
        arguments: of :class:`fsanet.FsaNet`.
        weights: its complete state_dict.
        assumed: arguments that neither the file nor the caller provided, with the values used.
        left_out: published weights that were left out as requested.
    """

    kind: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    assumed: dict[str, Any]
    left_out: list[str]

    def build(self) -> FsaNet:
        """The network, in evaluation mode, in the dtype of the weights (at least float32)."""
        with without_values():
            model = FsaNet(**self.arguments)
        model.load_state_dict(self.weights, assign=True)
        return model.eval()


def convert_checkpoint(file: str | Path, source: Source, **options: Any) -> PublishedNetwork:
    """Read a published checkpoint as a network of this library that computes the same function.

    Args:
        file: ``.pth`` or ``.safetensors``; see :func:`fsanet.files.read_checkpoint`.
        source: "ccnet" or "mmseg".
        **options: those of :func:`convert_state`, except meta.

    Raises:
        InputError: one line that names the file and what does not fit.
    """
    state, rest = read_checkpoint(file)
    meta = rest.get("meta")
    try:
        network = convert_state(
            state, source, meta=meta if isinstance(meta, Mapping) else None, **options
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    check_finite(network.weights, file)
    return network


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
    """Turn a published state_dict into a network of this library that computes the same function.

    Args:
        state: weights by their published names, on any device.
        source: "ccnet" (the paper's CCNet lineage) or "mmseg" (the paper's MMSegmentation head,
            or MMSegmentation's own non-local networks, which differ in the shapes of the weights).
        meta: what an MMSegmentation file says about its classes and their colours.
        similarity: by default "dot"; "softmax" for MMSegmentation's own networks.
        k: band of frequencies. By default 8 ("ccnet") or 5 (the paper's MMSegmentation head);
            MMSegmentation's own networks keep regular attention unless it is given.
        recurrence: by default 2; 1 for MMSegmentation's own networks.
        align_corners: by default True for Cityscapes, otherwise False.
        classes: "cityscapes", "ade20k", "voc", or names; by default those in ``meta``, and
            Cityscapes for "ccnet".
        drop_biases: omit the biases of queries, keys and values, as the paper's study of
            MMSegmentation's own networks does.
        leave_out: glob patterns of published names to leave out.

    Raises:
        InputError: one line that says what does not fit, such as missing or unused weights.
    """
    lineage = LINEAGES.get(source)
    if lineage is None:
        raise InputError(f"source={source!r}: use one of {', '.join(LINEAGES)}")
    state, left_out = _leave_out(state, leave_out)
    for name, value in state.items():
        if value.dtype not in _TYPES:
            raise InputError(f"{printable(name)} is {value.dtype}; expected float16 to float64")
    tokens = [f"head.attention.{token}" for token in ("query", "key", "value")]
    biases = [lineage.published_name(f"{token}.bias") for token in tokens]
    biases = [name for name in biases if name in state and source == "mmseg"]
    if drop_biases:
        if not biases:
            raise InputError("has no biases of queries, keys and values to drop")
        state = {name: value for name, value in state.items() if name not in biases}
        left_out, biases = left_out + biases, []

    arguments = encoder_arguments(state, lineage)
    arguments["num_classes"] = weight(state, "head.classify", lineage).shape[0]
    arguments["head_channels"] = weight(state, "head.reduce.0", lineage).shape[0]
    arguments["aux_channels"] = 0
    if any(name.startswith(lineage.auxiliary) for name in state):
        arguments["aux_channels"] = weight(state, "auxiliary.reduce.0", lineage).shape[0]
    labels = _labels(classes, meta or {}, source, arguments["num_classes"])
    arguments |= {
        "block": lineage.block,
        "qkv_bias": bool(biases),
        "classes": labels.classes,
        "palette": labels.palette,
        "mean": [value / 255 for value in lineage.mean],
        "std": [value / 255 for value in lineage.std],
        "bgr": lineage.bgr,
    }

    # The paper's head has 1-d convolutions over coefficients, MMSegmentation's 2-d over maps.
    regular = source == "mmseg" and weight(state, tokens[0], lineage).ndim == 4
    defaults: dict[str, Any] = {
        "similarity": "softmax" if regular else "dot",
        "recurrence": 1 if regular else 2,
        "align_corners": labels.classes == label_set("cityscapes").classes,
    }
    if not regular:
        defaults["k"] = lineage.k
    given = {"similarity": similarity, "k": k, "recurrence": recurrence}
    given["align_corners"] = align_corners
    chosen = {name: value for name, value in given.items() if value is not None}
    assumed = {name: value for name, value in defaults.items() if name not in chosen}
    arguments |= chosen | assumed
    arguments["attention"] = "spatial" if regular and "k" not in chosen else "frequency"

    with without_values():
        wanted = FsaNet(**arguments).state_dict()
    return PublishedNetwork(
        kind="MMSegmentation non-local network" if regular else lineage.description,
        arguments=arguments,
        weights=_rename(state, wanted, lineage),
        assumed=assumed,
        left_out=left_out,
    )


def _rename(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], lineage: Lineage
) -> dict[str, Tensor]:
    """Published weights under the names in ``wanted``, each used exactly once.

    Floats become float32 at least. Batch counters that the file lacks are 0, as no network here
    uses them.

    Raises:
        InputError: weights are missing, unused, or of another shape.
    """
    rest, weights = dict(state), {}
    missing, misshapen = [], []
    for ours, like in wanted.items():
        name = lineage.published_name(ours)
        if name in rest:
            value = rest.pop(name)
            reshaped = _squeeze(value, like.ndim) if ours.startswith("head.attention.") else value
            if like.is_floating_point() and not reshaped.is_floating_point():
                misshapen.append(f"{name} {value.dtype} for {like.dtype}")
            elif reshaped.shape != like.shape:
                misshapen.append(f"{name} {tuple(value.shape)} for {tuple(like.shape)}")
            is_count = not like.is_floating_point()
            weights[ours] = reshaped.long() if is_count else _at_least_float32(reshaped)
        elif ours.endswith(".num_batches_tracked"):
            weights[ours] = torch.zeros((), dtype=torch.long)
        else:
            missing.append(name)
    mean_name = "auxiliary.reduce.1.running_mean"
    if lineage.source == "ccnet" and mean_name in wanted:
        # The published convolution has a bias, ours has none: the batch norm's mean absorbs it.
        bias, mean = rest.pop("dsn.0.bias", None), weights.get(mean_name)
        if bias is None:
            missing.append("dsn.0.bias")
        elif mean is not None and bias.shape != mean.shape:
            misshapen.append(f"dsn.0.bias {tuple(bias.shape)} for {tuple(mean.shape)}")
        elif mean is not None:
            weights[mean_name] = mean - _at_least_float32(bias)
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
        raise InputError(f"weights do not fit --from {lineage.source} ({'; '.join(problems)})")
    return weights


def _squeeze(value: Tensor, ndim: int) -> Tensor:
    """A bias (1, C, 1) as (C), and weights (o, i, 1[, 1]) of a 1x1 convolution as (o, i)."""
    if ndim == 1 and value.ndim == 3 and value.shape[0] == value.shape[2] == 1:
        return value.flatten()
    if ndim == 2 and value.ndim > 2 and all(side == 1 for side in value.shape[2:]):
        return value.flatten(1)
    return value


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _leave_out(
    state: Mapping[str, Tensor], patterns: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that match none of the patterns, and the names of the others."""
    left_out: list[str] = []
    for pattern in patterns:
        found = [name for name in state if fnmatchcase(name, pattern)]
        if not found:
            raise InputError(f"no weight is named {pattern!r}, so it cannot be left out")
        left_out += [name for name in found if name not in left_out]
    return {name: value for name, value in state.items() if name not in left_out}, left_out


def _labels(
    classes: str | Sequence[str] | None, meta: Mapping[str, Any], source: Source, count: int
) -> LabelSet:
    """Names and colours of the classes: as given, as in the file, or Cityscapes for CCNet."""
    options = f"give --classes with one of {', '.join(LABEL_SETS)}, or a file of"
    meta = meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), Mapping) else meta
    # In capitals, or in MMSegmentation 1.x not; both may be anything.
    names, palette = (
        next((meta[key] for key in (name, name.lower()) if meta.get(key) is not None), None)
        for name in ("CLASSES", "PALETTE")
    )
    where = "its meta"
    if classes is None and names is None and source == "ccnet":
        classes = "cityscapes"
    if isinstance(classes, str):
        if classes not in LABEL_SETS:
            raise InputError(f"classes {classes!r}: use {', '.join(LABEL_SETS)}, or a list")
        where, (names, palette) = classes, label_set(classes)
    elif classes is not None:
        where, names, palette = "classes", classes, None
    elif not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        raise InputError(f"does not name its {count} classes; {options} names")
    if len(names) != count:
        raise InputError(
            f"has {count} classes, but {where} has {len(names)}; {options} {count} names"
        )
    if not isinstance(palette, list | tuple | None):
        raise InputError("its meta has a PALETTE that is no list of colours")
    return LabelSet(tuple(name.strip() for name in names), class_palette(palette or None, count))
