"""Why a pixel got its class: what it attends to, which frequencies matter, which pixels matter.

Sources: attention rows and bands: FsaNet (arXiv 2211.15595), section III; integrated gradients:
Sundararajan, Taly and Yan (arXiv 1703.01365), as captum computes them.

Legend: C channels, H x W image, h x w grid of the attention, R rounds, K classes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention, attention_row
from fsanet.attention.block import AttentionBlock
from fsanet.attention.dct import Band, split_frequencies
from fsanet.cost import Watch, no_watch
from fsanet.data.images import ImageSource, read_image
from fsanet.errors import InputError, check_range
from fsanet.models.segmenter import evaluating
from fsanet.predict.result import Segmentation

__all__ = [
    "BandPart",
    "Explanation",
    "Outcome",
    "attend_from",
    "check_pixel",
    "explain",
    "find_layer",
    "grid_position",
    "reduce_image",
    "uniform_weight",
]


@dataclass(frozen=True)
class Outcome:
    """What the network says at the explained pixel after a change, and how much else changed.

    Attributes:
        logit: of the explained class at the pixel.
        probability: of the explained class at the pixel.
        mask: class ids of all pixels, uint8 (H, W).
        changed: share of the pixels of the image that get another class, 0..1.
        class_at_pixel: name of the class that the pixel gets.
    """

    logit: float
    probability: float
    mask: Tensor
    changed: float
    class_at_pixel: str


@dataclass(frozen=True)
class BandPart:
    """What a part of the frequency plane contributes to the input of the attention block.

    Attributes:
        name: its frequencies, such as "4:8": those below 8 on both axes that are not below 4.
        energy: share of the sum of squares of the block's input, 0..1. Shares add up to 1.
        map: (h, w), the part's projection on the direction of the input at the explained position.
            The maps of all parts add up to that of the input itself.
        at_pixel: share of the length of the input at the position. Shares add up to 1.
        without: what the network says when the part is taken out of the block's input.
    """

    name: str
    energy: float
    map: Tensor
    at_pixel: float
    without: Outcome


@dataclass(frozen=True)
class Gradients:
    """Integrated gradients of the class logit at the pixel, from an image of the mean colour.

    Attributes:
        map: (H, W), summed over the colour channels; adds up to about `difference`.
        total: the sum of all attributions.
        difference: logit of the image less logit of the mean colour, what it should be.
        steps: points on the straight line between the two images.
    """

    map: Tensor
    total: float
    difference: float
    steps: int

    @property
    def error(self) -> float:
        """Completeness: distance of the sum from what it should be, relative to that."""
        return abs(self.total - self.difference) / max(abs(self.difference), 1e-12)


@dataclass(frozen=True)
class Explanation:
    """Why a pixel got its class.

    Attributes:
        result: mask, classes and image (3, H, W) as the network saw it.
        pixel: (x, y) in that image.
        position: (row, column) on the h x w grid of the attention.
        layer_name, layer: the attention layer.
        outcome: of the network as it is.
        rows: what the position attends to in each round, (R, h, w).
        parts: the block's input by frequency, from low to high.
        split_error: largest difference of the block's input from the sum of its parts, relative to
            its largest value.
        no_attention: what the network says without the attention layer.
        gradients: which pixels matter, if it was asked for.
    """

    result: Segmentation
    pixel: tuple[int, int]
    position: tuple[int, int]
    layer_name: str
    layer: AttentionBlock
    outcome: Outcome
    rows: Tensor
    parts: tuple[BandPart, ...]
    split_error: float
    no_attention: Outcome
    gradients: Gradients | None

    @property
    def uniform(self) -> float:
        """The weight to compare a row with, see `uniform_weight`."""
        return uniform_weight(self.layer, self.rows[0])

    def attended_classes(self, row: Tensor) -> dict[str, tuple[float, float]]:
        """By class, its share of the (absolute) weights of a row and of the positions, 0..1."""
        (height, width), mask = row.shape, self.result.mask
        rows = ((torch.arange(height) + 0.5) * mask.shape[0] / height).long()
        columns = ((torch.arange(width) + 0.5) * mask.shape[1] / width).long()
        classes = mask[rows[:, None], columns].long().flatten()  # (h w,)
        count = len(self.result.classes)
        weights = torch.zeros(count).index_add(0, classes, row.abs().flatten().float())
        areas = torch.bincount(classes, minlength=count) / classes.numel()
        weights = weights / weights.sum().clamp(min=1e-30)
        return {
            name: (float(weights[index]), float(areas[index]))
            for index, name in enumerate(self.result.classes)
            if areas[index] > 0
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as values for JSON."""
        layer, (height, width) = self.layer, self.result.mask.shape
        band = getattr(layer, "band", None)
        content: dict[str, Any] = {
            "width": width,
            "height": height,
            "pixel": list(self.pixel),
            "class": self.outcome.class_at_pixel,
            "probability": self.outcome.probability,
            "logit": self.outcome.logit,
            "layer": {
                "name": self.layer_name,
                "class": type(layer).__name__,
                "similarity": layer.similarity,
                "band": None if band is None else str(band),
                "rounds": layer.recurrence,
                "grid": list(self.rows.shape[1:]),
                "position": list(self.position),
            },
            "attention": [
                {
                    "round": number,
                    "sum": float(row.sum()),
                    "uniform": self.uniform,
                    "classes": {
                        name: {"weight": weight, "area": area}
                        for name, (weight, area) in self.attended_classes(row).items()
                    },
                    "weights": row.tolist(),
                }
                for number, row in enumerate(self.rows, 1)
            ],
            "bands": [
                {
                    "frequencies": part.name,
                    "energy": part.energy,
                    "at_pixel": part.at_pixel,
                    "map": part.map.tolist(),
                    "without": _outcome_dict(part.without, self.outcome),
                }
                for part in self.parts
            ],
            "bands_sum_error": self.split_error,
            "without_attention": _outcome_dict(self.no_attention, self.outcome),
            "integrated_gradients": None,
        }
        if self.gradients is not None:
            content["integrated_gradients"] = {
                "steps": self.gradients.steps,
                "sum": self.gradients.total,
                "difference": self.gradients.difference,
                "completeness_error": self.gradients.error,
            }
        return content


def explain(
    model: nn.Module,
    image: ImageSource,
    at: tuple[int, int],
    *,
    layer: str | None = None,
    steps: int = 50,
    gradients: bool = True,
    watch: Watch = no_watch,
) -> Explanation:
    """Explain the class of a pixel.

    Args:
        model: a segmentation network with an attention layer of this library over maps. It runs in
            evaluation mode and is left as it was.
        image: anything `fsanet.data.images.read_image` accepts; fed to the network in one piece.
        at: (x, y) of the pixel.
        layer: name of the attention layer; by default the last one.
        steps: points of the integral of integrated gradients.
        gradients: compute integrated gradients, which needs captum.
        watch: is notified of each step of the integral.

    Raises:
        InputError: the pixel lies outside the image, the network has no such layer, or captum is
            not installed.
    """
    check_range("steps", steps, 2, 10_000)
    if gradients:
        _captum()
    name, block = find_layer(model, layer)
    network: Any = model
    pixels = read_image(image)  # (3, H, W)
    check_pixel(at, pixels)
    device = next(model.parameters()).device
    inputs = network.normalise(pixels[None].to(device))  # (1, 3, H, W)
    with evaluating(model):
        with torch.no_grad():
            logits, maps = _run(model, inputs, block)
            if not logits.isfinite().all():
                raise InputError(
                    "the network gives nan or infinity for this image; its weights are damaged"
                )
            x = maps[0]  # (1, C, h, w)
            position = grid_position(at, pixels.shape[1:], x.shape[2:])
            target = int(logits[0, :, at[1], at[0]].argmax())
            as_it_is = _outcome(logits, at, target, network.classes)

            def outcome(**change: Any) -> Outcome:
                changed, _ = _run(model, inputs, block, **change)
                return _outcome(changed, at, target, network.classes, as_it_is.mask)

            rows = _rows(block, x, position)
            cuts = _cuts(block, *x.shape[2:])
            split = split_frequencies(x, cuts)  # (parts, 1, C, h, w)
            rest = (split.sum(0) - x).abs().max() / x.abs().max().clamp(min=1e-30)
            here = x[0, :, position[0], position[1]].to(split.dtype)  # (C,)
            length = here.norm().clamp(min=1e-30)
            energy = split.square().sum((1, 2, 3, 4))
            energy = energy / energy.sum().clamp(min=1e-30)
            parts = []
            for index, part_name in enumerate(_part_names(cuts, *x.shape[2:])):
                along = (split[index, 0] * (here / length)[:, None, None]).sum(0)  # (h, w)
                parts.append(
                    BandPart(
                        name=part_name,
                        energy=float(energy[index]),
                        map=along.cpu(),
                        at_pixel=float(along[position] / length),
                        without=outcome(block_input=(x - split[index]).to(x.dtype)),
                    )
                )
            no_attention = outcome(skip=True)
        found = None
        if gradients:
            found = _integrated_gradients(model, inputs, at, target, steps, watch)
    return Explanation(
        result=Segmentation(
            mask=as_it_is.mask,
            classes=tuple(network.classes),
            palette=tuple(network.palette),
            image=pixels,
            source=Path(image) if isinstance(image, str | os.PathLike) else None,
        ),
        pixel=at,
        position=position,
        layer_name=name,
        layer=block,
        outcome=as_it_is,
        rows=rows,
        parts=tuple(parts),
        split_error=float(rest),
        no_attention=no_attention,
        gradients=found,
    )


def attend_from(
    model: nn.Module, image: Tensor, at: tuple[int, int], *, layer: str | None = None
) -> Tensor:
    """Only the rows of `explain`: what a pixel attends to in each round, ``(R, h, w)``.

    Args:
        model, at, layer: see `explain`.
        image: uint8 (3, H, W).

    Raises:
        InputError: see `explain`.
    """
    _, block = find_layer(model, layer)
    check_pixel(at, image)
    network: Any = model
    inputs = network.normalise(image[None].to(next(model.parameters()).device))
    with evaluating(model), torch.no_grad():
        _, maps = _run(model, inputs, block)
        position = grid_position(at, image.shape[1:], maps[0].shape[2:])
        return _rows(block, maps[0], position)


def _rows(block: AttentionBlock, x: Tensor, position: tuple[int, int]) -> Tensor:
    """What a position of the block's input (1, C, h, w) attends to in each round, (R, h, w)."""
    rounds = range(1, block.recurrence + 1)
    return torch.cat([attention_row(block, x, position, round_=r) for r in rounds]).cpu()


def uniform_weight(block: AttentionBlock, row: Tensor) -> float:
    """The weight of attending to all positions of a row (h, w) alike.

    It is 0 for "dot", whose weights are not normalised to a sum.
    """
    return 0.0 if block.similarity == "dot" else 1 / row.numel()


def reduce_image(
    image: Tensor, at: tuple[int, int], longest: int
) -> tuple[Tensor, tuple[int, int]]:
    """Reduce an image (3, H, W) whose longer side exceeds ``longest``, and move a pixel with it."""
    height, width = image.shape[1:]
    scale = longest / max(height, width)
    if scale >= 1:
        return image, at
    size = max(1, round(height * scale)), max(1, round(width * scale))
    smaller = torch.nn.functional.interpolate(
        image[None].float(), size, mode="bilinear", antialias=True
    )[0]
    return (smaller + 0.5).to(torch.uint8), grid_position(at, (height, width), size)[::-1]


def find_layer(model: nn.Module, name: str | None = None) -> tuple[str, AttentionBlock]:
    """The attention layer to explain, with its name; by default the last one.

    Raises:
        InputError: the network has none over maps, or none of that name.
    """
    found = {
        one: module
        for one, module in model.named_modules()
        if type(module) in (FrequencySelfAttention, SpatialSelfAttention)
    }
    if not found:
        raise InputError(
            f"{type(model).__name__} has no FrequencySelfAttention or SpatialSelfAttention; only "
            "the rows of those are known"
        )
    if name is None:
        name = list(found)[-1]
    if name not in found:
        raise InputError(f"layer {name!r}: not an attention layer; give one of {', '.join(found)}")
    block: Any = found[name]
    return name, block


def check_pixel(at: tuple[int, int], image: Tensor) -> None:
    """Raise `InputError` unless (x, y) is a pixel of the image (..., H, W)."""
    height, width = image.shape[-2:]
    if not (0 <= at[0] < width and 0 <= at[1] < height):
        raise InputError(
            f"pixel {at[0]},{at[1]} lies outside the image of {width} x {height} pixels; give x "
            f"from 0 to {width - 1} and y from 0 to {height - 1}"
        )


def grid_position(
    at: tuple[int, int], image: Sequence[int], grid: Sequence[int]
) -> tuple[int, int]:
    """The (row, column) of a grid whose cell holds a pixel, where the cells divide the image.

    Args:
        at: (x, y).
        image: (H, W).
        grid: (h, w).

    >>> grid_position((159, 8), (64, 160), (8, 20))
    (1, 19)
    """
    return at[1] * grid[0] // image[0], at[0] * grid[1] // image[1]


def _run(
    model: nn.Module,
    inputs: Tensor,
    block: nn.Module,
    *,
    block_input: Tensor | None = None,
    skip: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Logits (1, K, H, W), and the inputs of the block, which may be replaced or left out."""
    seen: list[Tensor] = []

    def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        seen.append(arguments[0].clone())  # the block may overwrite its input
        return None if block_input is None else (block_input.clone(),)

    def after(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return seen[-1] if skip else None

    handles = [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        return model(inputs), seen
    finally:
        for handle in handles:
            handle.remove()


def _outcome(
    logits: Tensor,
    at: tuple[int, int],
    target: int,
    classes: Sequence[str],
    before: Tensor | None = None,
) -> Outcome:
    here = logits[0, :, at[1], at[0]].float()  # (K,)
    mask = logits[0].argmax(0).to("cpu", torch.uint8)  # (H, W)
    return Outcome(
        logit=float(here[target]),
        probability=float(here.softmax(0)[target]),
        mask=mask,
        changed=0.0 if before is None else (mask != before).double().mean().item(),
        class_at_pixel=classes[int(here.argmax())],
    )


def _outcome_dict(one: Outcome, before: Outcome) -> dict[str, Any]:
    return {
        "class": one.class_at_pixel,
        "probability": one.probability,
        "logit": one.logit,
        "logit_change": one.logit - before.logit,
        "changed_pixels": one.changed,
    }


def _cuts(block: AttentionBlock, height: int, width: int) -> list[tuple[int, int]]:
    """Where to cut the frequencies: the constant; half, whole and double of the layer's band."""
    band: Band = getattr(block, "band", Band.of(8)).clip(height, width)
    h1, w1 = band.h1 or height, band.w1 or width
    ends = [
        (1, 1),
        (band.h0, band.w0),
        (max(band.h0, h1 // 2), max(band.w0, w1 // 2)),
        (h1, w1),
        (2 * h1, 2 * w1),
    ]
    cuts: list[tuple[int, int]] = []
    for rows, columns in ends:
        last = cuts[-1] if cuts else (0, 0)
        cut = min(max(rows, last[0], 1), height), min(max(columns, last[1], 1), width)
        if cut not in (last, (height, width)):
            cuts.append(cut)
    return cuts


def _part_names(cuts: Sequence[tuple[int, int]], height: int, width: int) -> list[str]:
    def name(cut: tuple[int, int]) -> str:
        return str(cut[0]) if cut[0] == cut[1] else f"{cut[0]}x{cut[1]}"

    names = []
    for low, high in pairwise([(0, 0), *cuts, (height, width)]):
        end = "" if high == (height, width) else name(high)
        names.append("constant" if high == (1, 1) else f"{name(low)}:{end}")
    return names


def _captum() -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            from captum.attr import IntegratedGradients
    except ImportError as error:
        raise InputError(
            "integrated gradients need captum: pip install 'fsanet[explain]', or leave them out "
            "(--no-gradients)"
        ) from error
    return IntegratedGradients


def _integrated_gradients(
    model: nn.Module, inputs: Tensor, at: tuple[int, int], target: int, steps: int, watch: Watch
) -> Gradients:
    def logit(images: Tensor) -> Tensor:
        return model(images)[:, target, at[1], at[0]]

    def watched(images: Tensor) -> Tensor:
        for _ in images:
            step("")
        return logit(images)

    baseline = torch.zeros_like(inputs)  # the mean colour
    with torch.no_grad():
        difference = float(logit(inputs) - logit(baseline))
    step = watch("integrated gradients", steps)
    with warnings.catch_warnings(action="ignore"):
        found = _captum()(watched).attribute(
            inputs, baseline, n_steps=steps, internal_batch_size=2, method="gausslegendre"
        )
    found = found.detach()[0].double()  # (3, H, W)
    return Gradients(found.sum(0).cpu(), float(found.sum()), difference, steps)
