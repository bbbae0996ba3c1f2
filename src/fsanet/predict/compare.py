"""A network and its exported file in several backends: size, time, memory, and the same classes?

Each backend runs in a fresh process, because their libraries conflict when loaded together, and so
that a backend that fails does not end the comparison: its row gives the reason.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from fsanet.convert import load_model
from fsanet.convert.saved import network_folder
from fsanet.cost import Stage, Watch, no_watch, peak_resident_memory, run_isolated
from fsanet.data.datasets.base import check_size
from fsanet.data.datasets.folder import mask_of
from fsanet.data.images import list_images, read_image
from fsanet.data.masks import IGNORE, check_ids, read_mask
from fsanet.errors import InputError
from fsanet.metrics.confusion import percent, scores_of
from fsanet.models.exported import ExportedNetwork, import_extra
from fsanet.models.segmenter import Segmenter

__all__ = ["Row", "compare_backends", "table"]

_SECONDS = 1800.0  # that a backend may take
_CALIBRATION = 16  # images that int8 quantisation sees
_REFERENCE = "PyTorch"


@dataclass(frozen=True)
class Row:
    """What was measured of a backend.

    Attributes:
        name: of the backend.
        file_bytes: size of the weights or the exported file.
        load: seconds to open the network and predict the first image, imports included.
        milliseconds: median time of an image afterwards, from uint8 pixels to class ids.
        peak: bytes by which the peak resident memory of the process grew (on a GPU, the most memory
            allocated there); None where that is not known.
        agreement: fraction of pixels whose class is that of PyTorch in float32.
        miou: mIoU on the images that have labels; nan if there are none.
        problem: why there are no figures.
    """

    name: str
    file_bytes: int | None = None
    load: float = math.nan
    milliseconds: float = math.nan
    peak: int | None = None
    agreement: float = math.nan
    miou: float = math.nan
    problem: str | None = None


def compare_backends(
    model: str | os.PathLike[str],
    onnx_file: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    watch: Watch = no_watch,
) -> list[Row]:
    """Measure all backends on the same images, each whole.

    Labels of an image ``X/images/NAME.jpg`` are those in ``X/masks/NAME.png``, if it is there. An
    int8 version of the file is made, and calibrated on the first 16 images, only if there are
    labels to measure it by.

    Args:
        model: run folder, model folder or hub id.
        onnx_file: its export.
        images: image files, and folders of images.
        watch: is notified of each backend.

    Raises:
        InputError: no image, one that cannot be read, or a label that does not fit its image.
    """
    files = list_images(images)
    network: Any = load_model(model, task="semantic")
    labels = {}
    for index, file in enumerate(files):
        sides = tuple(read_image(file).shape[1:])
        mask = mask_of(file)
        if mask is not None:
            labels[index] = check_ids(read_mask(mask), mask, network.num_classes, IGNORE)
            check_size(mask, tuple(labels[index].shape), file, sides)
    source = network_folder(model) / "model.safetensors"
    size = source.stat().st_size if source.is_file() else None
    backends: dict[str, int | None] = {
        _REFERENCE: size,
        "PyTorch, compiled": size,
        "PyTorch, bfloat16": size,
        "ONNX Runtime": Path(onnx_file).stat().st_size,
        "OpenVINO": Path(onnx_file).stat().st_size,
    }
    if labels:
        backends["ONNX Runtime, int8"] = None
    if torch.cuda.is_available():
        backends |= {
            "PyTorch, CUDA": size,
            "PyTorch, CUDA float16": size,
            "TensorRT": Path(onnx_file).stat().st_size,
        }
    rows: list[Row] = []
    step = watch("backends", len(backends))
    with tempfile.TemporaryDirectory() as folder:
        for name, bytes_ in backends.items():
            place = Path(folder, str(len(rows)))
            place.mkdir()
            outcome = run_isolated(
                measure_backend,
                name,
                os.fspath(model),
                os.fspath(onnx_file),
                [str(file) for file in files],
                str(place),
                memory=None,
                threads=torch.get_num_threads(),
            )
            found = {"file_bytes": bytes_} | outcome.found
            if outcome.problem is None:
                found |= _judge(Path(folder, "0"), place, files, labels, network)
            rows.append(Row(name, problem=outcome.problem, **found))
            step(name)
    return rows


def measure_backend(
    name: str, model: str, onnx_file: str, images: list[str], place: str
) -> Iterator[Stage | dict[str, Any]]:
    """Predict images with a backend; saves the class ids of each as ``INDEX.npy`` in ``place``."""
    yield Stage("predict", _SECONDS)
    times: list[float] = []
    found: dict[str, Any] = {}
    if name.endswith("int8"):
        onnx_file = _quantised(onnx_file, images[:_CALIBRATION], place)
        found["file_bytes"] = Path(onnx_file).stat().st_size
    pixels = [read_image(file)[None] for file in images]

    def run() -> None:
        start = time.perf_counter()
        segmenter = _open(name, model, onnx_file)
        segmenter.masks(pixels[0])
        found["load"] = time.perf_counter() - start
        for size in {one.shape for one in pixels[1:]} - {pixels[0].shape}:
            segmenter.masks(next(one for one in pixels if one.shape == size))  # compilers
        for _ in range(max(1, 5 // len(pixels))):
            for index, image in enumerate(pixels):
                start = time.perf_counter()
                ids = segmenter.masks(image).ids
                times.append(time.perf_counter() - start)
                np.save(Path(place, f"{index}.npy"), ids[0].numpy())

    try:
        found["peak"] = peak_resident_memory(run)
    except InputError:
        if times or "load" in found:
            raise  # an error of the run itself
        found["peak"] = None
        run()
    if "CUDA" in name:
        found["peak"] = torch.cuda.max_memory_allocated()
    yield found | {"milliseconds": 1000 * statistics.median(times)}


def _open(name: str, model: str, onnx_file: str) -> Segmenter:
    runtimes: dict[str, Callable[[], ExportedNetwork]] = {
        "ONNX Runtime": lambda: ExportedNetwork(onnx_file),
        "ONNX Runtime, int8": lambda: ExportedNetwork(onnx_file),
        "OpenVINO": lambda: ExportedNetwork(onnx_file, "openvino"),
        "TensorRT": lambda: ExportedNetwork(onnx_file, "tensorrt"),
    }
    if name in runtimes:
        return Segmenter(runtimes[name]())
    network = load_model(model)
    if name.endswith("compiled"):
        network.compile()
    types = {"PyTorch, bfloat16": torch.bfloat16, "PyTorch, CUDA float16": torch.float16}
    device = "cuda" if "CUDA" in name else "cpu"
    return Segmenter(network, device=device, dtype=types.get(name))


def _quantised(onnx_file: str, images: Sequence[str], place: str) -> str:
    """The file with its convolutions in int8, calibrated on images."""
    quantization = import_extra("onnxruntime.quantization", "onnx")
    network = ExportedNetwork(onnx_file)

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            file = next(self.left, None)
            if file is None:
                return None
            x = network.normalise(read_image(file)[None])
            return {"image": network.as_taken(x).numpy()}

    target = str(Path(place, "int8.onnx"))
    quantization.quantize_static(
        onnx_file, target, Images(), op_types_to_quantize=["Conv"], per_channel=True
    )
    return target


def _judge(
    reference: Path,
    place: Path,
    files: Sequence[Path],
    labels: dict[int, Tensor],
    network: Any,
) -> dict[str, float]:
    """Agreement with the reference, and mIoU."""
    same = pixels = 0
    count = network.num_classes
    confusion = torch.zeros(count, count, dtype=torch.long)
    for index in range(len(files)):
        ids = torch.from_numpy(np.load(place / f"{index}.npy"))  # (H, W)
        same += int((ids == torch.from_numpy(np.load(reference / f"{index}.npy"))).sum())
        pixels += ids.numel()
        if index in labels:
            confusion += multiclass_confusion_matrix(ids, labels[index], count, ignore_index=IGNORE)
    found = {"agreement": same / pixels}
    if labels:
        found["miou"] = scores_of(confusion, network.classes).miou
    return found


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as text, under a header."""
    header = ["backend", "file MB", "load s", "median ms", "peak MB", "agreement %", "mIoU %"]
    lines = [header]
    for row in rows:
        if row.problem is not None:
            lines.append([row.name, _number(row.file_bytes, 1e6), row.problem, "", "", "", ""])
            continue
        lines.append(
            [
                row.name,
                _number(row.file_bytes, 1e6),
                f"{row.load:.2f}",
                f"{row.milliseconds:.1f}",
                _number(row.peak, 1e6),
                f"{100 * row.agreement:.3f}",
                percent(row.miou),
            ]
        )
    return lines


def _number(value: int | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.1f}"
