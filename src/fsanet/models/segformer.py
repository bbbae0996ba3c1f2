"""SegFormer with frequency self-attention in its decode head.

Sources: SegFormer (arXiv 2105.15203), sections 3.1, 3.2 and table 6; FsaNet (arXiv 2211.15595).
The encoder and the head are those of `transformers`.

Legend: B batch, D decoder channels, H x W image, h x w feature grid (H/4 x W/4).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from torch import Tensor, nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.block import Block
from fsanet.attention.similarity import Similarity
from fsanet.dct import BandLike
from fsanet.errors import InputError
from fsanet.models.heads import Attention
from fsanet.models.network import SegmentationNetwork, band_to_json, check_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import SegformerConfig, SegformerForSemanticSegmentation

__all__ = ["SegformerFsa", "Variant"]

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5"]


@dataclass(frozen=True)
class _Size:
    """Channels and blocks of the four stages, and channels of the decoder."""

    channels: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    decoder: int


# arXiv 2105.15203, table 6. Heads 1, 2, 5, 8 and reductions 8, 4, 2, 1 are the same for all. The
# table's expansion of 8 in the first stages is 4 in the published weights and parameter counts.
_SIZES: dict[str, _Size] = {
    "b0": _Size((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": _Size((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": _Size((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": _Size((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": _Size((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": _Size((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
_SMALLEST = 29  # image side that still has 8 rows, the reduction of the first stage, at stride 4
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the published weights (ImageNet)


class SegformerFsa(SegmentationNetwork):
    """SegFormer, with an attention block between the fusion of its features and its classifier.

    The block starts as the identity, so that a trained SegFormer gives the same logits until it is
    trained further. All other parameters have the names that `transformers` gives them.

    Args:
        variant: size, "b0" to "b5".
        num_classes: classes, one logit map each.
        attention: "frequency", "spatial" (regular attention) or None (plain SegFormer).
        k: band of frequencies: int, pair, ranges or None for all (frequency attention only).
        similarity: "dot", "linear_softmax", "linear" or "softmax".
        recurrence: rounds of attention with the same weights.
        block: shape of the attention block, "nonlocal" or "ccnet".
        qkv_bias: biases on queries, keys and values.
        zero_init: attention starts as the identity.
        dropout: before the classifier.
        drop_path: stochastic depth, this in the last block of the encoder, less before it.
        in_channels: channels of the images.
        pretrained: start from these weights in the format of `transformers`: a local folder, or a
            hub id (a download). A folder of an encoder alone (image classification) starts the
            decode head anew; another number of classes starts the classifier anew.
        classes: class names; by default those of ``pretrained``, else "0", "1", ...
        palette: one (r, g, b) of 0..255 per class; by default spread over the hues.
        mean, std: per channel, for values in 0..1; by default ImageNet's.

    Raises:
        InputError: `transformers` is not installed; options or weights that do not fit.

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
        attention: Attention | None = "frequency",
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
        size = _SIZES[variant]
        changed = {
            "num_channels": in_channels,
            "num_labels": max(num_classes, 1),
            "classifier_dropout_prob": dropout,
            "drop_path_rate": drop_path,
        }
        if pretrained is None:
            plain = _build(size, changed)
        else:
            saved = _read_config(pretrained)
            found = _variant_of(saved)
            if found != variant:
                raise InputError(
                    f"{pretrained}: holds a SegFormer {found or 'of no published size'}, not "
                    f"{variant}" + (f"; give variant={found!r}" if found else "")
                )
            if classes is None and saved.num_labels == num_classes:
                classes = _names(saved)
            plain = _load(pretrained, saved, changed)
        known = (_MEAN, _STD) if in_channels == 3 else ((0.5,) * in_channels,) * 2
        self.describe(
            num_classes=num_classes,
            classes=classes,
            palette=palette,
            mean=known[0] if mean is None else mean,
            std=known[1] if std is None else std,
            in_channels=in_channels,
        )
        self.segformer = plain.segformer
        self.decode_head = plain.decode_head
        shared: dict[str, Any] = {
            "similarity": similarity,
            "recurrence": recurrence,
            "block": block,
            "qkv_bias": qkv_bias,
            "zero_init": zero_init,
        }
        layer: nn.Module | None = None
        if attention == "frequency":
            layer = FrequencySelfAttention(size.decoder, k=k, **shared)
        elif attention == "spatial":
            layer = SpatialSelfAttention(size.decoder, **shared)
        elif attention is not None:
            raise InputError(f'attention={attention!r}: use "frequency", "spatial" or None')
        if layer is not None:  # fused features (B, D, h, w) pass here, dropout and classifier next
            relu = self.decode_head.activation
            both = nn.Sequential(OrderedDict(activation=relu, attention=layer))
            self.decode_head.add_module("activation", both)
        # What a reload needs: resolved values in, and the source of the first weights out.
        self._hub_mixin_config = {
            **cast(dict, self._hub_mixin_config or {}),
            **self.description(),
            "network": "SegformerFsa",
            "k": band_to_json(k),
            "pretrained": None,
        }

    @property
    def encoder(self) -> nn.Module:
        """The part that training calls the encoder."""
        return self.segformer

    @property
    def attention(self) -> FrequencySelfAttention | SpatialSelfAttention | None:
        """The attention block of the decode head."""
        return getattr(self.decode_head.activation, "attention", None)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, in_channels, H, W)`` to logits ``(B, num_classes, H, W)``.

        Raises:
            InputError: images too small for the reduction of keys in the first stage.
        """
        height, width = images.shape[-2:]
        if height < _SMALLEST or width < _SMALLEST:
            raise InputError(
                f"images of {height} x {width} pixels are too small for SegFormer: "
                f"give at least {_SMALLEST} x {_SMALLEST}"
            )
        features = self.segformer(images, output_hidden_states=True).hidden_states
        return self.upsample(self.decode_head(features), images)  # (B, num_classes, h, w) inside

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, None]:
        """Logits as of :meth:`forward`, and None: SegFormer has no auxiliary head."""
        return self(images), None

    @classmethod
    def from_transformers(cls, source: str, **options: Any) -> Self:
        """The plain SegFormer in a folder or on the hub, with its size, classes and their names.

        Args:
            source: folder written by `transformers`' ``save_pretrained``, or a hub id.
            **options: constructor arguments; ``attention`` is None unless given.

        Raises:
            InputError: no SegFormer of a published size there.
        """
        config = _read_config(source)
        variant = _variant_of(config)
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


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "SegFormer needs transformers, which is not installed; install fsanet[segformer]"
        ) from error
    return transformers


def _build(size: _Size, changed: dict[str, Any]) -> SegformerForSemanticSegmentation:
    """With random weights."""
    transformers = _transformers()
    config = transformers.SegformerConfig(
        hidden_sizes=list(size.channels),
        depths=list(size.blocks),
        decoder_hidden_size=size.decoder,
        **changed,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def _read_config(source: str) -> SegformerConfig:
    transformers = _transformers()
    check_source(source)
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error
    if config.model_type != "segformer":
        raise InputError(f"{source}: holds a network of type {config.model_type}, not segformer")
    return config


def _variant_of(config: SegformerConfig) -> Variant | None:
    for name, size in _SIZES.items():
        if (
            tuple(config.hidden_sizes) == size.channels
            and tuple(config.depths) == size.blocks
            and config.decoder_hidden_size == size.decoder
        ):
            return name  # type: ignore[return-value]
    return None


def _names(config: SegformerConfig) -> tuple[str, ...]:
    names = cast(dict[int, str], config.id2label)
    return tuple(names[index] for index in sorted(names))


def _load(
    source: str, config: SegformerConfig, changed: dict[str, Any]
) -> SegformerForSemanticSegmentation:
    """With the weights of ``source``; a part may start anew only where the caller asked for it."""
    transformers = _transformers()
    for name, value in changed.items():
        if name != "num_labels" or value != config.num_labels:  # setting it clears the names
            setattr(config, name, value)
    try:
        with _silent(transformers):  # about new weights, which are checked here
            plain, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
                source,
                config=config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error
    mismatched = {entry[0] for entry in report["mismatched_keys"]}
    missing = set(report["missing_keys"]) - mismatched
    encoder_only = all(name.startswith("decode_head.") for name in missing) and missing >= {
        name for name in _parameters(plain) if name.startswith("decode_head.")
    }
    wrong = {n for n in mismatched if not n.startswith("decode_head.classifier.")}
    if missing and not encoder_only:
        wrong |= missing
    if not encoder_only:
        wrong |= set(report["unexpected_keys"])
    else:
        wrong |= {n for n in report["unexpected_keys"] if not n.startswith("classifier.")}
    if wrong:
        raise InputError(
            f"{source}: weights of another architecture ({len(wrong)} missing, unexpected or of "
            f"another shape, such as {min(wrong)})"
        )
    return plain


def _parameters(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
