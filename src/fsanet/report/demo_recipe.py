"""The network and the data of the demo, sized for a minute or two on two processor cores."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from fsanet.data import SceneData
from fsanet.data.datasets.scenes import CLASSES, PALETTE
from fsanet.models import FsaNet
from fsanet.train import SemanticSegmentation, TrainingResult, train

ENCODER: dict[str, Any] = {
    "encoder": "resnet10t",
    "encoder_options": {"channels": [32, 64, 128, 256], "stem_width": 16},
    "output_stride": 8,
    "head_channels": 64,
    "aux_channels": 0,
    "dropout": 0.0,
}
TASK: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 3e-3,
    "weight_decay": 0.01,
    "decay_norms": False,
    # Small things count more: the loss is about them, and not about sky and ground.
    "class_weights": [0.7, 0.7, 1.5, 1.5, 1.5, 2.0, 2.0],
}
SIZE = (64, 160)  # (H, W) of a scene
LENGTHS = {"train": 800, "val": 40, "test": 100}
BATCH = 8
VALIDATIONS = 8
MIN_STEPS, MAX_STEPS = 200, 1500  # fewer are no demo; StopEarly keeps the time all the same
RECOMMENDED_STEPS = 300


def demo_network(seed: int, **overrides: Any) -> FsaNet:
    """The network of the demo, its weights a function of ``seed`` alone.

    ``overrides`` are other arguments of `FsaNet`, such as ``attention=None``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FsaNet(
            num_classes=len(CLASSES),
            classes=CLASSES,
            palette=PALETTE,
            zero_init=False,
            **(ENCODER | overrides),
        )
    # The layout in which CPUs convolve fastest.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def demo_data(seed: int, steps: int) -> SceneData:
    """Scenes of the demo, validated ``VALIDATIONS`` times in ``steps`` steps."""
    return SceneData(
        size=SIZE,
        train_length=LENGTHS["train"],
        val_length=LENGTHS["val"],
        test_length=LENGTHS["test"],
        scene_seed=seed,
        batch_size=BATCH,
        steps_per_epoch=max(1, math.ceil(steps / VALIDATIONS)),
        workers=0,  # scenes are kept in memory, and the cores are busy with the network
        cache=True,
        seed=seed,
    )


def train_demo(
    network: FsaNet, data: SceneData, out: Path, *, seed: int, steps: int, **options: Any
) -> TrainingResult:
    """Train as the demo does; what an earlier run left in ``out`` is replaced.

    ``options`` are other arguments of :func:`fsanet.train.train`.
    """
    warmup = min(20, steps // 10)
    task = SemanticSegmentation(network, classes=data.classes, warmup_steps=warmup, **TASK)
    return train(task, data, out=out, steps=steps, seed=seed, overwrite=True, **options)


class StopEarly(Callback):
    """Ends training before its last step.

    Args:
        steps: stop after this many.
        deadline: stop when ``time.perf_counter()`` has passed it, where other work has slowed the
            machine down since it was measured.
    """

    def __init__(self, *, steps: float = math.inf, deadline: float = math.inf) -> None:
        self.steps, self.deadline = steps, deadline

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step >= self.steps or time.perf_counter() > self.deadline:
            trainer.should_stop = True


def affordable_steps(
    networks: Sequence[FsaNet], device: torch.device, seconds: float, began: float
) -> int:
    """Training steps of each network that fit into ``seconds`` from ``began``.

    Some steps are timed, on copies.
    """
    data = demo_data(0, 1)
    scenes = data.make_dataset("train")
    start = time.perf_counter()
    items = [scenes[index] for index in range(BATCH)]
    drawing = (time.perf_counter() - start) / BATCH
    images = torch.stack([Tensor(image).to(device, torch.uint8) for image, _ in items])
    labels = torch.stack([Tensor(mask).to(device, torch.int64) for _, mask in items])

    def timed(work: Callable[[], object], times: int) -> float:
        work()  # the first run sets things up
        durations = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            durations.append(time.perf_counter() - start)
        return min(durations)  # other work on the machine may come and go

    step = image = 0.0  # of all networks
    for network in networks:
        copied = copy.deepcopy(network).to(device).train()
        optimizer = torch.optim.AdamW(copied.parameters())

        def train_step(copied: FsaNet = copied, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            logits = copied(copied.normalise(images))
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()

        def evaluate_batch(copied: FsaNet = copied) -> None:
            with torch.inference_mode():
                copied(copied.normalise(images)).argmax(1)

        step += timed(train_step, 7)
        copied.eval()
        image += timed(evaluate_batch, 3) / BATCH
    lengths = data.lengths
    seen = VALIDATIONS * lengths["val"] + 2 * lengths["test"]
    # Drawing all scenes, looking at them, and what start, checkpoints and report take.
    drawn = len(networks) * (lengths["train"] + lengths["val"]) + 2 * lengths["test"]
    fixed = drawing * drawn + image * seen + 7 + 3 * len(networks)
    left = seconds - (time.perf_counter() - began) - fixed
    # The loop around the network costs a little, too.
    return max(MIN_STEPS, min(MAX_STEPS, int(left / (1.1 * step))))
