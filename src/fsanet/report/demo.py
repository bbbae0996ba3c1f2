"""The first thing to run: train, evaluate, predict and report, with nothing to download."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from fsanet.errors import InputError
from fsanet.files import environment, write_json, write_whole
from fsanet.models import FsaNet
from fsanet.predict.predictor import Predictor
from fsanet.report.demo_recipe import (
    StopOverdue,
    affordable_steps,
    demo_data,
    demo_network,
    train_demo,
)
from fsanet.report.demo_report import (
    Outcome,
    demo_report,
    predict_examples,
    settings_of,
    told_apart,
)
from fsanet.report.figures import draw_curves, read_history
from fsanet.report.page import write_report
from fsanet.train import evaluate


def run_demo(
    out: str | os.PathLike[str],
    *,
    minutes: float = 2.0,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a small FsaNet on the built-in scenes, evaluate it, and write a report.

    Args:
        out: folder to write to; what an earlier demo left there is replaced.
        minutes: time the whole may take. The training steps are set by a short measurement, so
            that a slow machine trains less, not longer; and training stops early where the
            machine turns out slower than measured.
        seed: of weights, order and scenes.
        steps: train for exactly this many optimiser steps instead: the same numbers each time.
        progress: print what happens.

    Returns:
        "report" (path of report.html), "metrics" (path), "model" (folder for
        `FsaNet.from_pretrained`), "miou", "pixel_accuracy", "told_apart" (0..1), "steps",
        "seconds".

    The folder then holds ``report.html`` (self-contained), ``curves.png``, ``metrics.json``,
    ``predictions/`` (mask, overlay and summary of some test scenes) and ``run/`` (the training
    run with checkpoints and model).

    Raises:
        InputError: the folder cannot be written to, or a setting makes no sense.
    """
    began = time.perf_counter()
    out = Path(out)
    if not 0 < minutes < float("inf"):
        raise InputError(f"minutes={minutes}: give a time above 0")
    if steps is not None and steps < 1:
        raise InputError(f"steps={steps}: give a number of at least 1")
    write_json(out / "metrics.json", {"state": "running"})  # notices an unwritable folder now

    def say(line: str) -> None:
        if progress:
            print(line, flush=True)

    network = demo_network(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = environment(device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lasting = f"about {minutes:g} minutes" if steps is None else f"{steps} training steps"
    say(
        f"FsaNet demo: trains a small network ({parameters / 1e6:.1f} M parameters) with frequency "
        f"self-attention on\nbuilt-in street scenes, evaluates it on unseen ones, and leaves "
        f"overlays, curves and report.html in\n{out}/. Takes {lasting} on {machine['device']}; "
        "nothing is downloaded."
    )
    callbacks = []
    if steps is None:
        steps = affordable_steps(network, device, minutes * 60, began)
        callbacks.append(StopOverdue(began + 1.1 * minutes * 60))
        say(f"Going by a short measurement, that makes {steps} training steps.")
    data = demo_data(seed, steps)
    trained = train_demo(
        network,
        data,
        out / "run",
        seed=seed,
        steps=steps,
        progress=progress,
        log_every=2,
        accelerator=device.type,
        callbacks=callbacks,
    )
    if trained.steps < steps:
        say(f"Slower than measured: stopped after {trained.steps} of {steps} steps.")
    say("Evaluating on unseen scenes ...")
    network = FsaNet.from_pretrained(trained.model).to(device)
    scores = evaluate(network, data, split="test", progress=False, accelerator=device.type)
    predictor = Predictor(network, batch_size=10)
    outcome = Outcome(
        trained=trained,
        scores=scores,
        told_apart=told_apart(predictor, data),
        network=network,
        settings=settings_of(data, trained.steps, steps, seed),
        machine=machine,
    )
    examples = predict_examples(predictor, data, out / "predictions")
    history = read_history(out / "run" / "metrics.csv")
    curves = draw_curves(history)
    write_whole(out / "curves.png", lambda stream: stream.write(curves))
    report = write_report(
        demo_report(outcome, data, curves, draw_curves(history, dark=True), examples, out),
        out / "report.html",
    )
    seconds = time.perf_counter() - began
    result = {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "told_apart": outcome.told_apart,
        "steps": trained.steps,
        "seconds": round(seconds, 1),
    }
    metrics = write_json(
        out / "metrics.json",
        {
            **result,
            "training_seconds": round(trained.seconds, 1),
            "scores": scores.as_dict(),
            "settings": outcome.settings,
            "versions": machine,
        },
    )
    say(
        f"mIoU {100 * scores.miou:.1f} %, pixel accuracy {100 * scores.pixel_accuracy:.1f} %, "
        f"look-alikes told apart {100 * outcome.told_apart:.1f} % (guessing: 50 %).\n"
        f"Report: {report}  ({seconds:.0f} s in all)"
    )
    return {**result, "report": report, "metrics": metrics, "model": trained.model}
