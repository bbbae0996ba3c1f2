"""Any timm network as a dilated feature extractor."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn

from fsanet.errors import InputError, one_line, printable
from fsanet.files import read_weights
from fsanet.imports import import_timm
from fsanet.models.meta import without_values

__all__ = ["build_encoder", "default_normalisation"]

timm = import_timm()


def build_encoder(
    name: str,
    *,
    output_stride: int = 8,
    in_channels: int = 3,
    pretrained: bool = False,
    weights: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    ceil_pool: bool = False,
    contract_dilation: bool = True,
) -> nn.Module:
    """Build a timm network that returns the features of all its stages.

    Args:
        name: timm model name.
        output_stride: stride of the last features in image pixels: 8, 16, or 32 (no dilation).
        in_channels: channels of the images.
        pretrained: download timm's own weights.
        weights: local file of that model's weights, see :func:`fsanet.files.read_checkpoint`; a
            classifier in it is ignored.
        options: further arguments of the timm model's class: numbers, texts, bools, lists of them.
        ceil_pool: round sizes up in the stem's max-pooling, as CCNet does (ResNets only). This
            matters where the size before pooling is even.
        contract_dilation: give the first block of a dilated stage the dilation of the previous
            stage, as timm and MMSegmentation do; False gives it the dilation of its own stage, as
            CCNet does (ResNets only).

    Returns:
        A module ``(B, in_channels, H, W) -> [features, finest first]`` with timm's
        ``feature_info``.

    Raises:
        InputError: unknown name, unsupported output stride, missing or mismatched weights.
    """
    if output_stride not in (8, 16, 32):
        raise InputError(f"output_stride={output_stride}: use 8 or 16")
    if not isinstance(name, str) or not timm.is_model(name):
        near = difflib.get_close_matches(str(name).split(".")[0], timm.list_models(), 3, 0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; see timm.list_models()"
        raise InputError(f"encoder {name!r} is not a timm model{hint}")
    arguments: dict[str, Any] = {"pretrained": pretrained}
    if options:
        _check_options(name, options)
    if weights is not None:
        state = read_weights(weights)
        arguments = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    arguments |= {"features_only": True, "in_chans": in_channels, "output_stride": output_stride}
    what = f"encoder {name!r}" if weights is None else f"encoder {name!r} with weights {weights}"
    try:
        with _missing_keys() as missing:
            encoder = timm.create_model(name, **arguments, **(options or {}))
    except InputError:
        raise
    except Exception as error:  # timm and its networks report options in many ways
        reason = one_line(error)
        undilated = isinstance(error, NotImplementedError | AssertionError) and not options
        if undilated or (isinstance(error, TypeError) and "output_stride" in reason):
            raise InputError(
                f"encoder {name!r} has no output_stride={output_stride} with features_only in "
                "timm; use one that has, such as resnet*, convnext*, mobilenetv2*, mobilenetv3*, "
                "efficientnet*, regnet*"
            ) from error
        if pretrained and isinstance(error, OSError | SafetensorError):
            raise InputError(
                f"{what}: its weights cannot be downloaded ({reason}); without a network "
                "connection give a local file as encoder_weights (Mask R-CNN: backbone_weights), "
                "or pretrained=False to start from random weights"
            ) from error
        given = f" with encoder_options={str(dict(options))[:300]}" if options else ""
        raise InputError(f"{what} cannot be built{given}: {reason}") from error
    if empty := [name for name, weight in encoder.named_parameters() if not weight.numel()]:
        raise InputError(
            f"{what}: no channels are left for {empty[0]}; give larger values than "
            f"encoder_options={str(dict(options or {}))[:300]}"
        )
    if missing:
        raise InputError(
            f"{what}: the file lacks {len(missing)} of its weights, such as {missing[0]}; give a "
            "file of this timm model"
        )
    reduction = cast(Any, encoder).feature_info.reduction()
    if reduction[-1] != output_stride:
        raise InputError(
            f"encoder {name!r} ignores output_stride={output_stride}: its last features are at "
            f"stride {reduction[-1]}; use another encoder or output_stride={reduction[-1]}"
        )
    if ceil_pool:
        _round_up(name, encoder)
    if not contract_dilation:
        _dilate_first_blocks(name, encoder, output_stride)
    return encoder


def default_normalisation(name: str, in_channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std per channel that a timm model's weights expect, for images in 0..1."""
    if in_channels != 3:
        return (0.5,) * in_channels, (0.5,) * in_channels
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return known.mean, known.std


def _round_up(name: str, encoder: nn.Module) -> None:
    pool = getattr(encoder, "maxpool", None)
    if not isinstance(pool, nn.MaxPool2d):
        raise InputError(f"encoder {name!r} has no max-pooling in its stem: omit ceil_pool")
    pool.ceil_mode = True


def _dilate_first_blocks(name: str, encoder: nn.Module, output_stride: int) -> None:
    dilations = {8: {"layer3": 2, "layer4": 4}, 16: {"layer4": 2}, 32: {}}[output_stride]
    for stage, dilation in dilations.items():
        blocks = getattr(encoder, stage, None)
        if not isinstance(blocks, nn.Sequential):
            raise InputError(f"encoder {name!r} is not a ResNet: omit contract_dilation")
        for conv in (getattr(blocks[0], "conv1", None), getattr(blocks[0], "conv2", None)):
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)


@contextlib.contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """Collect the names of weights missing from a file, which timm only logs."""
    missing: list[str] = []

    def read(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith("Missing keys ("):
            names = text[len("Missing keys (") :].split(")")[0].split(", ")
            missing.extend(n for n in names if not n.endswith("num_batches_tracked"))
        # The unexpected keys are those of the classifier, which is not needed.
        expected = text.startswith(("Missing keys (", "Unexpected keys ("))
        return record.levelno > logging.INFO and not expected

    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.addFilter(read)
    logger.setLevel(logging.INFO)
    try:
        yield missing
    finally:
        logger.removeFilter(read)
        logger.setLevel(level)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Accept plain values for arguments of the class of a timm model, and no others.

    The functions around that class take paths, URLs and hub ids, which options may not name.
    """
    with without_values():
        found = type(timm.create_model(name))
    allowed = set(inspect.signature(found.__init__).parameters)
    allowed -= {"self", "in_chans", "output_stride", "device", "dtype"}
    for option, value in options.items():
        if option not in allowed:
            near = difflib.get_close_matches(option, allowed, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"see timm's {found.__name__}"
            raise InputError(f"encoder {name!r} has no option '{printable(option)}'; {hint}")
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(one, int | float | str | None) for one in values):
            raise InputError(
                f"encoder {name!r}: option {option!r} is no number, text, bool or list of them"
            )
