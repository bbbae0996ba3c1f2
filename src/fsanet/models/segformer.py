"""SegFormer with frequency self-attention in its decode head.

Sources: SegFormer (arXiv 2105.15203), sections 3.1, 3.2 and table 6; FsaNet (arXiv 2211.15595).
Encoder and head are those of `transformers`.

Legend: B batch, D decoder channels, H x W image, h x w feature grid (H/4 x W/4).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

from torch import Tensor, nn

from fsanet.attention import (
    AttentionKind,
    FrequencySelfAttention,
    SpatialSelfAttention,
    make_attention,
)
from fsanet.attention.block import Block
from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.errors import InputError
from fsanet.models.saving import SegmentationNetwork, check_source

if TYPE_CHECKING:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

__all__ = ["SegformerFsa", "Variant"]

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
            network = _build(variant, options)
        else:
            network, names = _load(pretrained, variant, options)
            classes = names if classes is None else classes
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
            both = nn.Sequential(OrderedDict(activation=relu, attention=layer))
            self.decode_head.add_module("activation", both)
        self.record_config(network="SegformerFsa", k=k, pretrained=None)

    @property
    def encoder(self) -> nn.Module:
        """The part that training treats as the encoder."""
        return self.segformer

    @property
    def attention(self) -> FrequencySelfAttention | SpatialSelfAttention | None:
        """The attention block of the decode head."""
        return getattr(self.decode_head.activation, "attention", None)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, in_channels, H, W)`` to logits ``(B, num_classes, H, W)``.

        Raises:
            InputError: images too small for the key reduction of the first stage.
        """
        height, width = images.shape[-2:]
        if height < _SMALLEST or width < _SMALLEST:
            raise InputError(
                f"images of {height} x {width} pixels are too small for SegFormer: "
                f"give at least {_SMALLEST} x {_SMALLEST}"
            )
        features = self.segformer(images, output_hidden_states=True).hidden_states
        return self.upsample(self.decode_head(features), images)  # from (B, num_classes, h, w)

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, None]:
        """Return the logits and None, because SegFormer has no auxiliary head."""
        return self(images), None

    @classmethod
    def from_transformers(cls, source: str, **options: Any) -> Self:
        """Load a plain SegFormer from a folder or the hub, with its size, classes and their names.

        Args:
            source: folder written by `transformers`' ``save_pretrained``, or a hub id.
            **options: constructor arguments; ``attention`` is None by default.

        Raises:
            InputError: there is no SegFormer of a published size.
        """
        config = _read_config(source)
        variant = _variant(config)
        if variant is None:
            raise InputError(
                f"{source}: stages of {tuple(config.hidden_sizes)} channels and "
                f"{tuple(config.depths)} blocks are no published size (b0 to b5)"
            )
        found = {
            "variant": variant,
            "num_classes": config.num_labels,
            "in_channels": config.num_channels,
            "attention": None,
        }
        return cls(pretrained=source, **{**found, **options})


# --- SegFormer of transformers ----------------------------------------------------------


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "SegFormer needs transformers, which is not installed; install fsanet[segformer]"
        ) from error
    return transformers


def _build(variant: Variant, options: dict[str, Any]) -> SegformerForSemanticSegmentation:
    """Build a SegFormer with random weights; ``options`` go to its config."""
    transformers = _transformers()
    size = _SIZES[variant]
    config = transformers.SegformerConfig(
        hidden_sizes=list(size.channels),
        depths=list(size.blocks),
        decoder_hidden_size=size.decoder,
        **options,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def _load(
    source: str, variant: Variant, options: dict[str, Any]
) -> tuple[SegformerForSemanticSegmentation, tuple[str, ...] | None]:
    """Load a SegFormer and, if the number of classes is unchanged, its class names.

    The decode head may be missing, as in an image classifier, and the classifier may have another
    number of classes.

    Raises:
        InputError: any other weight is missing, unexpected or of another shape.
    """
    transformers, config = _transformers(), _read_config(source)
    found = _variant(config)
    if found != variant:
        raise InputError(
            f"{source}: holds a SegFormer {found or 'of no published size'}, not {variant}"
            + (f"; give variant={found!r}" if found else "")
        )
    names = None
    if options["num_labels"] == config.num_labels:
        by_id = cast(dict[int, str], config.id2label)
        names = tuple(by_id[index] for index in sorted(by_id))
    for name, value in options.items():
        if name != "num_labels" or names is None:  # setting num_labels clears the names
            setattr(config, name, value)
    try:
        with _silent(transformers):  # about missing weights, which are checked here
            network, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
                source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error
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
            f"another shape, such as {min(wrong)})"
        )
    return network, names


def _read_config(source: str) -> SegformerConfig:
    """Read the config of a SegFormer in a folder or on the hub.

    Raises:
        InputError: there is none, or it belongs to another network.
    """
    transformers = _transformers()
    check_source(source)
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error
    if config.model_type != "segformer":
        raise InputError(f"{source}: holds a network of type {config.model_type}, not segformer")
    return config


def _variant(config: SegformerConfig) -> Variant | None:
    """The published size that matches a config, if any."""
    found = (tuple(config.hidden_sizes), tuple(config.depths), config.decoder_hidden_size)
    return next((name for name, size in _SIZES.items() if size == found), None)


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
