"""What every network shares: its classes and input normalisation, and how it is saved and loaded.

Legend: B batch, H x W image, h x w feature grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fsanet.attention.dct import Band, BandLike
from fsanet.data.masks import class_palette
from fsanet.errors import InputError
from fsanet.files import read_weights, write_whole

__all__ = [
    "SavedNetwork",
    "SegmentationNetwork",
    "band_to_json",
    "check_normalisation",
    "check_source",
    "check_state",
]

_HUB_ONLY = ("revision", "cache_dir", "force_download", "local_files_only", "token", "strict")


class SavedNetwork(
    PyTorchModelHubMixin,
    library_name="fsanet",
    paper_url="https://arxiv.org/abs/2211.15595",
):
    """Mixin for networks saved as a folder with ``config.json`` and ``model.safetensors``.

    ``config.json`` holds the arguments of the constructor. A subclass calls `record_config` at the
    end of its constructor.
    """

    def record_config(self, *, network: str, k: BandLike, **resolved: Any) -> None:
        """Complete what ``config.json`` will hold beyond the arguments that were passed.

        Args:
            network: name of the class, by which `fsanet.load_model` finds it.
            k: the band argument of the constructor.
            **resolved: arguments as they are needed to build the network again: defaults replaced
                by their values, sources of initial weights by None.
        """
        passed: Any = self._hub_mixin_config or {}
        self._hub_mixin_config = {**passed, **resolved, "network": network, "k": band_to_json(k)}

    @classmethod
    def from_pretrained(cls, source: str | Path, **overrides: Any) -> Self:  # type: ignore[override]
        """Load a network from a folder or from the hub.

        Args:
            source: folder written by ``save_pretrained``, or a hub id.
            **overrides: constructor arguments that replace the saved ones, such as ``k=4``, and
                the hub's own options (``revision``, ``cache_dir``, ``local_files_only``, ...).

        Raises:
            InputError: no such folder, no network in it, or weights of another architecture.
        """
        folder = check_source(source)
        if folder is not None:
            for name in ("config.json", "model.safetensors"):
                if not (folder / name).is_file():
                    raise InputError(
                        f"{folder}: no {name} in it; give a folder written by save_pretrained"
                    )
        return super().from_pretrained(str(source), **overrides)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **rest: Any) -> Self:
        if not Path(model_id).is_dir():
            return super()._from_pretrained(model_id=model_id, map_location=map_location, **rest)
        model = cls(**{name: value for name, value in rest.items() if name not in _HUB_ONLY})
        file = str(Path(model_id) / "model.safetensors")
        return cls._load_as_safetensor(model, file, map_location, strict=True)

    @classmethod
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        # The mixin's own loading accepts weights that fit only in part.
        state = read_weights(model_file)
        check_state(model, state, model_file)
        model.load_state_dict(state)
        return model.to(map_location)

    def _save_pretrained(self, save_directory: Path) -> None:
        weights: Mapping[str, Tensor] = self.state_dict()  # type: ignore[attr-defined]
        state = {name: value.contiguous() for name, value in weights.items()}
        write_whole(
            save_directory / "model.safetensors",
            lambda stream: stream.write(safetensors.torch.save(state, {"format": "pt"})),
        )


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

    def record_config(self, *, network: str, k: BandLike, **resolved: Any) -> None:
        super().record_config(
            network=network,
            k=k,
            num_classes=self.num_classes,
            classes=list(self.classes),
            palette=[list(colour) for colour in self.palette],
            mean=list(self.mean),
            std=list(self.std),
            **resolved,
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Convert plain images to what ``forward`` expects.

        Args:
            images: ``(..., in_channels, H, W)``, RGB, uint8 in 0..255 or floats in 0..1.

        Returns:
            Floats of the same shape: ``(images - mean) / std``, in BGR order if ``bgr``. On a CPU,
            a batch is returned in channels-last memory format.
        """
        x = images if images.is_floating_point() else images.float() / 255
        mean, std = x.new_tensor(self.mean), x.new_tensor(self.std)
        x = (x - mean[:, None, None]) / std[:, None, None]
        x = x.flip(-3) if self.bgr else x
        if x.ndim == 4 and x.device.type == "cpu":  # convolutions run faster on it
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def upsample(self, logits: Tensor, images: Tensor) -> Tensor:
        """Resize logits ``(B, num_classes, h, w)`` bilinearly to ``(B, num_classes, H, W)``."""
        return interpolate(
            logits, size=images.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )


def check_normalisation(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std as floats.

    Raises:
        InputError: not one value per channel, or a std that is not positive.
    """
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise InputError(
            f"mean {mean} and std {std} need one value per channel ({channels}), std above 0"
        )
    return mean, std


def check_source(source: str | Path) -> Path | None:
    """Return the folder that ``source`` names, or None for a hub id.

    Raises:
        InputError: it is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder}: a file, not a folder written by save_pretrained")
    if folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise InputError(f"{folder}: no such folder, and not a hub id (owner/name)")
    return None


def band_to_json(k: BandLike) -> Any:
    """Convert a band argument to plain JSON values that `Band.of` accepts."""
    if k is None or isinstance(k, int):
        return k
    band = Band.of(k)
    return [[band.h0, band.h1], [band.w0, band.w1]]


def check_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that ``state`` has exactly the names and shapes that ``model`` needs.

    Raises:
        InputError: with what differs.
    """
    wanted = model.state_dict()
    problems = []
    for title, names in (
        ("missing", wanted.keys() - state.keys()),
        ("not of this network", state.keys() - wanted.keys()),
        (
            "of another shape",
            {n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape},
        ),
    ):
        if names:
            first = sorted(names)[0]
            problems.append(f"{len(names)} {title}, such as {first}")
    if problems:
        raise InputError(
            f"{source}: weights of another architecture ({'; '.join(problems)}); "
            "load them with the options they were saved with"
        )
