"""FsaNet: a timm encoder with frequency self-attention in its head.

Source: FsaNet (arXiv 2211.15595), section IV.

Legend: B batch, H x W image, h x w feature grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fsanet.attention.block import Block
from fsanet.attention.similarity import Similarity
from fsanet.dct import Band, BandLike
from fsanet.errors import InputError
from fsanet.files import write_whole
from fsanet.models.encoder import build_encoder
from fsanet.models.heads import Attention, FcnHead, FsaHead
from fsanet.palette import class_palette

__all__ = ["FsaNet"]


class FsaNet(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="fsanet",
    tags=["semantic-segmentation"],
    paper_url="https://arxiv.org/abs/2211.15595",
):
    """Semantic segmentation with global context: encoder, :class:`FsaHead`, auxiliary head.

    Args:
        encoder: timm model name. The paper's is "resnet101s": ResNet-101 with a stem of three 3x3
            convolutions (64, 64, 128).
        num_classes: classes, one logit map each.
        attention: "frequency", or the two baselines "spatial" (regular attention) and None.
        k: band of frequencies: int, pair, ranges or None for all (frequency attention only).
        similarity: "dot", "linear_softmax", "linear" or "softmax".
        recurrence: rounds of attention with the same weights.
        block: shape of the attention block, "nonlocal" or "ccnet".
        qkv_bias: biases on queries, keys and values.
        zero_init: attention starts as the identity.
        head_channels: width of the head.
        aux_channels: width of the auxiliary head on the last stage but one; 0 for none. It takes
            part in training only.
        dropout: in both heads.
        output_stride: image pixels per feature position, 8 or 16.
        align_corners: of the bilinear upsampling of logits to the image's size.
        in_channels: channels of the images.
        pretrained: start from timm's weights for the encoder (a download).
        encoder_weights: start from this local file of the encoder's weights instead.
        encoder_options: further arguments of ``timm.create_model``.
        ceil_pool, contract_dilation: how a ResNet rounds sizes and dilates the first block of a
            stage, see :func:`fsanet.models.encoder.build_encoder`; (True, False) is CCNet's way.
        classes: class names; by default "0", "1", ...
        palette: one (r, g, b) of 0..255 per class; by default spread over the hues.
        mean, std: per channel, for values in 0..1; by default those of the timm model.
        bgr: the network takes channels in the order blue, green, red.

    Raises:
        InputError: encoder, weights or options that do not fit, with what to do.

    Source: arXiv 2211.15595, section IV; recipes in docs/method.md.

    >>> model = FsaNet("resnet10t", num_classes=5, head_channels=32, aux_channels=0).eval()
    >>> model(torch.zeros(1, 3, 64, 96)).shape
    torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        encoder: str = "resnet101s",
        *,
        num_classes: int,
        attention: Attention | None = "frequency",
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        block: Block = "nonlocal",
        qkv_bias: bool = False,
        zero_init: bool = True,
        head_channels: int = 512,
        aux_channels: int = 256,
        dropout: float = 0.1,
        output_stride: int = 8,
        align_corners: bool = False,
        in_channels: int = 3,
        pretrained: bool = False,
        encoder_weights: str | None = None,
        encoder_options: dict[str, Any] | None = None,
        ceil_pool: bool = False,
        contract_dilation: bool = True,
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or head_channels < 1 or aux_channels < 0:
            raise InputError(
                f"num_classes={num_classes} and head_channels={head_channels} have to be >= 1, "
                f"aux_channels={aux_channels} >= 0"
            )
        self.num_classes = num_classes
        self.classes = (
            tuple(str(i) for i in range(num_classes)) if classes is None else tuple(classes)
        )
        if len(self.classes) != num_classes:
            raise InputError(f"classes has {len(self.classes)} entries for {num_classes} classes")
        self.palette = class_palette(palette, num_classes)
        defaults = _normalisation(encoder, in_channels)
        self.mean = tuple(float(m) for m in (defaults[0] if mean is None else mean))
        self.std = tuple(float(s) for s in (defaults[1] if std is None else std))
        if not len(self.mean) == len(self.std) == in_channels or min(self.std) <= 0:
            raise InputError(
                f"mean {self.mean} and std {self.std} need one value per channel "
                f"({in_channels}), std above 0"
            )
        self.bgr, self.align_corners = bgr, align_corners
        self.encoder = build_encoder(
            encoder,
            output_stride=output_stride,
            in_channels=in_channels,
            pretrained=pretrained,
            weights=encoder_weights,
            options=encoder_options,
            ceil_pool=ceil_pool,
            contract_dilation=contract_dilation,
        )
        *_, middle, last = self.encoder.feature_info.channels()  # type: ignore[union-attr, operator]
        self.head = FsaHead(
            last,
            num_classes,
            channels=head_channels,
            attention=attention,
            k=k,
            similarity=similarity,
            recurrence=recurrence,
            block=block,
            qkv_bias=qkv_bias,
            zero_init=zero_init,
            dropout=dropout,
        )
        self.auxiliary = None
        if aux_channels:
            self.auxiliary = FcnHead(middle, num_classes, channels=aux_channels, dropout=dropout)
        # What a reload needs: resolved values in, and the sources of the first weights out.
        self._hub_mixin_config = {
            **cast(dict, self._hub_mixin_config or {}),
            "k": _plain(k),
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "mean": list(self.mean),
            "std": list(self.std),
            "pretrained": False,
            "encoder_weights": None,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, in_channels, H, W)`` to logits ``(B, num_classes, H, W)``."""
        features = self.encoder(images)
        return self._upsample(self.head(features[-1]), images)

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the head and of the auxiliary head, both ``(B, num_classes, H, W)``.

        For training; None where the network has no auxiliary head.
        """
        features = self.encoder(images)
        logits = self._upsample(self.head(features[-1]), images)
        if self.auxiliary is None:
            return logits, None
        return logits, self._upsample(self.auxiliary(features[-2]), images)

    def normalise(self, images: Tensor) -> Tensor:
        """Plain images to what :meth:`forward` takes.

        Args:
            images: ``(..., in_channels, H, W)``, RGB, uint8 of 0..255 or floats of 0..1.

        Returns:
            Floats of the same shape: ``(images - mean) / std``, in BGR order if the network is;
            on a CPU a batch is stored with the channels innermost.
        """
        x = images if images.is_floating_point() else images.float() / 255
        mean, std = x.new_tensor(self.mean), x.new_tensor(self.std)
        x = (x - mean[:, None, None]) / std[:, None, None]
        x = x.flip(-3) if self.bgr else x
        if x.ndim == 4 and x.device.type == "cpu":  # its convolutions are faster so
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _upsample(self, logits: Tensor, images: Tensor) -> Tensor:
        return interpolate(
            logits, size=images.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, **overrides: Any) -> FsaNet:  # type: ignore[override]
        """The network saved in a folder or on the hub.

        Args:
            source: folder written by :meth:`save_pretrained`, or a hub id.
            **overrides: constructor arguments that differ from the saved ones, such as
                ``attention="frequency", k=4`` for a network trained with regular attention; and
                the hub's own (``revision``, ``cache_dir``, ``local_files_only``, ...).

        Raises:
            InputError: no such folder, no network in it, or weights of another architecture.
        """
        folder = Path(source)
        if folder.is_dir():
            for name in ("config.json", "model.safetensors"):
                if not (folder / name).is_file():
                    raise InputError(
                        f"{folder}: no {name} in it; give a folder written by save_pretrained"
                    )
        elif folder.exists():
            raise InputError(f"{folder}: a file, not a folder written by save_pretrained")
        elif folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
            raise InputError(f"{folder}: no such folder, and not a hub id (owner/name)")
        return super().from_pretrained(str(source), **overrides)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **rest: Any) -> FsaNet:
        if not Path(model_id).is_dir():
            return super()._from_pretrained(model_id=model_id, map_location=map_location, **rest)
        hub_only = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        arguments = {k: v for k, v in rest.items() if k not in (*hub_only, "strict")}
        model = cls(**arguments)
        file = str(Path(model_id) / "model.safetensors")
        return cls._load_as_safetensor(model, file, map_location, strict=True)

    @classmethod
    def _load_as_safetensor(  # type: ignore[override]
        cls, model: FsaNet, model_file: str, map_location: str, strict: bool
    ) -> FsaNet:
        # The mixin's own loading would accept weights that only partly fit.
        try:
            state = safetensors.torch.load_file(model_file, device=map_location)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{model_file}: cannot be read ({error})") from error
        check_state(model, state, model_file)
        model.load_state_dict(state)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_whole(
            save_directory / "model.safetensors",
            lambda stream: stream.write(safetensors.torch.save(state, {"format": "pt"})),
        )


def check_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise an InputError that says how ``state`` differs from what ``model`` needs, if it does."""
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


def _normalisation(encoder: str, in_channels: int) -> tuple[Sequence[float], Sequence[float]]:
    if in_channels != 3:
        return (0.5,) * in_channels, (0.5,) * in_channels
    known = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder) else None
    if known is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return known.mean, known.std


def _plain(k: BandLike) -> Any:
    """A band as JSON holds it."""
    if k is None or isinstance(k, int):
        return k
    band = Band.of(k)
    return [[band.h0, band.h1], [band.w0, band.w1]]
