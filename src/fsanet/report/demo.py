"""The demo: train, evaluate, predict and report on built-in scenes, with nothing to download."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fsanet.data import SceneData
from fsanet.data.datasets.scenes import AMBIGUOUS_PAIRS
from fsanet.errors import check_range, check_ranges
from fsanet.files import environment, write_bytes, write_json, write_whole
from fsanet.metrics.confusion import Scores
from fsanet.models import FsaNet
from fsanet.predict.predictor import Predictor
from fsanet.report.demo_recipe import (
    BATCH,
    RECOMMENDED_STEPS,
    TASK,
    StopEarly,
    affordable_steps,
    demo_data,
    demo_network,
    train_demo,
)
from fsanet.report.figures import Panel, draw_curves, read_history
from fsanet.report.page import ClassResult, Example, Report, write_report
from fsanet.train import TrainingResult, evaluate

__all__ = ["predict_examples", "run_demo", "score_look_alikes"]

EXAMPLES = 6
GUESSING = "guessing: 50 %"
WITH, WITHOUT = "with attention", "without attention"
FOLDERS = {WITH: "run", WITHOUT: "without_attention"}
PANELS: tuple[Panel, ...] = ("loss", "miou")


def run_demo(
    out: str | os.PathLike[str],
    *,
    minutes: float = 2.0,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a small FsaNet on the built-in scenes, evaluate it, and write a report.

    The same network without attention is trained for as many steps, and compared with it.

    The folder then holds ``report.html`` (self-contained), ``curves.png``, ``metrics.json``,
    ``scenes/`` (some test scenes), ``predictions/`` (their mask, overlay and summary) and the
    training runs with checkpoints and model: ``run/``, and ``without_attention/``.

    Args:
        out: folder to write to; the results of an earlier demo in it are replaced.
        minutes: total time budget. A short measurement sets the number of training steps, so
            that a slow machine trains less, not longer; training stops early where the machine
            turns out slower than measured.
        seed: seed of weights, data order and scenes.
        steps: train for this many optimiser steps instead, for reproducible numbers.
        progress: print what happens.

    Returns:
        "report" (path of report.html), "metrics" (path), "model" (folder for
        `FsaNet.from_pretrained`), "miou", "pixel_accuracy", "told_apart" (share of the pixels of
        look-alike classes that are right, 0..1), "steps", "seconds", and "without_attention" (the
        same scores of the network without attention).

    Raises:
        InputError: the folder cannot be written to, or a setting makes no sense.
    """
    began = time.perf_counter()
    out = Path(out)
    check_range("minutes", minutes, 0.0, 1e6, above=True)
    check_ranges({"seed": (seed, 0, 2**32 - 1), "steps": (1 if steps is None else steps, 1, 10**9)})
    write_json(out / "metrics.json", {"state": "running"})  # an unwritable folder fails here

    def say(line: str) -> None:
        if progress:
            print(line, flush=True)

    networks = {WITH: demo_network(seed), WITHOUT: demo_network(seed, attention=None)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = environment(device)
    parameters = sum(parameter.numel() for parameter in networks[WITH].parameters())
    duration = f"about {minutes:g} minutes" if steps is None else f"{steps} training steps each"
    say(
        f"FsaNet demo: trains a small network ({parameters / 1e6:.1f} M parameters) with frequency "
        f"self-attention on\nbuilt-in street scenes, and the same without attention, evaluates "
        f"both on unseen ones, and leaves overlays,\ncurves and report.html in {out}/.\n"
        f"Takes {duration} on {machine['device']}; nothing is downloaded."
    )
    planned = steps
    if planned is None:
        planned = affordable_steps(list(networks.values()), device, minutes * 60, began)
        say(f"By a short measurement, there is time for {planned} training steps of each.")
    runs: dict[str, TrainingResult] = {}
    for name, network in networks.items():
        say(f"Training {name} ...")
        stop = StopEarly()
        if name == WITHOUT:  # as many steps, or the comparison would say nothing
            stop = StopEarly(steps=runs[WITH].steps)
        elif steps is None:
            now = time.perf_counter()
            stop = StopEarly(deadline=now + 0.55 * (began + 60 * minutes - now))
        runs[name] = train_demo(
            network,
            demo_data(seed, planned),
            out / FOLDERS[name],
            seed=seed,
            steps=planned,
            progress=progress,
            log_every=2,
            accelerator=device.type,
            callbacks=[stop],
        )
        if name == WITH and runs[name].steps < planned:
            say(f"Slower than measured: stopped after {runs[name].steps} of {planned} steps.")
    trained = runs[WITH]
    say("Evaluating on unseen scenes ...")
    data = demo_data(seed, planned)
    results = {name: _evaluate(run, data, device) for name, run in runs.items()}
    scores, look_alikes = results[WITH].scores, results[WITH].look_alikes
    other = results[WITHOUT]
    settings = _settings(data, trained.steps, planned, seed)
    histories = {name: read_history(run.out / "metrics.csv") for name, run in runs.items()}
    curves = draw_curves(histories)
    write_bytes(out / "curves.png", curves)
    rows = zip(
        *(scores.classes, data.palette, scores.iou, scores.accuracy, scores.pixels),
        other.scores.iou,
        strict=True,
    )
    page = Report(
        title="FsaNet demo",
        lead=_lead(trained, data),
        figures=[
            (f"{100 * scores.miou:.1f} %", "mean IoU"),
            (f"{100 * other.scores.miou:.1f} %", "mean IoU without attention"),
            (f"{100 * look_alikes:.1f} %", f"look-alikes distinguished ({GUESSING})"),
            (f"{100 * other.look_alikes:.1f} %", "look-alikes without attention"),
            (f"{100 * scores.pixel_accuracy:.1f} %", "pixel accuracy"),
            (f"{parameters / 1e6:.2f} M", "parameters"),
        ],
        classes=[ClassResult(*row) for row in rows],
        compared_with="IoU without attention",
        curves=[
            (draw_curves(histories, [panel]), draw_curves(histories, [panel], dark=True))
            for panel in PANELS
        ],
        examples=predict_examples(
            {name: one.predictor for name, one in results.items()}, data, out
        ),
        settings=settings,
        environment=machine,
        next_steps=[
            ("Train for longer:", f"fsanet demo --minutes 10 --out {out}-longer"),
            (
                "Segment pictures with this network:",
                f"fsanet predict {out}/scenes --model {trained.out} --out {out}/mine",
            ),
            (
                "See what a pixel attends to (fsanet[explain]):",
                f"fsanet explain {out}/scenes/test-00.png --model {trained.out} --at 60,40 "
                f"--out {out}/why",
            ),
            (
                "Drop an image on a page in the browser (fsanet[serve]):",
                f"fsanet serve --model {trained.out} --compare {runs[WITHOUT].out}",
            ),
        ],
    )
    report = write_report(page, out / "report.html")
    seconds = time.perf_counter() - began
    result = {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "told_apart": look_alikes,
        "steps": trained.steps,
        "seconds": round(seconds, 1),
        "without_attention": {
            "miou": other.scores.miou,
            "pixel_accuracy": other.scores.pixel_accuracy,
            "told_apart": other.look_alikes,
            "steps": runs[WITHOUT].steps,
        },
    }
    details = {
        "training_seconds": round(trained.seconds, 1),
        "scores": scores.as_dict(),
        "scores_without_attention": other.scores.as_dict(),
        "settings": settings,
        "versions": machine,
    }
    metrics = write_json(out / "metrics.json", result | details)
    say(
        f"mIoU {100 * scores.miou:.1f} %, pixel accuracy {100 * scores.pixel_accuracy:.1f} %, "
        f"look-alikes distinguished {100 * look_alikes:.1f} % ({GUESSING}).\n"
        f"Without attention: mIoU {100 * other.scores.miou:.1f} %, look-alikes "
        f"{100 * other.look_alikes:.1f} %.\n"
        f"Report: {report}  ({seconds:.0f} s in total)"
    )
    return {**result, "report": report, "metrics": metrics, "model": trained.model}


class Evaluated(NamedTuple):
    """A trained network on the test scenes."""

    scores: Scores
    look_alikes: float
    predictor: Predictor


def _evaluate(run: TrainingResult, data: SceneData, device: torch.device) -> Evaluated:
    network = FsaNet.from_pretrained(run.model).to(device)
    scores = evaluate(network, data, split="test", progress=False, accelerator=device.type)
    predictor = Predictor(network, batch_size=10)
    return Evaluated(scores, score_look_alikes(predictor, data), predictor)


def score_look_alikes(predictor: Predictor, data: SceneData) -> float:
    """Share of the pixels of look-alike classes that got the right one of the two, 0..1.

    Pixels given to neither are left out, so that guessing scores one half.
    """
    right = wrong = 0
    dataset = data.dataset("test")
    for first in range(0, len(dataset), predictor.batch_size):
        items = [dataset[i] for i in range(first, min(first + predictor.batch_size, len(dataset)))]
        images = torch.stack([image.as_subclass(Tensor) for image, _ in items])  # (B, 3, H, W)
        labels = torch.stack([mask.as_subclass(Tensor) for _, mask in items])  # (B, H, W)
        ids = predictor.masks(images).ids.long()
        for one, other in AMBIGUOUS_PAIRS:
            for label, twin in ((one, other), (other, one)):
                right += int(((labels == label) & (ids == label)).sum())
                wrong += int(((labels == label) & (ids == twin)).sum())
    return right / (right + wrong) if right + wrong else 0.0


def varied_scenes(data: SceneData) -> list[int]:
    """Indices of the first test scenes in each state (day or night, go or stop), in turn."""
    dataset = data.dataset("test")
    ambiguous = {label for pair in AMBIGUOUS_PAIRS for label in pair}
    states: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(dataset)):
        labels = ambiguous.intersection(dataset[index][1].unique().tolist())
        states.setdefault(tuple(sorted(labels)), []).append(index)
    rounds = itertools.zip_longest(*states.values())
    return [i for some in rounds for i in some if i is not None][:EXAMPLES]


def predict_examples(
    predictors: Mapping[str, Predictor], data: SceneData, out: Path
) -> list[Example]:
    """Predict some test scenes, chosen by their labels, and draw them.

    Args:
        predictors: by name; what the first predicts is saved.
        data: of the scenes.
        out: folder to save it to, in ``predictions/``, and the scenes, in ``scenes/``.
    """
    dataset = data.dataset("test")
    examples = []
    for index in varied_scenes(data):
        image, mask = (part.as_subclass(Tensor) for part in dataset[index])
        results = {name: predictor(image) for name, predictor in predictors.items()}
        first = next(iter(results.values()))
        first.save(out / "predictions", f"test-{index:02d}")
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        write_whole(
            out / "scenes" / f"test-{index:02d}.png",
            lambda stream, picture=picture: picture.save(stream, "PNG"),  # type: ignore[misc]
        )
        truth = replace(first, mask=mask.to(torch.uint8))
        drawn = {"truth": truth, **results}
        right = [
            f"{100 * (result.mask == truth.mask).double().mean().item():.1f} % of the pixels right "
            + name
            for name, result in results.items()
        ]
        examples.append(
            Example(
                pictures=[
                    ("image", picture),
                    *((n, one.overlay(alpha=0.65, legend=False)) for n, one in drawn.items()),
                ],
                caption=f"Test scene {index}: {', '.join(right)}.",
            )
        )
    return examples


def _settings(data: SceneData, done: int, planned: int, seed: int) -> dict[str, object]:
    height, width = data.size
    return {
        "network": "FsaNet, frequency self-attention, dot product, k = 8",
        "encoder": "ResNet-10 with half of the channels, from random weights",
        "training scenes": f"{data.lengths['train']} of {width} x {height} pixels",
        "test scenes": str(data.lengths["test"]),
        "optimiser": f"AdamW, learning rate {TASK['lr']}, polynomial decay",
        "batch size": str(BATCH),
        "steps": str(done) if done == planned else f"{done}, stopped early, of {planned}",
        "seed": str(seed),
    }


def _lead(trained: TrainingResult, data: SceneData) -> list[str]:
    lead = [
        f"A small network with frequency self-attention, trained from scratch for {trained.steps} "
        f"steps ({trained.seconds / 60:.1f} minutes) on street scenes that the library draws, and "
        f"evaluated on {data.lengths['test']} unseen ones; beside it the same network without "
        "attention, trained alike.",
        "Open and closed shops look the same here, and so do moving and stopped cars. What "
        "distinguishes them is the sun or the moon and a traffic light, far away in the picture: "
        "a network that sees a neighbourhood only has to guess. Attention carries that one bit "
        "across the picture.",
    ]
    if trained.steps < RECOMMENDED_STEPS:
        lead.append(
            f"The recipe is made for {RECOMMENDED_STEPS} steps or more; in the time given this "
            f"machine did {trained.steps}. More time gives better scores."
        )
    return lead
