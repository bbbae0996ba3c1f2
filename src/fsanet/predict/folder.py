"""Segmentations of many files, written to a folder that mirrors where they came from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsanet.convert import load_model
from fsanet.errors import InputError
from fsanet.files import model_summary
from fsanet.predict.bulk import predict_all
from fsanet.predict.bulk_state import Item
from fsanet.predict.predictor import Predictor
from fsanet.predict.processes import start_processes
from fsanet.predict.result import Segmentation

__all__ = ["predict_to_folder", "predictor_settings"]


def predict_to_folder(
    model: nn.Module | str | os.PathLike[str],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
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
    recursive: bool = True,
    alpha: float = 0.5,
    legend: bool = True,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Segment files and folders, and write what came out.

    For each image: mask PNG (palette; pixel values are class ids), overlay PNG, JSON summary, with
    confidence a PNG of it, too. Sub-folders are kept, so that equal names do not collide. At the
    end ``summary.json`` of all images. An image that cannot be read is noted, the rest goes on.
    With several processes each image is predicted by one of them.

    Args:
        model: the network, or the folder ``save_pretrained`` or a training run has left.
        paths: image files and folders of images.
        out: folder to write to, created if need be; not one of the input folders.
        window, stride, scales, flip, batch_size, dtype, offload, confidence: see
            `fsanet.predict.predictor.Predictor`.
        device: where a single process runs; by default where the model is.
        recursive: search sub-folders too.
        alpha, legend: see `fsanet.predict.result.Segmentation.overlay`.
        resume: keep what an earlier run has finished, with the same model and settings.
        accelerator, devices, num_nodes, strategy: processes that share the work; see
            `fsanet.predict.processes.start_processes`.
        progress: how far all processes are: a bar on a terminal, else a line each half minute.

    Returns:
        what ``summary.json`` holds: "images" (number done), "failed" (list of "image" and
        "error"), "classes" with pixels and fraction over all images, "settings", "model"; and of
        this run alone "done_before", "processes", "seconds", "images_per_second", "versions".

    Raises:
        InputError: no image, no model, a setting that makes no sense, an unwritable folder, a
            process that failed, results of another model or other settings with ``resume``.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; give the weight of the colours, 0 to 1")
    processes = start_processes(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        device=device,
    )

    def make_writer() -> _SegmentationWriter:
        predictor = Predictor(
            load_model(model, task="semantic"),
            window=window,
            stride=stride,
            scales=scales,
            flip=flip,
            batch_size=batch_size,
            device=processes.device,
            dtype=dtype,
            offload=offload,
            confidence=confidence,
        )
        return _SegmentationWriter(predictor, alpha=alpha, legend=legend)

    return predict_all(
        make_writer,
        paths,
        Path(out),
        processes=processes,
        recursive=recursive,
        resume=resume,
        progress=progress,
    )


def predictor_settings(predictor: Predictor) -> dict[str, Any]:
    """What class ids depend on besides the network, as values for JSON."""
    dtype = predictor.dtype
    return {
        "window": predictor.window,
        "stride": predictor.stride,
        "scales": predictor.scales,
        "flip": predictor.flip,
        "batch_size": predictor.batch_size,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }


class SegmentsFiles:
    """The half of a `fsanet.predict.bulk_state.Writer` that every writer of a `Predictor` has."""

    predictor: Predictor

    @property
    def device(self) -> torch.device:
        return self.predictor.device

    def predict(
        self, files: Sequence[Path], on_error: Callable[[Path, InputError], object]
    ) -> Iterator[Segmentation]:
        return self.predictor.predict_files(files, on_error=on_error)


class _SegmentationWriter(SegmentsFiles):
    """Masks, overlays, classes' areas; see `fsanet.predict.bulk_state.Writer`."""

    reserved: tuple[str, ...] = ()

    def __init__(self, predictor: Predictor, *, alpha: float, legend: bool) -> None:
        self.predictor = predictor
        self.alpha, self.legend = alpha, legend
        self.batch_size = predictor.batch_size
        self.settings = predictor_settings(predictor) | {
            "confidence": predictor.confidence,
            "alpha": alpha,
            "legend": legend,
        }
        self.model = model_summary(predictor.model) | {"num_classes": len(predictor.model.classes)}

    def save(
        self, result: Segmentation, folder: Path, stem: str, extra: dict[str, Any]
    ) -> dict[str, int]:
        result.save(folder, stem, alpha=self.alpha, legend=self.legend, extra=extra)
        return result.counts()

    def digest(self, record: dict[str, Any]) -> dict[str, int]:
        """Pixels by class."""
        return {entry["name"]: entry["pixels"] for entry in record["classes"]}

    def summary(self, out: Path, digests: Sequence[tuple[Item, dict[str, int]]]) -> dict[str, Any]:
        pixels: Counter[str] = Counter()
        for _, counts in digests:
            pixels.update(counts)
        everything = sum(pixels.values())
        network = self.predictor.model
        return {
            "pixels": everything,
            "classes": [
                {
                    "id": index,
                    "name": name,
                    "colour": list(network.palette[index]),
                    "pixels": pixels[name],
                    "fraction": pixels[name] / everything if everything else 0.0,
                }
                for index, name in enumerate(network.classes)
            ],
        }
