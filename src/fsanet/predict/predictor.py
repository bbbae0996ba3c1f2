"""Predictors: images in, results out.

`Predictor` segments semantically, `Detector` finds instances; both have the same methods.

Shapes: B images, (H, W) image.
"""

from __future__ import annotations

import inspect
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from fsanet.data.images import ImageSource, list_images, read_image
from fsanet.errors import InputError
from fsanet.files import model_summary, write_json
from fsanet.models.folding import Folding
from fsanet.models.segmenter import Segmenter, check_settings, evaluating
from fsanet.predict.result import Instances, Segmentation

__all__ = ["Detector", "ImagePredictor", "Predictor", "check_options", "make_predictor"]

Result = TypeVar("Result", Segmentation, Instances)
OnError = Callable[[Path, InputError], object]


class ImagePredictor(ABC, Generic[Result]):
    """What `Predictor` and `Detector` have in common: reading images, one or many.

    Attributes:
        model: the network.
        batch_size: files that are predicted together.
        captions: name of the option of ``Result.save`` that writes class names into the overlay.
        reserved: file names without suffix that no image in an output folder may have.
    """

    model: Any
    batch_size: int = 1
    captions: ClassVar[str]
    reserved: ClassVar[tuple[str, ...]] = ("summary", "annotations", "tasks")

    @overload
    def __call__(self, image: ImageSource) -> Result: ...
    @overload
    def __call__(self, image: list[ImageSource] | tuple[ImageSource, ...]) -> list[Result]: ...
    def __call__(
        self, image: ImageSource | list[ImageSource] | tuple[ImageSource, ...]
    ) -> Result | list[Result]:
        """Predict one image, or several given as a list or tuple.

        Args:
            image: anything `fsanet.data.images.read_image` accepts, or a list of that.

        Returns:
            The result, at exactly the size of the image; for a list, the results in its order.

        Raises:
            InputError: an image is unreadable, or does not fit into memory.
        """
        images = list(image) if isinstance(image, list | tuple) else [image]
        sources = [Path(one) if isinstance(one, str | os.PathLike) else None for one in images]
        results = self._predict([read_image(one) for one in images], sources)
        return results if isinstance(image, list | tuple) else results[0]

    def predict_files(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        recursive: bool = True,
        on_error: OnError | None = None,
    ) -> Iterator[Result]:
        """Predict image files, ``batch_size`` of them at a time.

        Args:
            paths: files and folders; see `fsanet.data.images.list_images`.
            recursive: search sub-folders too.
            on_error: called with the file and the error if an image is unreadable or does not fit
                into memory; the remaining files are still predicted. By default the error is
                raised.

        Yields:
            One result per readable image, sorted by path, with its ``source`` set.

        Raises:
            InputError: a path does not exist, or a folder contains no image.
        """
        files = list_images(paths, recursive=recursive)
        for first in range(0, len(files), self.batch_size):
            yield from self.predict_batch(files[first : first + self.batch_size], on_error)

    def predict_batch(
        self,
        files: Sequence[Path],
        on_error: OnError | None = None,
        read: Callable[[Path], Tensor] = read_image,
    ) -> list[Result]:
        """Predict files together, read by ``read``; see `predict_files`."""
        images: dict[Path, Tensor] = {}
        try:
            for file in files:
                try:
                    images[file] = read(file)
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(file, error)
            return self._predict(list(images.values()), list(images))
        except InputError as error:  # out of memory
            if on_error is None:
                raise
            for file in images:
                on_error(file, error)
            return []

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Evaluation mode, in which the network is not changed; several threads may predict."""
        with evaluating(self.model):
            yield

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The options that results depend on, as values for JSON."""

    def describe_model(self) -> dict[str, Any]:
        """The network's name, size and fingerprint, as values for JSON."""
        return model_summary(self.model)

    def record(self, result: Result) -> dict[str, Any]:
        """What `content` needs of a result besides its ``summary()``, as values for JSON."""
        return {}

    @abstractmethod
    def content(self, record: dict[str, Any]) -> Any:
        """What `summarise` needs from the JSON file of an image.

        Raises:
            ValueError, KeyError, TypeError or AttributeError: the file is damaged.
        """

    @abstractmethod
    def summarise(self, contents: Iterable[Any], out: Path) -> dict[str, Any]:
        """Summarise all images, as values for JSON.

        Args:
            contents: the `content` of each image, in the order of the images.
            out: folder for further files about all images.
        """

    @abstractmethod
    def _predict(self, images: list[Tensor], sources: Sequence[Path | None]) -> list[Result]:
        """Predict uint8 images (3, H, W) of any sizes."""


class Predictor(Segmenter, ImagePredictor[Segmentation]):
    """Segments images of any size.

    The arguments are those of `fsanet.models.segmenter.Segmenter`. Batch norms are folded into
    convolutions, see `fsanet.models.folding.Folding`.
    """

    captions = "legend"

    _prepared: nn.Module | None = None

    @contextmanager
    def prepared(self) -> Iterator[None]:
        with super().prepared():
            self._prepared = self._folding.network()
            try:
                yield
            finally:
                self._prepared = None

    def network(self) -> nn.Module:
        return self._folding.network() if self._prepared is None else self._prepared

    @cached_property
    def _folding(self) -> Folding:
        return Folding(self.model)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "window": self.window,
            "stride": self.stride,
            "scales": self.scales,
            "flip": self.flip,
            "batch_size": self.batch_size,
            "dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch."),
            "confidence": self.confidence,
            **({"entropy": True} if self.entropy else {}),
        }

    def describe_model(self) -> dict[str, Any]:
        return super().describe_model() | {"num_classes": len(self.model.classes)}

    def content(self, record: dict[str, Any]) -> list[int]:
        names = [entry["name"] for entry in record["classes"]]
        pixels = [entry["pixels"] for entry in record["classes"]]
        if names != list(self.model.classes) or not _whole_numbers(pixels):
            raise ValueError("not the classes of this model")
        return pixels

    def summarise(self, contents: Iterable[list[int]], out: Path) -> dict[str, Any]:
        """Count the pixels of each class."""
        pixels = [0] * len(self.model.classes)
        for content in contents:
            pixels = [before + more for before, more in zip(pixels, content, strict=True)]
        total = sum(pixels)
        return {
            "pixels": total,
            "classes": [
                {
                    "id": index,
                    "name": name,
                    "colour": list(self.model.palette[index]),
                    "pixels": pixels[index],
                    "fraction": pixels[index] / total if total else 0.0,
                }
                for index, name in enumerate(self.model.classes)
            ],
        }

    def _predict(self, images: list[Tensor], sources: Sequence[Path | None]) -> list[Segmentation]:
        results: dict[int, Segmentation] = {}
        for shape in dict.fromkeys(image.shape for image in images):
            chosen = [index for index, image in enumerate(images) if image.shape == shape]
            # Large images come alone: they are not copied.
            one = len(chosen) == 1
            batch = images[chosen[0]][None] if one else torch.stack([images[i] for i in chosen])
            masks, confidence, entropy = self.masks(batch)  # (B, H, W), and (B,)
            kept = (lambda rows: rows) if one else Tensor.clone
            for row, index in enumerate(chosen):
                results[index] = Segmentation(
                    mask=kept(masks[row]),
                    classes=tuple(self.model.classes),
                    palette=tuple(self.model.palette),
                    image=images[index],
                    confidence=None if confidence is None else kept(confidence[row]),
                    source=sources[index],
                    entropy=None if entropy is None else float(entropy[row]),
                )
        return [results[index] for index in range(len(images))]


class Detector(ImagePredictor[Instances]):
    """Finds instances in images of any size.

    Args:
        model: a `fsanet.models.MaskRcnnFsa`. Each prediction puts it into evaluation mode and
            restores the previous mode afterwards.
        score: lowest score of an instance, 0 to 1.
        device: where to run the model, which is moved there; by default where it is.

    Raises:
        InputError: a score out of range.

    >>> from fsanet.models import MaskRcnnFsa
    >>> model = MaskRcnnFsa("resnet10t", num_classes=2, positions=("p4",), fpn_channels=16,
    ...                     box_channels=16, mask_channels=16, min_size=64, max_size=64)
    >>> found = Detector(model)(torch.zeros(3, 48, 64, dtype=torch.uint8))
    >>> tuple(found.image.shape)
    (3, 48, 64)
    """

    captions = "names"
    reserved = (*ImagePredictor.reserved, "results")

    def __init__(
        self,
        model: nn.Module,
        *,
        score: float = 0.5,
        device: torch.device | str | None = None,
    ) -> None:
        check_options({"score": score})
        self.model = cast(Any, model if device is None else model.to(device))
        self.score = score

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def settings(self) -> dict[str, Any]:
        return {"score": self.score}

    def record(self, result: Instances) -> dict[str, Any]:
        """Entries of a COCO results file; image ids are known once every image has been read."""
        entries = result.results(0)
        return {"results": [{k: v for k, v in e.items() if k != "image_id"} for e in entries]}

    def content(self, record: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        results = record["results"]
        for entry in results:
            numbers = [entry["score"], *entry["bbox"]]
            size, counts = entry["segmentation"]["size"], entry["segmentation"]["counts"]
            right = (
                entry["category_id"] in self.model.category_ids
                and len(numbers) == 5
                and all(math.isfinite(number) for number in numbers)
                and _whole_numbers(size)
                and isinstance(counts, str)
            )
            if not right:
                raise ValueError("not an entry of a COCO results file")
        return record["image"], results

    def summarise(
        self, contents: Iterable[tuple[str, list[dict[str, Any]]]], out: Path
    ) -> dict[str, Any]:
        """Count the instances of each class, and write COCO's ``results.json``."""
        files, results = [], []
        for number, (image, entries) in enumerate(contents, start=1):
            files.append({"id": number, "image": image})
            results += [{"image_id": number} | entry for entry in entries]
        write_json(out / "results.json", results)
        counts = Counter(entry["category_id"] for entry in results)
        return {
            "files": files,
            "instances": len(results),
            "classes": [
                {"category_id": category, "name": name, "instances": counts[category]}
                for category, name in zip(self.model.category_ids, self.model.classes, strict=True)
            ],
            "score": self.score,
        }

    def _predict(self, images: list[Tensor], sources: Sequence[Path | None]) -> list[Instances]:
        was_training = self.model.training
        self.model.eval()
        try:
            found = [self.model.detect([image.to(self.device)])[0] for image in images]
        except torch.OutOfMemoryError as error:
            raise InputError(f"an image does not fit into the memory of {self.device}") from error
        finally:
            self.model.train(was_training)
        return [
            Instances(
                **{name: value.cpu() for name, value in instances.items()},
                classes=self.model.classes,
                category_ids=self.model.category_ids,
                image=image,
                source=source,
            ).above(self.score)
            for instances, image, source in zip(found, images, sources, strict=True)
        ]


def _whole_numbers(values: Iterable[object]) -> bool:
    """Whether all values are integers from 0, as read from JSON."""
    return all(type(value) is int and value >= 0 for value in values)


def check_options(options: Mapping[str, Any]) -> None:
    """Check options of a `Predictor` or a `Detector` before there is a model.

    Raises:
        InputError: a value out of range.
    """
    score = options.get("score", 0.5)
    if not 0 <= score <= 1:
        raise InputError(f"score is {score}; give a number from 0 to 1")
    names = options.keys() & inspect.signature(check_settings).parameters.keys()
    check_settings(**{name: options[name] for name in names})


def make_predictor(model: nn.Module, **options: Any) -> Predictor | Detector:
    """Make the predictor for a network: a `Detector` for `MaskRcnnFsa`, else a `Predictor`.

    Args:
        model: the network.
        options: arguments of that predictor.

    Raises:
        InputError: an option of the other predictor, or a value out of range.
    """
    is_detector = hasattr(model, "detect")  # like MaskRcnnFsa
    other = inspect.signature(Predictor if is_detector else Detector).parameters
    own = inspect.signature(Detector if is_detector else Predictor).parameters
    task = "semantic segmentation" if is_detector else "instance segmentation"
    for name in options.keys() & other.keys() - own.keys():
        if options.pop(name) != other[name].default:
            raise InputError(f"{name}: for {task} only; {type(model).__name__} is for another task")
    if is_detector:
        return Detector(model, **options)
    return Predictor(model, **options)
