"""The features of frozen encoder stages, computed once and then trained on in place of images."""

# B batch, C channels of a feature, h x w its grid, H x W labels in pixels

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fsanet.data.augment import PadTo
from fsanet.data.batches import SegmentationData
from fsanet.data.pixels import Region, resized_ids, resized_pixels
from fsanet.errors import InputError, check_range
from fsanet.files import first_process, write_json
from fsanet.inputs import read_json
from fsanet.models.saving import SegmentationNetwork
from fsanet.models.stages import in_evaluation
from fsanet.models.tail import EncoderTail
from fsanet.progress import ConsoleProgress
from fsanet.signals import Interrupted, received
from fsanet.train.semantic import SemanticSegmentation

__all__ = ["FeatureCache"]

_SAMPLES = 8  # images by which the size is estimated and a change of the data is noticed


class Variant(NamedTuple):
    """An image at one scale: its labels uint8 (H, W), and features float16 (h, w, C).

    The features are nested: first those of the image, then those of its mirror image if there are
    any; in each, one tensor per feature that is kept.
    """

    labels: Tensor
    features: list[list[Tensor]]


class FeatureCache(Callback):
    """Computes the features of the frozen stages before the first step, or finds them in the run.

    `features/` in the run folder holds them as float16, for every training image, scale and, with
    `data.flip`, the mirrored image, together with the labels; training maps the file into memory.
    They are computed from whole images, so a crop of them has seen what surrounds it.

    Args:
        task, data: what is trained. The first stages have to be frozen.
        out: run folder.
        scales: factors by which the images are resized.

    Raises:
        InputError: nothing is frozen, or the encoder cannot be cut there; augmentation that
            features cannot have; a scale out of range.
    """

    folder = "features"

    def __init__(self, task: Any, data: Any, out: Path, scales: Sequence[float]) -> None:
        if not isinstance(task, SemanticSegmentation) or not isinstance(data, SegmentationData):
            raise InputError("cache_features is for semantic segmentation and its data modules")
        if not isinstance(task.model, SegmentationNetwork):
            raise InputError(
                f"cache_features: {type(task.model).__name__} is no network of fsanet.models"
            )
        if not task.frozen:
            raise InputError("cache_features: no stage is frozen; give --task.freeze encoder")
        if not scales:
            raise InputError("cache_features: give at least one scale, such as 1.0")
        for scale in scales:
            check_range("cache_features", scale, 0.0, 100.0, above=True)
        if data.photometric:
            raise InputError(
                "cache_features: the colours of cached images cannot be distorted; give "
                "--data.photometric false"
            )
        if data.crop is None and len(scales) > 1:
            raise InputError("cache_features: whole images take one scale; give --data.crop too")
        self.task, self.data, self.path = task, data, out / self.folder
        self.scales = [float(scale) for scale in scales]
        self.tail = EncoderTail(task.model, task.frozen_stages)

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        data = self.data.items(self.data.dataset("train"))
        found = self._fingerprint(data)
        if trainer.is_global_zero and not self._is_whole(found):
            self._compute(data, found)
        trainer.strategy.barrier()
        self._images = self.data.train_transform
        self.task.tail = self.tail
        self.data.train_items = CachedItems(self.path, self.tail)
        self.data.train_transform = CropFeatures(self.data, self.tail.strides)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Leave task and data as they were."""
        if self.data.train_items is not None:
            self.task.tail = self.data.train_items = None
            self.data.train_transform = self._images

    on_exception: Any = teardown

    def _is_whole(self, fingerprint: str) -> bool:
        try:
            index = read_json(self.path / "index.json", "index")
            size = (self.path / "features.bin").stat().st_size
            if index["fingerprint"] != fingerprint or index["bytes"] != size:
                return False
            return CachedItems(self.path, self.tail).starts[-1] == size
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _fingerprint(self, items: Any) -> str:
        """Hash all that the features depend on; of the images, a few."""
        data, model = self.data, self.task.model
        settings = [self.scales, data.flip, data.crop, data.scaling.resize, data.fill]
        settings += [data.ignore_index, self.tail.kept, model.mean, model.std, model.bgr]
        settings += [len(items)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for module in self.task.frozen:
            for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                digest.update(value.detach().cpu().contiguous().reshape(-1).numpy().data)
        for index in _samples(items):
            for part in items[index]:
                digest.update(part.as_subclass(Tensor).contiguous().numpy().data)
        return digest.hexdigest()

    def _compute(self, items: Any, fingerprint: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("index.json", "features.bin"):  # a pipe would wait for a reader
            (self.path / name).unlink(missing_ok=True)
        sizes = [self._sizes(tuple(items[index][1].shape)) for index in _samples(items)]
        mirrors = 1 + self.data.flip
        one = [sum(_bytes(h, w, self.tail, mirrors) for h, w in found) for found in sizes]
        total = sum(one) / len(one) * len(items)
        free = shutil.disk_usage(self.path).free
        needed = f"the features of {len(items)} images take about {total / 1e9:.2f} GB"
        if total > free:
            raise InputError(
                f"{self.path}: {needed}, and {free / 1e9:.2f} GB are free; free some space, or "
                "give fewer scales"
            )
        print(f"{needed}, in {self.path}", file=sys.stderr, flush=True)
        sizes = []
        with (
            (self.path / "features.bin").open("wb") as stream,
            ConsoleProgress("images", shown=first_process()) as progress,
            in_evaluation(self.task.model),
            torch.no_grad(),
        ):
            task = progress.add_task("frozen features", total=len(items))
            for index in range(len(items)):
                image, mask = items[index]
                sizes.append(list(self._write(stream, image, mask)))
                progress.update(task, advance=1)
                number = received()
                if number is not None:
                    raise Interrupted(number)
            stream.flush()
            os.fsync(stream.fileno())
            length = stream.tell()
        index_of = {"fingerprint": fingerprint, "bytes": length, "mirrored": self.data.flip}
        write_json(self.path / "index.json", index_of | {"sizes": sizes})  # last: now it is whole

    def _sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Sizes (H, W) of an image at all scales, padding included."""
        least = self.data.crop or (1, 1)
        scaled = [self.data.scaling.scaled_size(*size, scale) for scale in self.scales]
        return [(max(h, least[0]), max(w, least[1])) for h, w in scaled]

    def _write(self, stream: BinaryIO, image: Any, mask: Any) -> Iterator[tuple[int, int]]:
        """Write all variants of an image; their sizes (H, W)."""
        data, model = self.data, self.task.model
        image, mask = image.as_subclass(Tensor), mask.as_subclass(Tensor)
        for scale in self.scales:
            size = data.scaling.scaled_size(mask.shape[0], mask.shape[1], scale)
            whole = Region(0, 0, *size)
            pixels = tv_tensors.Image(resized_pixels(image, size, whole))
            ids = tv_tensors.Mask(resized_ids(mask, size, whole).to(torch.uint8))
            if data.crop is not None:
                pixels, ids = PadTo(data.crop, data.fill, data.ignore_index)(pixels, ids)
            height, width = ids.shape
            stream.write(ids.contiguous().numpy().data)
            stream.write(bytes(height * width % 2))  # float16 starts at even bytes
            views = [pixels, pixels.flip(-1)] if data.flip else [pixels]
            batch = torch.stack([view.as_subclass(Tensor) for view in views])
            features = model.encoder_features(model.normalise(batch.to(self.task.device)))
            for number in range(len(views)):
                grids = self.tail.grids(height, width)
                for kept, grid in zip(self.tail.kept, grids, strict=True):
                    feature = features[kept][number].permute(1, 2, 0)  # (h, w, C)
                    if feature.shape != grid:
                        raise InputError(
                            f"cache_features: an image of {height} x {width} pixels has features "
                            f"of {tuple(feature.shape)}, not {grid}; choose scales and a crop that "
                            "make its sides multiples of their strides"
                        )
                    half = feature.to("cpu", torch.float16).contiguous()
                    if not half.isfinite().all():
                        raise InputError(
                            "cache_features: the features exceed the range of float16; freeze "
                            "another number of stages, or train without a cache"
                        )
                    stream.write(half.numpy().data)
            yield height, width


class CachedItems(Dataset[tuple[list[Variant], None]]):
    """The items of a `FeatureCache`: all variants of an image, as views of a mapped file."""

    def __init__(self, folder: Path, tail: EncoderTail) -> None:
        index = read_json(folder / "index.json", "index")
        self.file, self.tail = folder / "features.bin", tail
        self.sizes: list[list[tuple[int, int]]] = index["sizes"]  # (H, W) of items and scales
        self.mirrors = 1 + index["mirrored"]
        self.starts = [0]
        for sizes in self.sizes:
            length = sum(_bytes(h, w, tail, self.mirrors) for h, w in sizes)
            self.starts.append(self.starts[-1] + length)
        self._content: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_content": None}  # a process maps the file itself

    def __getitem__(self, index: int) -> tuple[list[Variant], None]:
        if self._content is None:
            size = self.starts[-1]
            self._content = torch.from_file(
                str(self.file), shared=False, size=size, dtype=torch.uint8
            )
        variants, place = [], self.starts[index]
        for height, width in self.sizes[index]:
            labels = self._content[place : place + height * width].view(height, width)
            place += height * width + height * width % 2
            features: list[list[Tensor]] = []
            for _ in range(self.mirrors):
                features.append([])
                for grid in self.tail.grids(height, width):
                    part = self._content[place : place + 2 * math.prod(grid)]
                    features[-1].append(part.view(torch.float16).view(grid))
                    place += part.numel()
            variants.append(Variant(labels, features))
        return variants, None


class CropFeatures(v2.Transform):
    """Draws a scale, mirroring and a crop that starts at a multiple of all strides.

    Gives the features of the crop as one vector, for `EncoderTail.unpack`, and its labels.
    """

    def __init__(self, data: SegmentationData, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides, self.scaling = strides, copy.copy(data.scaling)
        self.scaling.align = max(strides)

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        variants, _ = inputs
        variant = variants[int(torch.randint(len(variants), ()))]
        mirrored = int(torch.randint(len(variant.features), ()))
        labels = variant.labels.flip(1) if mirrored else variant.labels  # (H, W)
        top, left, height, width = self.scaling.region((labels.shape[0], labels.shape[1]), labels)
        parts = []
        for feature, stride in zip(variant.features[mirrored], self.strides, strict=True):
            rows = slice(top // stride, -(-(top + height) // stride))
            columns = slice(left // stride, -(-(left + width) // stride))
            parts.append(feature[rows, columns].reshape(-1))
        return torch.cat(parts), labels[top : top + height, left : left + width].clone()


def _bytes(height: int, width: int, tail: EncoderTail, mirrors: int) -> int:
    """Bytes of an image at one scale: labels, and the features of all mirror images."""
    values = sum(map(math.prod, tail.grids(height, width)))
    return height * width + height * width % 2 + 2 * values * mirrors


def _samples(items: Any) -> list[int]:
    return sorted({len(items) * number // _SAMPLES for number in range(_SAMPLES)})
