"""What the demo says about its run: scores, example pictures, the report page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fsanet.data import AMBIGUOUS_PAIRS, SceneData
from fsanet.metrics.confusion import Scores
from fsanet.models import FsaNet
from fsanet.predict.predictor import Predictor
from fsanet.predict.result import Segmentation
from fsanet.report.demo_recipe import BATCH, RECOMMENDED_STEPS, TASK
from fsanet.report.page import ClassResult, Example, Report
from fsanet.train import TrainingResult

EXAMPLES = 6


@dataclass(frozen=True)
class Outcome:
    """All that the report is about."""

    trained: TrainingResult
    scores: Scores
    told_apart: float
    network: FsaNet
    settings: Mapping[str, object]
    machine: Mapping[str, str]


def told_apart(predictor: Predictor, data: SceneData) -> float:
    """Share of the pixels of look-alike classes that got the right one of the two.

    Pixels given to neither are left out, so that guessing scores one half.
    """
    right = wrong = 0
    dataset = data.dataset("test")
    for first in range(0, len(dataset), predictor.batch_size):
        items = [dataset[i] for i in range(first, min(first + predictor.batch_size, len(dataset)))]
        images = torch.stack([image.as_subclass(Tensor) for image, _ in items])  # (B, 3, H, W)
        labels = torch.stack([mask.as_subclass(Tensor) for _, mask in items])  # (B, H, W)
        ids = predictor.masks(images)[0].long()
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


def predict_examples(predictor: Predictor, data: SceneData, folder: Path) -> list[Example]:
    """Some test scenes, chosen by their labels alone: saved, and drawn for the report."""
    dataset = data.dataset("test")
    examples = []
    for index in varied_scenes(data):
        image, mask = (part.as_subclass(Tensor) for part in dataset[index])
        result = predictor(image)
        result.save(folder, f"test-{index:02d}")
        truth = Segmentation(
            mask=mask.to(torch.uint8),
            classes=result.classes,
            palette=result.palette,
            image=image,
        )
        right = (result.mask == truth.mask).double().mean().item()
        examples.append(
            Example(
                image=Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()),
                truth=truth.overlay(alpha=0.65, legend=False),
                prediction=result.overlay(alpha=0.65, legend=False),
                caption=f"Test scene {index}: {100 * right:.1f} % of the pixels right.",
            )
        )
    return examples


def settings_of(data: SceneData, done: int, planned: int, seed: int) -> dict[str, object]:
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


def demo_report(
    outcome: Outcome,
    data: SceneData,
    curves: bytes,
    curves_dark: bytes,
    examples: list[Example],
    out: Path,
) -> Report:
    scores, trained = outcome.scores, outcome.trained
    parameters = sum(parameter.numel() for parameter in outcome.network.parameters())
    lead = [
        f"A small network with frequency self-attention, trained from scratch for {trained.steps} "
        f"steps ({trained.seconds / 60:.1f} minutes) on street scenes that the library draws, and "
        f"evaluated on {data.lengths['test']} it has not seen.",
        "Open and closed shops are drawn alike, and so are moving and stopped cars. Which is which "
        "is said by the sun or the moon and by a traffic light, far away in the picture: a network "
        "that sees a neighbourhood only has to guess. Attention carries that one bit across.",
    ]
    if trained.steps < RECOMMENDED_STEPS:
        lead.append(
            f"The recipe is made for {RECOMMENDED_STEPS} steps or more; in the time given this "
            f"machine did {trained.steps}. More time gives better scores."
        )
    rows = zip(
        scores.classes, data.palette, scores.iou, scores.accuracy, scores.pixels, strict=True
    )
    return Report(
        title="FsaNet demo",
        lead=lead,
        figures=[
            (_percent(scores.miou), "mean IoU"),
            (_percent(scores.pixel_accuracy), "pixel accuracy"),
            (_percent(outcome.told_apart), "look-alikes told apart (guessing: 50 %)"),
            (f"{parameters / 1e6:.2f} M", "parameters"),
        ],
        classes=[
            ClassResult(name, colour, _known(iou), _known(accuracy), pixels)
            for name, colour, iou, accuracy, pixels in rows
        ],
        curves=curves,
        curves_dark=curves_dark,
        examples=examples,
        settings=outcome.settings,
        environment=outcome.machine,
        next_steps=[
            ("Train for longer:", f"fsanet demo --minutes 10 --out {out}-longer"),
            (
                "Segment pictures with this network:",
                f"fsanet predict PICTURES --model {trained.out} --out {out}/mine",
            ),
        ],
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _known(value: float) -> float | None:
    return None if value != value else value
