"""SegFormer with frequency self-attention in its decode head.

Sources: SegFormer (arXiv 2105.15203), sections 3.1, 3.2 and table 6; FsaNet (arXiv 2211.15595).
Encoder and head are those of `transformers`.

Legend: B batch, D decoder channels, H x W image, h x w feature grid (H/4 x W/4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fsanet.attention import (
    AttentionKind,
    FrequencySelfAttention,
    SpatialSelfAttention,
    attend,
    make_attention,
)
from fsanet.attention.block import Block
from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.errors import InputError, one_line, printable
from fsanet.files import read_weights
from fsanet.models.saved_folder import check_values, find_file, find_folder, read_object
from fsanet.models.saving import SegmentationNetwork, check_finite

if TYPE_CHECKING:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

__all__ = ["SegformerFsa", "Variant", "load_plain"]

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5"]


class Size(NamedTuple):
    """Channels and blocks of the four stages, and channels of the decoder."""

    channels: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    decoder: int


# arXiv 2105.15203, table 6. All sizes have 1, 2, 5, 8 heads and reductions of 8, 4, 2, 1. The table
# gives an expansion of 8 in the first stages; the published weights and parameter counts have 4.
_SIZES: dict[Variant, Size] = {
    "b0": Size((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Size((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Size((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Size((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Size((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Size((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
_SMALLEST = 29  # image side that still has 8 rows, the reduction of the first stage, at stride 4
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as in the published weights


class _ReluAndAttention(nn.Module):
    """A ReLU, and attention to its result, which nothing else reads."""

    def __init__(self, activation: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return attend(self.attention, self.activation(x))  # (B, D, h, w)


class SegformerFsa(SegmentationNetwork):
    """SegFormer with an attention block between the fusion of its features and its classifier.

    The block starts as the identity, so a trained SegFormer keeps its logits until it is trained
    further. All other parameters have their names in `transformers`.

    Args:
        variant: size, "b0" to "b5".
        num_classes: number of classes, one logit map each.
        attention: "frequency", "spatial" (regular attention) or None (plain SegFormer).
        k: band of frequencies: int, pair, ranges or None for all (frequency attention only).
        similarity: "dot", "linear_softmax", "linear" or "softmax".
        recurrence: rounds of attention with the same weights.
        block: shape of the attention block, "nonlocal" or "ccnet".
        qkv_bias: use biases on queries, keys and values.
        zero_init: start the attention block as the identity.
        dropout: dropout before the classifier.
        drop_path: stochastic depth rate of the encoder's last block; it grows linearly up to it.
        in_channels: channels of the images.
        pretrained: start from these weights in the format of `transformers`: a local folder, or a
            hub id (a download). If they belong to an image classifier, the decode head starts from
            random weights; if they have another number of classes, only the classifier does.
        classes: class names; by default those of ``pretrained``, else "0", "1", ...
        palette: one (r, g, b) in 0..255 per class; by default colours spread over the hues.
        mean, std: per channel, for images in 0..1; by default ImageNet's.

    Raises:
        InputError: `transformers` is not installed; invalid options or mismatched weights.

    Source: arXiv 2105.15203 (network), arXiv 2211.15595, section V (the module in it).

    >>> import pytest; _ = pytest.importorskip("transformers")
    >>> import torch
    >>> model = SegformerFsa(variant="b0", num_classes=5).eval()
    >>> model(torch.zeros(1, 3, 64, 96)).shape
    torch.Size([1, 5, 64, 96])
    """

    network = "SegformerFsa"
    initial_weights: ClassVar = {"pretrained": None}
    encoder_prefixes = ("segformer.",)

    def __init__(
        self,
        *,
        num_classes: int,
        variant: Variant = "b0",
        attention: AttentionKind | None = "frequency",
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        block: Block = "nonlocal",
        qkv_bias: bool = False,
        zero_init: bool = True,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        in_channels: int = 3,
        pretrained: str | None = None,
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if variant not in _SIZES:
            raise InputError(f"variant={variant!r}: use one of {', '.join(_SIZES)}")
        if not (0 <= dropout < 1 and 0 <= drop_path < 1):
            raise InputError(f"dropout={dropout}, drop_path={drop_path}: give 0 <= p < 1")
        if in_channels < 1:
            raise InputError(f"in_channels={in_channels}: give at least 1")
        options = {
            "num_channels": in_channels,
            "num_labels": max(num_classes, 1),
            "classifier_dropout_prob": dropout,
            "drop_path_rate": drop_path,
        }
        if pretrained is None:
            network = _transformers().SegformerForSemanticSegmentation(_config(variant, options))
        else:
            found = _read_config(pretrained)
            network = _load(found, variant, options)
            if classes is None and len(found.classes) == num_classes:
                classes = found.classes
        known = (_MEAN, _STD) if in_channels == 3 else ((0.5,) * in_channels,) * 2
        self.describe(
            num_classes=num_classes,
            classes=classes,
            palette=palette,
            mean=known[0] if mean is None else mean,
            std=known[1] if std is None else std,
            in_channels=in_channels,
        )
        self.segformer = network.segformer
        self.decode_head = network.decode_head
        if attention is not None:  # between the fused features (B, D, h, w) and the classifier
            layer = make_attention(
                attention,
                _SIZES[variant].decoder,
                k=k,
                similarity=similarity,
                recurrence=recurrence,
                block=block,
                qkv_bias=qkv_bias,
                zero_init=zero_init,
            )
            relu = self.decode_head.activation
            both = _ReluAndAttention(relu, layer)
            self.decode_head.add_module("activation", both)
        self.record_config(k=k)

    @property
    def encoder(self) -> nn.Module:
        """The part that training treats as the encoder."""
        return self.segformer

    @property
    def attention(self) -> FrequencySelfAttention | SpatialSelfAttention | None:
        """The attention block of the decode head."""
        return getattr(self.decode_head.activation, "attention", None)

    def encoder_features(self, images: Tensor) -> list[Tensor]:
        """The features of the four stages of the encoder for normalised images, finest first.

        Raises:
            InputError: images too small for the key reduction of the first stage.
        """
        height, width = images.shape[-2:]
        if height < _SMALLEST or width < _SMALLEST:
            raise InputError(
                f"images of {height} x {width} pixels are too small for SegFormer: "
                f"give at least {_SMALLEST} x {_SMALLEST}"
            )
        return list(self.segformer(images, output_hidden_states=True).hidden_states)

    def head_logits(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.decode_head(features)
        return logits

    @classmethod
    def from_transformers(cls, source: str | Path, **options: Any) -> Self:
        """Load a plain SegFormer from a folder or the hub, with its size, classes and their names.

        Args:
            source: folder written by `transformers`' ``save_pretrained``, or a hub id.
            **options: constructor arguments; ``attention`` is None by default.

        Raises:
            InputError: there is no SegFormer of a published size.
        """
        found = _read_config(source)
        if found.variant is None:
            raise InputError(f"{source}: holds a SegFormer of no published size (b0 to b5)")
        known = {
            "variant": found.variant,
            "num_classes": len(found.classes),
            "in_channels": found.num_channels,
            "attention": None,
        }
        return cls(pretrained=str(found.folder), **{**known, **options})


# --- SegFormer of transformers ----------------------------------------------------------

# What all published sizes have in common, by its name in the config.json of transformers.
_SHARED = {
    "num_encoder_blocks": 4,
    "num_attention_heads": [1, 2, 5, 8],
    "sr_ratios": [8, 4, 2, 1],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "mlp_ratios": [4, 4, 4, 4],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "reshape_last_stage": True,
}


class Plain(NamedTuple):
    """What is read of a folder in the format of transformers; the rest of it is ignored.

    Attributes:
        folder: where it is.
        variant: its size; None if that is not a published one.
        num_channels: of the images.
        classes: class names.
    """

    folder: Path
    variant: Variant | None
    num_channels: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Labels:
    """The types of what is read besides the size."""

    num_channels: int = 3
    num_labels: int = 2
    id2label: dict[str, str] | None = None


def load_plain(source: str | Path) -> SegformerForSemanticSegmentation:
    """Load a SegFormer of a published size in the format of `transformers`.

    Raises:
        InputError: there is none.
    """
    found = _read_config(source)
    if found.variant is None:
        raise InputError(f"{source}: holds a SegFormer of no published size (b0 to b5)")
    options = {"num_channels": found.num_channels, "id2label": dict(enumerate(found.classes))}
    return _load(found, found.variant, options)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError("SegFormer needs transformers: pip install transformers") from error
    return transformers


def _config(variant: Variant, options: dict[str, Any]) -> SegformerConfig:
    return _transformers().SegformerConfig(**_named(_SIZES[variant]), **options)


def _load(
    found: Plain, variant: Variant, options: dict[str, Any]
) -> SegformerForSemanticSegmentation:
    """Load the weights of a folder into a SegFormer; ``options`` go to its config.

    The decode head may be missing, as in an image classifier, and the classifier may have another
    number of classes.

    Raises:
        InputError: any other weight is missing, unexpected or of another shape.
    """
    transformers, source = _transformers(), found.folder
    if found.variant != variant:
        raise InputError(
            f"{source}: holds a SegFormer {found.variant or 'of no published size'}, not {variant}"
            + (f"; give variant={found.variant!r}" if found.variant else "")
        )
    file = find_file(source, "model.safetensors") or find_file(source, "pytorch_model.bin")
    if file is None:
        raise InputError(f"{source}: no model.safetensors in it; give a folder with weights")
    state = read_weights(file)
    try:
        # transformers gets no folder to look into, only the weights, whose old names it knows.
        with _silent(transformers):  # about missing weights, which are checked here
            network, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
                None,
                config=_config(variant, options),
                state_dict=state,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{file}: {one_line(error)}") from error
    misshapen = {entry[0] for entry in report["mismatched_keys"]}
    missing = set(report["missing_keys"]) - misshapen
    unexpected = set(report["unexpected_keys"])
    head = {name for name, _ in network.named_parameters() if name.startswith("decode_head.")}
    if missing >= head and all(name.startswith("decode_head.") for name in missing):
        missing = set()
        unexpected = {name for name in unexpected if not name.startswith("classifier.")}
    misshapen = {name for name in misshapen if not name.startswith("decode_head.classifier.")}
    wrong = missing | unexpected | misshapen
    if wrong:
        raise InputError(
            f"{source}: weights of another architecture ({len(wrong)} missing, unexpected or of "
            f"another shape, such as {printable(min(wrong))})"
        )
    check_finite(network.state_dict(), file)
    return network


def _read_config(source: str | Path) -> Plain:
    """Read the config of a SegFormer in a folder or on the hub.

    Raises:
        InputError: there is none, or it belongs to another network.
    """
    folder = find_folder(source)
    file = find_file(folder, "config.json")
    if file is None:
        raise InputError(f"{folder}: no config.json in it; give a SegFormer of transformers")
    config = read_object(file)
    kind = config.get("model_type")
    if kind != "segformer":
        raise InputError(f"{source}: holds a network of type {printable(str(kind))}, not segformer")
    labels = {name: config[name] for name in _Labels.__annotations__ if name in config}
    check_values(labels, _Labels, file)
    read = _Labels(**labels)
    by_id = read.id2label or {str(i): f"LABEL_{i}" for i in range(read.num_labels)}
    ids = [str(i) for i in range(len(by_id))]
    if set(ids) != by_id.keys():
        raise InputError(f"{file}: id2label has other keys than 0 to {len(by_id) - 1}")
    size = [config.get(*item) for item in _named(_SIZES["b0"]).items()]
    variant = None
    if all(config.get(*item) == item[1] for item in _SHARED.items()):
        variant = next((v for v, s in _SIZES.items() if list(_named(s).values()) == size), None)
    return Plain(folder, variant, read.num_channels, tuple(by_id[i] for i in ids))


def _named(size: Size) -> dict[str, Any]:
    """A size by the names in the config.json of transformers."""
    return {
        "hidden_sizes": list(size.channels),
        "depths": list(size.blocks),
        "decoder_hidden_size": size.decoder,
    }


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
