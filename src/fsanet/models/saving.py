"""What every network shares: its classes and input normalisation, and how it is saved and loaded.

Legend: B batch, H x W image, h x w feature grid.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.module import register_module_parameter_registration_hook

from fsanet.attention.dct import BandLike, band_to_json
from fsanet.data.masks import class_palette
from fsanet.errors import InputError, check_range, one_line, printable
from fsanet.files import read_weights, write_text, write_whole
from fsanet.models.card import TrainingFacts, model_card
from fsanet.models.meta import NoRandomValues
from fsanet.models.saved_folder import check_values, find_file, find_folder, read_object

__all__ = [
    "MODEL_TYPE",
    "SavedNetwork",
    "SegmentationNetwork",
    "build_for",
    "check_finite",
    "check_normalisation",
    "check_state",
    "normalise",
    "take_weights",
]

#: What ``config.json`` calls these networks for transformers.
MODEL_TYPE = "fsanet"

_LARGER = "config.json describes a larger network than its weights belong to"
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class SavedNetwork(PyTorchModelHubMixin, library_name="fsanet"):
    """Mixin for networks saved as a folder with ``config.json`` and ``model.safetensors``.

    ``config.json`` holds the arguments of the constructor, and the ``model_type`` by which
    `fsanet.hf` makes transformers know the folder. ``README.md`` is a model card. A subclass calls
    `record_config` at the end of its constructor.
    """

    #: The class by which `fsanet.load_model` opens the folder.
    network: ClassVar[str]
    #: Arguments that say where training starts, with their values for no such weights. They are
    #: not saved, and not read from a saved folder.
    initial_weights: ClassVar[dict[str, Any]] = {}
    #: Arguments that version 0.1 did not have, with the values that leave its networks unchanged.
    #: At these they are not recorded: folders and fingerprints of such networks stay as they were.
    later_options: ClassVar[dict[str, Any]] = {}
    #: How the network was trained, for its model card; set by `fsanet.train.train`.
    training_facts: TrainingFacts | None = None

    def record_config(self, *, k: BandLike, **resolved: Any) -> None:
        """Complete what ``config.json`` will hold beyond the arguments that were passed.

        Args:
            k: the band argument of the constructor.
            **resolved: arguments as they are needed to build the network again: defaults replaced
                by their values.

        Raises:
            InputError: an argument of another type, or beyond the limits of a saved network.
        """
        passed: Any = self._hub_mixin_config or {}
        config = {**passed, **resolved, **self.initial_weights, "k": band_to_json(k)}
        check_values(config, type(self), self.network)  # what is built can be saved and opened
        later = self.later_options
        config = {n: v for n, v in config.items() if n not in later or v != later[n]}
        self._hub_mixin_config = {**config, "network": self.network}

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Load a network from a folder or from the hub.

        Of a folder, ``config.json`` and ``model.safetensors`` are read and nothing else.

        Args:
            source: folder written by ``save_pretrained``, or a hub id.
            revision, cache_dir, force_download, local_files_only, token: options of the hub.
            **overrides: constructor arguments that replace the saved ones, such as ``k=4``.

        Raises:
            InputError: no such folder, no network in it, a value in ``config.json`` that is not
                valid, or weights of another architecture.
        """
        folder = find_folder(
            source,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        for name in ("config.json", "model.safetensors"):
            if find_file(folder, name) is None:
                raise InputError(
                    f"{folder}: no {name} in it; give a folder written by save_pretrained"
                )
        config = read_object(folder / "config.json")
        if config.get("model_type") == MODEL_TYPE:
            del config["model_type"]
        found = printable(str(config.pop("network", cls.network)))
        if found != cls.network:
            raise InputError(f"{folder}: holds a {found}, not a {cls.network}; use load_model")
        settings = config | overrides | cls.initial_weights
        check_values(settings, cls, folder / "config.json")
        return build_for(read_weights(folder / "model.safetensors"), folder, cls, **settings)

    def _save_pretrained(self, save_directory: Path) -> None:
        weights: Mapping[str, Tensor] = self.state_dict()  # type: ignore[attr-defined]
        state = {name: value.contiguous() for name, value in weights.items()}
        write_whole(
            save_directory / "model.safetensors",
            lambda stream: stream.write(safetensors.torch.save(state, {"format": "pt"})),
        )
        config: Any = self._hub_mixin_config
        saved = {name: config[name] for name in config if name not in self.initial_weights}
        saved["model_type"] = MODEL_TYPE
        write_text(save_directory / "config.json", json.dumps(saved, sort_keys=True, indent=2))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of `fsanet.models.card.model_card`, whose options ``kwargs`` are."""
        return model_card(self, self.training_facts, **kwargs)


def build_for(
    state: Mapping[str, Tensor], source: str | Path, network: Callable[..., Any], **options: Any
) -> Any:
    """Build a network around weights, with no more memory than they have.

    Its parameters are the tensors in ``state``. While it is built, they have a shape but no data,
    and building ends as soon as it needs more than there is in ``state``.

    Args:
        state: the complete state_dict.
        source: where it is from, to be named in errors.
        network: class of the network, or a function that makes it.
        **options: arguments of ``network``.

    Raises:
        InputError: options that no network can have, or weights that do not fit.
    """
    with _parameters_limited_by(state):
        try:
            model = network(**options)
        except Exception as error:  # torch, timm and torchvision report options in many ways
            reason = f"cannot be built ({one_line(error)})"
            if isinstance(error, InputError):
                reason = str(error)
            if isinstance(error, MemoryError) or "allocate memory" in reason:
                reason = _LARGER
            raise InputError(f"{source}: {reason}") from error
    check_state(model, state, source)
    check_finite(state, source)
    own = model.state_dict()
    # Copies, because results depend in their last bits on how a file aligns its tensors in memory.
    copies = {name: value.to(own[name].dtype, copy=True) for name, value in state.items()}
    model.load_state_dict(copies, assign=True)
    return model


@contextmanager
def _parameters_limited_by(state: Mapping[str, Tensor]) -> Iterator[None]:
    """While networks are built here, keep no data of parameters, and stop at what is too large."""
    # A timm encoder is built with a classifier, which is removed again: hence some more.
    most = 4 * len(state) + 1_000
    largest = 4 * sum(value.numel() for value in state.values()) + 1_000_000
    thread, count = threading.get_ident(), 0

    def limit(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        nonlocal count
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        count += 1
        if count > most or parameter.numel() > largest:
            raise InputError(_LARGER)
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(limit)
    try:
        with NoRandomValues():
            yield
    finally:
        handle.remove()


class SegmentationNetwork(nn.Module, SavedNetwork, tags=["semantic-segmentation"]):
    """Base class for networks that map images to logits.

    Attributes:
        num_classes: number of classes.
        classes: class names.
        palette: one (r, g, b) in 0..255 per class.
        mean, std: one value per channel, for images in 0..1.
        bgr: whether the network takes channels in the order blue, green, red.
        align_corners: how logits are upsampled.
    """

    num_classes: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    align_corners: bool = False

    def describe(
        self,
        *,
        num_classes: int,
        classes: Sequence[str] | None,
        palette: Sequence[Sequence[int]] | None,
        mean: Sequence[float],
        std: Sequence[float],
        in_channels: int,
    ) -> None:
        """Set the attributes from constructor arguments, with default names and colours.

        Raises:
            InputError: the numbers of classes, names, colours or channels do not match.
        """
        if num_classes < 1:
            raise InputError(f"num_classes={num_classes}: give at least 1")
        names = map(str, range(num_classes)) if classes is None else classes
        self.num_classes, self.classes = num_classes, tuple(names)
        if len(self.classes) != num_classes:
            raise InputError(f"classes has {len(self.classes)} entries for {num_classes} classes")
        self.palette = class_palette(palette, num_classes)
        self.mean, self.std = check_normalisation(mean, std, in_channels)

    def record_config(self, *, k: BandLike, **resolved: Any) -> None:
        super().record_config(
            k=k,
            num_classes=self.num_classes,
            classes=list(self.classes),
            palette=[list(colour) for colour in self.palette],
            mean=list(self.mean),
            std=list(self.std),
            **resolved,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        processor = {
            "image_processor_type": "FsaImageProcessor",  # of `fsanet.hf`
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "bgr": self.bgr,
        }
        write_text(save_directory / "preprocessor_config.json", json.dumps(processor, indent=2))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(B, in_channels, H, W)`` to logits ``(B, num_classes, H, W)``."""
        return self.upsample(self.coarse_logits(images), images)

    def coarse_logits(self, images: Tensor) -> Tensor:
        """Compute what `forward` upsamples: logits ``(B, num_classes, h, w)`` of the last layer."""
        return self.head_logits(self.encoder_features(images))

    def encoder_features(self, images: Tensor) -> list[Tensor]:
        """The features of all stages of the encoder for normalised images, finest first."""
        return list(self.encoder(images))  # type: ignore[operator]

    def head_logits(self, features: list[Tensor]) -> Tensor:
        """Map `encoder_features` to the `coarse_logits`."""
        raise NotImplementedError

    def forward_with_auxiliary(
        self, images: Tensor, features: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute logits of the head and the auxiliary head, both ``(B, num_classes, H, W)``.

        Used in training. The second is None if the network has no auxiliary head. Of images whose
        ``features`` are given, only the size matters.
        """
        features = self.encoder_features(images) if features is None else features
        return self.upsample(self.head_logits(features), images), None

    def normalise(self, images: Tensor) -> Tensor:
        """Convert plain images to what ``forward`` expects.

        Args:
            images: ``(..., in_channels, H, W)``, RGB, uint8 in 0..255 or floats in 0..1.

        Returns:
            Floats of the same shape: ``(images - mean) / std``, in BGR order if ``bgr``. On a CPU,
            a batch is returned in channels-last memory format.
        """
        return normalise(images, self.mean, self.std, bgr=self.bgr)

    def upsample(self, logits: Tensor, images: Tensor) -> Tensor:
        """Resize logits ``(B, num_classes, h, w)`` bilinearly to ``(B, num_classes, H, W)``."""
        return interpolate(
            logits, size=images.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, bgr: bool = False
) -> Tensor:
    """See `SegmentationNetwork.normalise`."""
    x = images if images.is_floating_point() else images.float() / 255
    means, stds = x.new_tensor(mean), x.new_tensor(std)
    x = (x - means[:, None, None]) / stds[:, None, None]
    x = x.flip(-3) if bgr else x
    if x.ndim == 4 and x.device.type == "cpu":  # convolutions run faster on it
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def check_normalisation(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std as floats.

    Raises:
        InputError: not one value per channel, a std that is not positive, or beyond all measure.
    """
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise InputError(
            f"mean {mean} and std {std} need one value per channel ({channels}), std above 0"
        )
    for value in mean:  # of images in 0..1
        check_range("mean", value, -1e6, 1e6)
    for value in std:
        check_range("std", value, 1e-6, 1e6)
    return mean, std


def check_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that ``state`` has exactly the names and shapes that ``model`` needs.

    Raises:
        InputError: with what differs.
    """
    wanted = model.state_dict()
    both = wanted.keys() & state.keys()
    problems = []
    for title, names in (
        ("missing", wanted.keys() - state.keys()),
        ("not of this network", state.keys() - wanted.keys()),
        ("of another shape", {n for n in both if wanted[n].shape != state[n].shape}),
        ("of another type", {n for n in both if _type(wanted[n]) != _type(state[n])}),
    ):
        if names:
            first = ", ".join(map(printable, sorted(names)[:3]))
            problems.append(f"{len(names)} {title}, such as {first}")
    if problems:
        raise InputError(
            f"{source}: weights of another architecture ({'; '.join(problems)}); "
            "load them with the options they were saved with"
        )


def take_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> str:
    """Copy the weights that a network has under the same name and in the same shape.

    Returns:
        A line that says how many were taken, and which start new.

    Raises:
        InputError: there is none.
    """
    own = model.state_dict()
    taken = {n: value for n, value in state.items() if n in own and value.shape == own[n].shape}
    if not taken:
        raise InputError(
            f"{source}: none of its weights belongs to this network (same name and shape); give a "
            "network of the same kind"
        )
    model.load_state_dict(taken, strict=False)
    new = [name for name in own if name not in taken]
    rest = f"; {len(new)} start new: {', '.join(new[:8])}" if new else ""
    more = f" and {len(new) - 8} more" if len(new) > 8 else ""
    return f"{len(taken)} of {len(own)} weights are those of {source}{rest}{more}"


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that no weight is nan or infinite.

    Raises:
        InputError: with the first that is.
    """
    for name, value in state.items():
        if not value.is_floating_point() or not value.numel():
            continue
        # The extremes are nan if any value is; isfinite() would write a map first.
        if not all(extreme.isfinite() for extreme in value.aminmax()):
            raise InputError(f"{source}: nan or infinite values in the weight {printable(name)}")


def _type(value: Tensor) -> object:
    """What two types of weights have in common that can be copied to each other."""
    return "float" if value.dtype in _FLOATS else value.dtype
