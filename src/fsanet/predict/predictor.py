"""Prediction: whole image, sliding window, several scales, mirrored; of one image or several.

Shapes: B images, C classes, (H, W) an image, (h, w) a window.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from fsanet.data.images import ImageSource, list_images, read_image
from fsanet.errors import InputError
from fsanet.models.segmenter import Segmenter
from fsanet.predict.result import Segmentation

__all__ = ["Predictor", "Segmentation"]


class Predictor(Segmenter):
    """Runs a segmentation network on images of any size.

    The arguments are those of `fsanet.models.segmenter.Segmenter`.
    """

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


def _path(source: object) -> Path | None:
    return Path(source) if isinstance(source, str | os.PathLike) else None
