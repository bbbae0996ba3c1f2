"""Images of any size -> class ids: in one piece, by sliding window, at several scales, mirrored.

Evaluation and prediction both use it.

Shapes: B images, C classes, (H, W) image, (h, w) window.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsanet.cost.memory import is_out_of_memory
from fsanet.errors import InputError
from fsanet.models.exported import ExportedNetwork
from fsanet.models.saving import SegmentationNetwork
from fsanet.models.tiles import class_scores, window_starts

__all__ = ["Masks", "Segmenter", "check_settings", "evaluating", "highest"]

Network = Callable[[Tensor], Tensor]

_MOST_SCALES = 64
_LARGEST_SCALE = 64.0
_LARGEST_BATCH = 4096
_ARGMAX_PIXELS = 2**20
_BAND_VALUES = 2**22  # logits of a band of rows: larger ones would leave the cache
_MOST_PIXELS = 2**29  # of a scaled image


class Masks(NamedTuple):
    """What a `Segmenter` finds in a batch of images; on the CPU.

    Attributes:
        ids: class ids, uint8 (B, H, W).
        confidence: probability of the chosen class, float32 (B, H, W), if it was requested.
        entropy: mean entropy of each image's class probabilities in nats, float64 (B,), if it was
            requested.
    """

    ids: Tensor
    confidence: Tensor | None
    entropy: Tensor | None


class Segmenter:
    """Runs a segmentation network on batches of images of any size.

    With a window, the logits of an image never exist as a whole: besides the forward pass, at
    most four bands of (C, window height, scaled width) float32 are held for each view (a scale, or
    its mirror image). None of this grows with the height of the image; only the image itself and
    its uint8 mask do. A batch of images multiplies it by at most ``batch_size``. Without a window,
    logits of one of our networks are upsampled by bands of rows as well; those of its last layer
    are held for each view.

    Args:
        model: network with ``model(images) -> logits`` at the size of the images, ``normalise``,
            ``classes`` and ``palette``, like `fsanet.FsaNet`. Each prediction puts it into
            evaluation mode and restores the previous mode afterwards.
        window: side of the sliding window in pixels, or (height, width). None feeds the whole
            image. An image smaller than the window is padded with the mean colour.
        stride: step of the window in pixels, or (vertical, horizontal); two thirds of the window
            by default. The last window is aligned with the border. Logits are averaged where
            windows overlap.
        scales: factors by which the image is resized (bilinear, antialiased when it shrinks); the
            window keeps its size. Logits are resized back to the image, and the softmax
            probabilities of all scales are averaged.
        flip: also predict each scale mirrored left to right, averaged like a scale.
        batch_size: windows (or whole images of one size) per forward pass.
        device: where to run the model, which is moved there; by default where it is.
        dtype: run the model under autocast with this type, such as ``torch.bfloat16``.
        offload: keep logits on the CPU, so that a GPU holds only those of one forward pass.
        confidence: also keep the probability of the chosen class at each pixel.
        entropy: also compute the mean entropy of each image's class probabilities, in nats.

    Raises:
        InputError: a setting out of range, named with its value.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offload: bool = False,
        confidence: bool = False,
        entropy: bool = False,
    ) -> None:
        for name in ("normalise", "classes", "palette"):
            if not hasattr(model, name):
                raise TypeError(f"{type(model).__name__} has no '{name}'; give a model like FsaNet")
        self.model = cast(Any, model if device is None else model.to(device))
        if len(self.model.classes) > 256:
            raise InputError(f"{len(self.model.classes)} classes; an 8-bit mask holds at most 256")
        channels = len(getattr(self.model, "mean", (0, 0, 0)))
        if channels != 3:
            raise InputError(f"the model takes {channels} channels; images are read as 3 (RGB)")
        if isinstance(model, ExportedNetwork):
            model.check_options(dtype=dtype, probabilities=confidence or entropy)
        self.window, self.stride = check_settings(window, stride, scales, batch_size)
        self.scales = tuple(float(scale) for scale in scales)
        self.flip = flip
        self.batch_size = batch_size
        self.dtype = dtype
        self.offload = offload
        self.confidence = confidence
        self.entropy = entropy

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        for tensor in itertools.chain(self.model.parameters(), self.model.buffers()):
            return tensor.device
        return torch.device("cpu")

    def masks(self, images: Tensor, *, resize: tuple[int, int] | None = None) -> Masks:
        """Segment images of one size.

        Args:
            images: uint8 (B, 3, H, W), any device.
            resize: longest and shortest side in pixels. ``scales`` then apply to the images resized
                until their longer side is at most the first and their shorter side at most the
                second, with their aspect ratio; None for their own size.

        Raises:
            InputError: an image does not fit into memory.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (B, 3, H, W)"
            )
        batch, _, height, width = images.shape
        scale = 1.0
        if resize is not None:
            scale = min(resize[0] / max(height, width), resize[1] / min(height, width))
        for factor in self.scales:
            if height * width * (scale * factor) ** 2 > _MOST_PIXELS:
                raise InputError(
                    f"scale {factor:g} of an image of {width} x {height} pixels: more than "
                    f"{_MOST_PIXELS} pixels; give a smaller scale"
                )
        # Made before inference mode, so that the caller may write to them.
        ids = torch.empty(batch, height, width, dtype=torch.uint8)
        confidence = torch.empty(batch, height, width) if self.confidence else None
        entropy = torch.zeros(batch, dtype=torch.float64) if self.entropy else None
        group = self.batch_size
        if self.window is not None and self.stride is not None:
            columns = len(window_starts(width, self.window[1], self.stride[1]))
            group = max(1, self.batch_size // columns)
        try:
            with self.running() as network:
                # Logits that the network makes at full size are no smaller in bands.
                bands = isinstance(network, SegmentationNetwork) and not network._compiled_call_impl
                run = cast(Network, network.coarse_logits if bands else network)
                band = _BAND_VALUES // max(1, len(self.model.classes) * min(group, batch) * width)
                for first in range(0, batch, group):
                    part = slice(first, first + group)
                    for block in class_scores(
                        images[part],
                        partial(self._forward, run),
                        window=self.window,
                        stride=self.stride,
                        band=max(1, band) if bands or self.window else height,
                        align_corners=getattr(network, "align_corners", False),
                        scales=[scale * factor for factor in self.scales],
                        flip=self.flip,
                        batch_size=self.batch_size,
                        probabilities=self.confidence or self.entropy,
                    ):
                        if confidence is None:
                            ids[part][block[:3]] = highest(block.scores).cpu()  # (b, r, c)
                        else:
                            best = block.scores.max(dim=1)  # (b, r, c)
                            ids[part][block[:3]] = best.indices.to("cpu", torch.uint8)
                            confidence[part][block[:3]] = best.values.cpu()
                            del best
                        if entropy is not None:
                            sums = torch.special.entr(block.scores).sum((1, 2, 3))  # (b,)
                            entropy[part][block[0]] += sums.cpu()
                        del block  # freed before the next is made
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"an image of {width} x {height} pixels does not fit into the memory of "
                f"{self.device}; use a window, a smaller one, or a smaller batch"
            ) from error
        for found in (confidence, entropy):
            if found is not None and not found.sum().isfinite():
                raise InputError(
                    f"the network gives nan for an image of {width} x {height} pixels; its weights "
                    "are damaged, or too large for the type that it computes in"
                )
        if entropy is not None:
            entropy /= height * width
        return Masks(ids, confidence, entropy)

    @contextlib.contextmanager
    def running(self) -> Iterator[nn.Module]:
        """The `network` in evaluation mode, without gradients, and in `dtype` where that is safe.

        Yields:
            It maps normalised images (B, 3, H, W) to logits (B, C, H, W).
        """
        half = self.dtype is not None
        autocast = torch.autocast(self.device.type, self.dtype, enabled=half)
        with evaluating(self.model), torch.inference_mode(), autocast:
            yield self.network()

    def network(self) -> nn.Module:
        """What computes the logits, asked for in evaluation mode."""
        return self.model

    def _forward(self, run: Network, tiles: Tensor, size: tuple[int, int]) -> Tensor:
        """uint8 (b, 3, h', w'), padded to size -> float32 logits of ``run`` where they are kept."""
        device = self.device
        inputs = self.model.normalise(tiles.to(device, non_blocking=True))
        # Zero is the mean colour after normalisation.
        missing = (0, size[1] - tiles.shape[3], 0, size[0] - tiles.shape[2])
        inputs = F.pad(inputs, missing)  # (b, 3, h, w)
        logits = run(inputs)
        if run is self.model and logits.shape[-2:] != inputs.shape[-2:]:
            raise ValueError(
                f"the model gives logits of {tuple(logits.shape)} for images of "
                f"{tuple(inputs.shape)}; they must have the size of the images"
            )
        return logits.to("cpu" if self.offload else device, torch.float32)


def highest(scores: Tensor) -> Tensor:
    """Index of the highest score at each pixel, (B, C, H, W) -> uint8 (B, H, W), C <= 256.

    In bands of rows, because the int64 indices of all pixels at once, and the maxima that come with
    them, take 12 bytes for each; the first of equal scores counts.
    """
    batch, _, height, width = scores.shape
    ids = torch.empty(batch, height, width, dtype=torch.uint8, device=scores.device)
    rows = max(1, _ARGMAX_PIXELS // (batch * width))
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        ids[:, band] = scores[:, :, band].max(dim=1).indices
    return ids


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to what each module was in: frozen batch norms stay frozen."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_settings(
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    batch_size: int = 1,
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Check the settings of a `Segmenter`, and return window and stride as pairs.

    Raises:
        InputError: a setting out of range, named with its value.
    """
    if not 1 <= batch_size <= _LARGEST_BATCH:
        raise InputError(f"batch_size is {batch_size}; it must be from 1 to {_LARGEST_BATCH}")
    if not 1 <= len(scales) <= _MOST_SCALES:
        raise InputError(f"{len(scales)} scales; give one or more factors, at most {_MOST_SCALES}")
    if not all(0 < scale <= _LARGEST_SCALE for scale in scales):
        raise InputError(
            f"scales are {tuple(scales)}; give factors above 0, at most {_LARGEST_SCALE:g}"
        )
    if window is None:
        if stride is not None:
            raise InputError(f"stride is {stride}, but there is no window; give window as well")
        return None, None
    window = _pair("window", window)
    if stride is None:
        return window, ((2 * window[0] + 2) // 3, (2 * window[1] + 2) // 3)
    stride = _pair("stride", stride)
    if stride[0] > window[0] or stride[1] > window[1]:
        raise InputError(
            f"stride {stride} exceeds window {window}: pixels would be skipped; lower the stride"
        )
    return window, stride


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
        raise InputError(
            f"{name} is {value}; give pixels, or (height, width) in pixels, at least 1"
        )
    return pair[0], pair[1]
