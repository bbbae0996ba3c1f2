"""SegFormer of `transformers`: its published sizes, built anew or with weights from a folder.

Source: SegFormer (arXiv 2105.15203), table 6.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn

from fsanet.errors import InputError
from fsanet.models.saving import check_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import SegformerConfig, SegformerForSemanticSegmentation

__all__ = ["SIZES", "Size", "Variant", "build", "class_names", "load", "read_config", "variant_of"]

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5"]


@dataclass(frozen=True)
class Size:
    """Channels and blocks of the four stages, and channels of the decoder."""

    channels: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    decoder: int


# arXiv 2105.15203, table 6. Heads 1, 2, 5, 8 and reductions 8, 4, 2, 1 are the same for all. The
# table's expansion of 8 in the first stages is 4 in the published weights and parameter counts.
SIZES: dict[str, Size] = {
    "b0": Size((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Size((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Size((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Size((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Size((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Size((64, 128, 320, 512), (3, 6, 40, 3), 768),
}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "SegFormer needs transformers, which is not installed; install fsanet[segformer]"
        ) from error
    return transformers


def build(size: Size, changed: dict[str, Any]) -> SegformerForSemanticSegmentation:
    """A SegFormer with random weights; ``changed`` are further arguments of its config.

    Raises:
        InputError: `transformers` is not installed.
    """
    transformers = _transformers()
    config = transformers.SegformerConfig(
        hidden_sizes=list(size.channels),
        depths=list(size.blocks),
        decoder_hidden_size=size.decoder,
        **changed,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def read_config(source: str) -> SegformerConfig:
    """The config of the SegFormer in a folder or on the hub.

    Raises:
        InputError: there is none, or it is of another network.
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


def variant_of(config: SegformerConfig) -> Variant | None:
    """The published size that a config has, if any."""
    for name, size in SIZES.items():
        if (
            tuple(config.hidden_sizes) == size.channels
            and tuple(config.depths) == size.blocks
            and config.decoder_hidden_size == size.decoder
        ):
            return name  # type: ignore[return-value]
    return None


def class_names(config: SegformerConfig) -> tuple[str, ...]:
    """Names in the order of the logits."""
    names = cast(dict[int, str], config.id2label)
    return tuple(names[index] for index in sorted(names))


def load(
    source: str, config: SegformerConfig, changed: dict[str, Any]
) -> SegformerForSemanticSegmentation:
    """A SegFormer with the weights of ``source``.

    The decode head starts anew where the file is of an encoder alone, the classifier where
    ``changed`` asks for another number of classes; nothing else may.

    Raises:
        InputError: weights that cannot be read, or of another architecture.
    """
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
