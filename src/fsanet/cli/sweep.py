"""`fsanet sweep`: which frequencies the attention of a trained network needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsanet.cli.help import EVALUATION, Section
from fsanet.errors import InputError, check_range

if TYPE_CHECKING:
    from fsanet.cli.recipe import Recipe, Test
    from fsanet.convert.variants import Variant

HELP = [Section("fsanet.cli.sweep:sweep", skip={"test"}), EVALUATION]

LOW = ["2", "4", "6", "8", "12", "16", "full"]


def run(arguments: list[str]) -> int:
    from fsanet.imports import import_lightning

    import_lightning()

    from fsanet.cli.recipe import call_with_data

    return call_with_data(sweep, arguments)


def sweep(
    model: str,
    *,
    test: Test,
    k: list[str] | None = None,
    bands: list[str] | None = None,
    cuts: tuple[int, int] = (8, 16),
    match: str = "*",
    out: str | None = None,
    json: str | None = None,
    retrain: str | None = None,
    steps: int | None = None,
    seeds: list[int] | None = None,
) -> int:
    """Evaluate a trained network with other frequencies in its attention.

    The network is evaluated as trained, without its attention, and with every k and band, without
    retraining. With --retrain, a network is also trained for each of these. A sweep that was
    interrupted continues where it stopped.

    Args:
        model: run folder, model folder, or hub id.
        test: the data, and how the network is tested.
        k: numbers of low frequencies per axis, or full; by default 2 4 6 8 12 16 full.
        bands: low, middle, high, full, or ranges such as 8:16 or 0:8,16: (rows, columns).
        cuts: where low ends and high begins.
        match: pattern for the names of the attention layers to change.
        out: output folder; by default MODEL/sweep.
        json: file to also write all numbers to.
        retrain: recipe to also train a network for each k and band with.
        steps: optimiser steps of each training.
        seeds: one training for each seed; by default 0.
    """
    from fsanet.cli.eval import print_table
    from fsanet.convert import load_model
    from fsanet.convert.variants import attention_variants
    from fsanet.files import (
        check_writable,
        check_writable_file,
        fingerprint,
        first_process,
        write_text,
    )
    from fsanet.report.confusion import HOW_TESTED
    from fsanet.report.sweep import Sweep

    seeds = [0] if seeds is None else seeds
    variants = attention_variants(k or (() if bands else LOW), bands or (), cuts)
    if (retrain is None) != (steps is None):
        raise InputError("--retrain RECIPE and --steps N: give both, or neither")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {' '.join(map(str, seeds))}: give each once")
    if retrain is not None:  # what is wrong is found before the evaluations
        for seed in seeds:
            check_range("seeds", seed, 0, 2**32 - 1)
        check_range("steps", steps or 0, 1, 10**9)
        _recipe(retrain, variants[0], steps, seeds[0])
    if out is None and not Path(model).is_dir():
        raise InputError(f"--out: give a folder for the sweep of {model}")
    folder = Path(model, "sweep") if out is None else Path(out)
    network = load_model(model, task="semantic")
    about = {
        "model": model,
        "weights": fingerprint(network, weights_only=True),
        "match": match,
        "data": test.data_options,
        "split": test.options["split"],
        "testing": {name: test.options[name] for name in (*HOW_TESTED, "boundary")},
    }
    if first_process():
        check_writable(folder)
        if json is not None:
            check_writable_file(json)
    record = Sweep.open(folder, about, variants)
    for variant, scores in record.evaluate(network, variants, test.evaluate, match=match):
        if first_process():
            miou = scores["miou"]
            text = "no label" if miou is None else f"{100 * miou:.2f} %"
            print(f"{variant.name}: mIoU {text}", flush=True)
    if retrain is not None:
        todo = [(seed, variant) for seed in seeds for variant in variants]
        for number, (seed, variant) in enumerate(todo, 1):
            if first_process():
                print(f"[{number}/{len(todo)}] {variant.name}, seed {seed}", flush=True)
            run = record.run_folder(variant, seed)
            how = {"config": retrain, "steps": steps}
            scores = _train_and_test(run, _recipe(retrain, variant, steps, seed), test)
            record.add_retrained(variant, seed, scores | how)
    if not first_process():
        return 0
    title = f"{model}, {test.options['split']} split"
    record.write()
    record.write_report(variants, title)
    if json is not None:
        write_text(json, (folder / "sweep.json").read_text(encoding="utf-8"))
    header, *rows = record.table(variants)
    print_table(title, header, rows)
    print(f"table, figure and all numbers in {folder}")
    return 0


def _train_and_test(out: Path, recipe: Recipe, test: Test) -> dict[str, Any]:
    """Scores of the best weights of a training, which is resumed if it was interrupted."""
    import lightning

    from fsanet.cli.recipe import Test
    from fsanet.files import first_process, write_json
    from fsanet.inputs import read_json, read_text
    from fsanet.report.sweep import check_scores
    from fsanet.train import train

    config, recorded, finished = recipe.text(out), out / "config.yaml", out / "scores.json"
    if recorded.is_file() and read_text(recorded, "recipe") != config:
        raise InputError(f"{recorded}: a run with other options; give another --out")
    if finished.is_file():
        found: dict[str, Any] = read_json(finished, "scores")
        check_scores(found, finished)
        return found
    lightning.seed_everything(recipe.options.seed, verbose=False)
    data = recipe.data()
    resume = (out / "checkpoints" / "last.ckpt").is_file()
    options = recipe.train_options() | {"resume": resume, "overwrite": not resume}
    train(recipe.task(data), data, out=out, config=config, **options)
    scores = Test(data, None, test.options).evaluate(out).as_dict()
    if first_process():
        write_json(finished, scores)
    return scores


def _recipe(file: str, variant: Variant, steps: int | None, seed: int) -> Recipe:
    """The recipe of one training: attention removed, or restricted to the variant's band."""
    from fsanet.cli.recipe import Recipe

    changes = {"trained": [], "removed": ["--model.attention=null"]}.get(variant.kind)
    if changes is None:
        band = json.dumps(variant.k or variant.as_dict()["band"])
        changes = ["--model.attention=frequency", f"--model.k={band}"]
    return Recipe(["--config", file, *changes, f"--steps={steps}", f"--seed={seed}"])
