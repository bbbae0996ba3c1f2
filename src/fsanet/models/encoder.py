"""Any timm network as a dilated feature extractor."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import timm
from safetensors import SafetensorError
from torch import nn

from fsanet.errors import InputError

__all__ = ["build_encoder"]


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
    """A timm network that returns its last two stages of features.

    Args:
        name: timm model name.
        output_stride: 8 or 16; the stride of the last features in image pixels.
        in_channels: channels of the images.
        pretrained: load timm's own weights (downloads them).
        weights: a local ``.safetensors`` (or ``.pth``, read with ``weights_only=True``) file of
            that timm model's weights; the classifier in it is set aside.
        options: further arguments of the network, passed to ``timm.create_model``.
        ceil_pool: the stem's max-pooling rounds sizes up, as in CCNet (ResNets only). It matters
            where the map before it is of even size.
        contract_dilation: the first block of a dilated stage has the dilation of the stage
            before, as in timm and MMSegmentation; False gives it that of its own stage, as in
            CCNet (ResNets only).

    Returns:
        A module ``(B, in_channels, H, W) -> [features of the last stage but one, of the last]``
        with timm's ``feature_info``.

    Raises:
        InputError: unknown name, no support of the output stride, missing or unfit weights.
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
    try:
        with _missing_keys() as missing:
            encoder = timm.create_model(
                name, pretrained=pretrained or weights is not None, **arguments
            )
    except (NotImplementedError, AssertionError, TypeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            raise _unbuildable(name, weights, error) from error
        if isinstance(error, TypeError) and "output_stride" not in str(error):
            raise _unbuildable(name, weights, error) from error
        raise InputError(
            f"encoder {name!r} has no output_stride={output_stride} with features_only in timm; "
            "use one that has, such as resnet*, convnext*, mobilenetv2*, mobilenetv3*, "
            "efficientnet*, regnet*"
        ) from error
    except (SafetensorError, OSError) as error:
        if weights is None:  # the hub was asked
            raise InputError(
                f"encoder {name!r}: its weights cannot be downloaded "
                f"({' '.join(str(error).split())[:200]}); without a network give pretrained=False, "
                "and encoder_weights with a local file if there is one"
            ) from error
        raise _unbuildable(name, weights, error) from error
    if missing:
        raise InputError(
            f"encoder {name!r} with weights {weights}: the file lacks {len(missing)} of its "
            f"weights, such as {missing[0]}; give a file of this very timm model"
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


def _round_up(name: str, encoder: nn.Module) -> None:
    pool = getattr(encoder, "maxpool", None)
    if not isinstance(pool, nn.MaxPool2d):
        raise InputError(f"encoder {name!r} has no max-pooling in its stem: leave ceil_pool out")
    pool.ceil_mode = True


def _dilate_first_blocks(name: str, encoder: nn.Module, output_stride: int) -> None:
    dilations = {8: {"layer3": 2, "layer4": 4}, 16: {"layer4": 2}, 32: {}}[output_stride]
    for stage, dilation in dilations.items():
        blocks = getattr(encoder, stage, None)
        if not isinstance(blocks, nn.Sequential):
            raise InputError(f"encoder {name!r} is no ResNet: leave contract_dilation out")
        for conv in (getattr(blocks[0], "conv1", None), getattr(blocks[0], "conv2", None)):
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)


@contextlib.contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """Collect what timm only logs: weights that a file did not have, and so were left random."""
    missing: list[str] = []

    def read(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith("Missing keys ("):
            names = text[len("Missing keys (") :].split(")")[0].split(", ")
            missing.extend(n for n in names if not n.endswith("num_batches_tracked"))
        # keys of the classifier are not needed, so unexpected; nobody can act on that
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


def _unbuildable(name: str, weights: str | Path | None, error: Exception) -> InputError:
    what = f" with weights {weights}" if weights is not None else ""
    reason = " ".join(str(error).split())[:300]
    return InputError(f"encoder {name!r}{what} cannot be built: {reason}")
