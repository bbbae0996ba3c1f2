"""Prediction of a folder against its network alone, and where the rest of the time goes."""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsanet.bench.measure import Settings, torch_threads
from fsanet.convert import load_model
from fsanet.cost import Clock, Quartiles, Timed, Watch, no_watch, ratios, time_calls
from fsanet.data.images import image_size, list_images, read_image
from fsanet.errors import InputError
from fsanet.files import environment
from fsanet.models.segmenter import highest
from fsanet.predict.folder import predict_folder
from fsanet.predict.predictor import Predictor, make_predictor
from fsanet.predict.result import Segmentation

__all__ = ["STEPS", "PredictionReport", "PredictionSettings", "compare_prediction"]

STEPS = ("decode", "preprocess", "network", "argmax", "draw", "encode + write")
_STAGED = 8  # images of which each step is timed by itself


@dataclass(frozen=True, kw_only=True)
class PredictionSettings(Settings):
    """What is predicted, and how; ``batch`` images at a time.

    Attributes:
        model: a saved network for semantic segmentation.
        images: image files and folders of images.
    """

    model: str
    images: tuple[str, ...]
    rounds: int = 5
    seconds: float = 600.0


@dataclass(frozen=True)
class PredictionReport:
    """Times of prediction, with the settings and the machine they were measured with.

    Attributes:
        images: number of images.
        network: seconds of the network on all of them.
        pipeline: seconds of `predict_folder` on all of them, files written.
        ratio: images a second of the pipeline over those of the network, round by round.
        steps: seconds per image of each step by itself, in the main thread.
        float32: seconds of the network in float32, if it was measured in another type.
        agreement: fraction of pixels with the class that they have in float32, likewise.
    """

    settings: PredictionSettings
    environment: dict[str, str]
    images: int
    network: Quartiles
    pipeline: Quartiles
    ratio: Quartiles
    steps: dict[str, float]
    float32: Quartiles | None = None
    agreement: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return asdict(self)


def compare_prediction(
    settings: PredictionSettings, *, watch: Watch = no_watch
) -> PredictionReport:
    """Time the network alone and the whole prediction in interleaved rounds.

    The network alone gets batches of the same sizes, normalised and on its device, and its logits
    are thrown away; images of one size are represented by one of them.

    Raises:
        InputError: no network for semantic segmentation, no image, or one that cannot be read.
    """
    if settings.dtype == "float64":
        raise InputError("dtype=float64: prediction computes in float32 or half precision")
    files = list_images(settings.images)
    half = None if settings.dtype == "float32" else settings.torch_dtype
    with torch_threads(settings.threads), tempfile.TemporaryDirectory() as out:
        model = load_model(settings.model)
        options: dict[str, Any] = {"batch_size": settings.batch, "device": settings.device}
        predictor, reference = make_predictor(model, dtype=half, **options), None
        if not isinstance(predictor, Predictor):
            raise InputError(f"{settings.model}: --predict is for semantic segmentation")
        passes = _passes(predictor, files)

        def pipeline() -> None:
            summary = predict_folder(model, files, out, progress=False, dtype=half, **options)
            for failed in [] if summary is None else summary["failed"]:
                raise InputError(failed["error"])

        calls = {"network": Timed(partial(_run, predictor, passes)), "pipeline": Timed(pipeline)}
        if half is not None:
            reference = Predictor(model, **options)
            calls["float32"] = Timed(partial(_run, reference, passes))
        taken = time_calls(
            calls,
            device=torch.device(settings.device),
            rounds=settings.rounds,
            seconds=settings.seconds,
            watch=watch,
        )
        agreement = None
        if reference is not None:
            some = files[:_STAGED]
            pairs = [(predictor(file).mask, reference(file).mask) for file in some]
            same = [(mask == expected).double().mean() for mask, expected in pairs]
            agreement = float(torch.stack(same).mean())
        return PredictionReport(
            settings,
            environment(settings.device),
            len(files),
            Quartiles.of(list(taken["network"].values())),
            Quartiles.of(list(taken["pipeline"].values())),
            Quartiles.of(ratios(taken["network"], taken["pipeline"])),
            _time_steps(predictor, files[:_STAGED], out),
            Quartiles.of(list(taken["float32"].values())) if reference is not None else None,
            agreement,
        )


def _passes(predictor: Predictor, files: list[Path]) -> list[tuple[Tensor, int]]:
    """Normalised batches, (b, 3, H, W), each with how many times it is to be run."""
    size = predictor.batch_size
    times: Counter[tuple[tuple[int, int] | None, int]] = Counter()  # by size and number of images
    examples: dict[tuple[int, int] | None, Path] = {}
    for first in range(0, len(files), size):
        found = {file: image_size(file) for file in files[first : first + size]}
        times.update(Counter(found.values()).items())
        examples |= {shape: file for file, shape in found.items()}
    images = {size: read_image(file)[None].to(predictor.device) for size, file in examples.items()}
    # Repeated before, because normalising chooses the memory format.
    return [
        (predictor.model.normalise(images[size].repeat(b, 1, 1, 1)), count)
        for (size, b), count in times.items()
    ]


def _run(predictor: Predictor, passes: list[tuple[Tensor, int]]) -> None:
    with predictor.running() as network:
        for images, times in passes:
            for _ in range(times):
                network(images)


def _time_steps(predictor: Predictor, files: list[Path], out: str) -> dict[str, float]:
    """Seconds per image of each step of prediction, one after the other, medians over images."""
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    clock = Clock(predictor.device)
    with predictor.running() as network:
        for file in [files[0], *files]:  # the first is the warm-up
            marks = [clock.mark()]

            def done(marks: list[Any] = marks) -> None:
                marks.append(clock.mark())

            image = read_image(file)
            done()
            inputs = predictor.model.normalise(image[None].to(predictor.device))
            done()
            logits = network(inputs)
            done()
            mask = highest(logits)[0].cpu()
            done()
            model = predictor.model
            classes, palette = tuple(model.classes), tuple(model.palette)
            result = Segmentation(mask, classes, palette, image, source=file)
            result.overlay()
            done()
            result.save(Path(out, "steps"), file.stem)
            done()
            taken = [clock.seconds(a, b) for a, b in pairwise(marks)]
            taken[-1] = max(0.0, taken[-1] - taken[-2])  # saving draws once more
            for name, value in zip(STEPS, taken, strict=True):
                seconds[name].append(value)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}
