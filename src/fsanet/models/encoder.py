"""Any timm network as a dilated feature extractor."""

from __future__ import annotations

import contextlib
import difflib
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
from safetensors import SafetensorError
from torch import nn

from fsanet.errors import InputError

__all__ = ["build_encoder", "default_normalisation"]

# What timm lets through, depending on its version, for a file that is not a state_dict.
_DAMAGED = (pickle.UnpicklingError, EOFError, AttributeError)


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
        weights: local file of that model's weights, ``.safetensors`` or ``.pth`` (read with
            ``weights_only=True``); a classifier in it is ignored.
        options: further arguments of ``timm.create_model``.
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
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 3, 0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; see timm.list_models()"
        raise InputError(f"encoder {name!r} is not a timm model{hint}")
    arguments = dict(
        features_only=True, in_chans=in_channels, output_stride=output_stride, **(options or {})
    )
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise InputError(f"encoder_weights: no file {path}; give the path of the weights")
        arguments["pretrained_cfg_overlay"] = {"file": str(path)}
        pretrained = True
    try:
        with _missing_keys() as missing:
            encoder = timm.create_model(name, pretrained=pretrained, **arguments)
    except (NotImplementedError, AssertionError) as error:
        raise _undilated(name, output_stride) from error
    except TypeError as error:  # an argument that the network does not have
        if "output_stride" in str(error):
            raise _undilated(name, output_stride) from error
        raise _unbuildable(name, weights, error) from error
    except (SafetensorError, OSError, RuntimeError, *_DAMAGED) as error:
        if weights is None and isinstance(error, SafetensorError | OSError):
            raise InputError(
                f"encoder {name!r}: its weights cannot be downloaded "
                f"({' '.join(str(error).split())[:200]}); without a network connection give "
                "pretrained=False, and encoder_weights with a local file if there is one"
            ) from error
        raise _unbuildable(name, weights, error) from error
    if missing:
        raise InputError(
            f"encoder {name!r} with weights {weights}: the file lacks {len(missing)} of its "
            f"weights, such as {missing[0]}; give a file of this timm model"
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
        return not text.startswith(("Missing keys (", "Unexpected keys ("))

    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.addFilter(read)
    logger.setLevel(logging.INFO)
    try:
        yield missing
    finally:
        logger.removeFilter(read)
        logger.setLevel(level)


def _undilated(name: str, output_stride: int) -> InputError:
    return InputError(
        f"encoder {name!r} has no output_stride={output_stride} with features_only in timm; "
        "use one that has, such as resnet*, convnext*, mobilenetv2*, mobilenetv3*, efficientnet*, "
        "regnet*"
    )


def _unbuildable(name: str, weights: str | Path | None, error: Exception) -> InputError:
    what = f" with weights {weights}" if weights is not None else ""
    reason = " ".join(str(error).split())[:300]
    return InputError(f"encoder {name!r}{what} cannot be built: {reason}")
