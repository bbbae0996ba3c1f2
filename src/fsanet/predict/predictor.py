"""Prediction: whole image, sliding window, several scales, mirrored; of one image or several.

Shapes: B images, C classes, (H, W) an image, (h, w) a window.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsanet.data.images import ImageSource, list_images, read_image
from fsanet.errors import InputError
from fsanet.predict.result import Segmentation
from fsanet.predict.tiles import window_starts
from fsanet.predict.views import scores

__all__ = ["Predictor", "Segmentation"]


class Predictor:
    """Run a segmentation network on images of any size.

    Args:
        model: network with ``model(images) -> logits`` at the size of the images, ``normalise``,
            ``classes`` and ``palette``, as `fsanet.models.FsaNet`. It is put into evaluation mode
            for each prediction only, and left as it was found.
        window: side of the sliding window in pixels, or (height, width). None feeds the whole
            image. An image smaller than the window is padded with the mean colour.
        stride: step of the window in pixels, or (vertical, horizontal); two thirds of the window
            by default. The last window is aligned with the border. Where windows overlap, their
            logits are averaged.
        scales: factors by which the image is resized (bilinear, antialiased when it shrinks); the
            window keeps its size. Logits are resized back to the image, and the softmax
            probabilities of all scales are averaged.
        flip: look at each scale mirrored left to right, too; averaged like a scale.
        batch_size: windows (or whole images of one size) in one forward pass.
        device: where the model runs, and is moved to; by default where it is.
        dtype: run the model under autocast with this type, such as ``torch.bfloat16``.
        offload: keep logits on the CPU, so that a GPU holds those of one forward pass alone.
        confidence: keep the probability of the chosen class at each pixel, too.

    With a window, the logits of the image never exist as a whole. What is held besides the forward
    pass is at most four bands of (C, window height, scaled width) float32 for each view (scale,
    or its mirror image); none of it grows with the height of the image, as only its own pixels
    and the uint8 mask do. A batch of images multiplies it by ``batch_size`` at most.

    Raises:
        InputError: a setting that makes no sense, named with its value.
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
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise InputError(f"scales are {tuple(scales)}; give one or more factors above 0")
        self.window = None if window is None else _pair("window", window)
        self.stride: tuple[int, int] | None = None
        if self.window is None:
            if stride is not None:
                raise InputError(f"stride is {stride}, but there is no window; give window as well")
        elif stride is None:
            self.stride = ((2 * self.window[0] + 2) // 3, (2 * self.window[1] + 2) // 3)
        else:
            self.stride = _pair("stride", stride)
            if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
                raise InputError(
                    f"stride {self.stride} exceeds window {self.window}: pixels would be skipped; "
                    "lower the stride"
                )
        self.scales = tuple(float(scale) for scale in scales)
        self.flip = flip
        self.batch_size = batch_size
        self.dtype = dtype
        self.offload = offload
        self.confidence = confidence

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        for tensor in itertools.chain(self.model.parameters(), self.model.buffers()):
            return tensor.device
        return torch.device("cpu")

    @overload
    def __call__(self, image: ImageSource) -> Segmentation: ...
    @overload
    def __call__(
        self, image: list[ImageSource] | tuple[ImageSource, ...]
    ) -> list[Segmentation]: ...
    def __call__(
        self, image: ImageSource | list[ImageSource] | tuple[ImageSource, ...]
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or several given as a list or tuple.

        Args:
            image: whatever `fsanet.data.images.read_image` takes, or a list of that.

        Returns:
            the result with a mask of exactly the image's size; for a list, a list in its order.

        Raises:
            InputError: an image that cannot be read, or that does not fit into memory.
        """
        if isinstance(image, list | tuple):
            return self._segment_all([read_image(one) for one in image], [_path(o) for o in image])
        return self._segment_all([read_image(image)], [_path(image)])[0]

    def predict_files(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        recursive: bool = True,
        progress: Callable[[int, int], object] | None = None,
        on_error: Callable[[Path, InputError], object] | None = None,
    ) -> Iterator[Segmentation]:
        """Segment files, and the images in folders, one after the other.

        Args:
            paths: files and folders; see `fsanet.data.images.list_images`.
            recursive: search sub-folders too.
            progress: called as ``progress(done, total)`` after each file, read or not.
            on_error: called with the file and the error where an image cannot be read, or does not
                fit into memory; the rest goes on. Without it the error is raised.

        Yields:
            one result a readable image, sorted by path, its ``source`` set.

        Raises:
            InputError: a path that does not exist, a folder without images.
        """
        files = list_images(paths, recursive=recursive)
        done = 0
        for first in range(0, len(files), self.batch_size):
            images, sources = [], []
            chunk = files[first : first + self.batch_size]
            for file in chunk:
                try:
                    images.append(read_image(file))
                    sources.append(file)
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(file, error)
                    done += 1
                    if progress is not None:
                        progress(done, len(files))
            try:
                results = self._segment_all(images, sources)
            except InputError as error:  # too large for the memory
                if on_error is None:
                    raise
                results = []
                for source in sources:
                    on_error(source, error)
                    done += 1
            for result in results:
                yield result
                done += 1
                if progress is not None:
                    progress(done, len(files))

    def masks(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Segment images of one size.

        Args:
            images: uint8 (B, 3, H, W), any device.

        Returns:
            class ids, uint8 (B, H, W), and, if asked for at construction, the probability of the
            chosen class, float32 (B, H, W); both on the CPU.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (B, 3, H, W)"
            )
        batch, _, height, width = images.shape
        # Made before inference mode, so that the caller may write to them.
        ids = torch.empty(batch, height, width, dtype=torch.uint8)
        sure = torch.empty(batch, height, width) if self.confidence else None
        group = self.batch_size
        if self.window is not None and self.stride is not None:
            columns = len(window_starts(width, self.window[1], self.stride[1]))
            group = max(1, self.batch_size // columns)
        try:
            with _evaluating(self.model), torch.inference_mode():
                for first in range(0, batch, group):
                    part = slice(first, first + group)
                    start = 0
                    for piece in scores(
                        images[part],
                        self._forward,
                        window=self.window,
                        stride=self.stride,
                        scales=self.scales,
                        flip=self.flip,
                        batch_size=self.batch_size,
                        probabilities=self.confidence,
                    ):
                        stop = start + piece.shape[2]
                        best = piece.max(dim=1)  # (b, r, W)
                        ids[part, start:stop] = best.indices.to("cpu", torch.uint8)
                        if sure is not None:
                            sure[part, start:stop] = best.values.cpu()
                        start = stop
                        del piece, best  # freed before the next is made
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"an image of {width} x {height} pixels does not fit into the memory of "
                f"{self.device}; use a window, a smaller one, or a smaller batch"
            ) from error
        return ids, sure

    def _segment_all(
        self, images: list[Tensor], sources: Sequence[Path | None]
    ) -> list[Segmentation]:
        same_size: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            same_size.setdefault(image.shape, []).append(index)
        results: dict[int, Segmentation] = {}
        for indices in same_size.values():
            for first in range(0, len(indices), self.batch_size):
                chosen = indices[first : first + self.batch_size]
                ids, sure = self.masks(torch.stack([images[i] for i in chosen]))
                for row, index in enumerate(chosen):
                    results[index] = Segmentation(
                        mask=ids[row].clone(),
                        classes=tuple(self.model.classes),
                        palette=tuple(self.model.palette),
                        image=images[index],
                        confidence=None if sure is None else sure[row].clone(),
                        source=sources[index],
                    )
        return [results[index] for index in range(len(images))]

    def _forward(self, tiles: Tensor, size: tuple[int, int]) -> Tensor:
        """uint8 (b, 3, h', w') -> float32 logits (b, C, h, w) where logits are kept."""
        device = self.device
        inputs = self.model.normalise(tiles.to(device, non_blocking=True))
        # Zero is the mean colour after normalisation.
        missing = (0, size[1] - tiles.shape[3], 0, size[0] - tiles.shape[2])
        inputs = F.pad(inputs, missing)  # (b, 3, h, w)
        autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self.dtype is not None:
            autocast = torch.autocast(device.type, self.dtype)
        with autocast:
            logits = self.model(inputs)
        if logits.shape[-2:] != inputs.shape[-2:]:
            raise ValueError(
                f"the model gives logits of {tuple(logits.shape)} for images of "
                f"{tuple(inputs.shape)}; they must have the size of the images"
            )
        return logits.to("cpu" if self.offload else device, torch.float32)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to what each module was in: frozen batch norms stay frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
        raise InputError(
            f"{name} is {value}; give pixels, or (height, width) in pixels, at least 1"
        )
    return pair[0], pair[1]


def _path(source: object) -> Path | None:
    return Path(source) if isinstance(source, str | os.PathLike) else None
