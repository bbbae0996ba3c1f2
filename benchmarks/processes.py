"""Images a second of `fsanet train` and `fsanet predict` on one and on several processes.

    python benchmarks/processes.py --images ../shared/data/camvid/test/images \\
        --config camvid_full --config experiments/camvid_files.yaml --figure processes.png

Runs the commands themselves, in turn: one process with one thread, n processes with one thread
each, and one process with n threads. The images of a training step are the same in all of them.
Prediction uses the network of the training. Rates leave out the start of the programs, as the
commands report them. Options of `fsanet train` may follow.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fsanet.bench.tables import Grid, spread
from fsanet.cli.main import user_errors
from fsanet.cli.recipe import Recipe
from fsanet.cost import Quartiles, ratios
from fsanet.errors import InputError
from fsanet.files import check_writable_file, environment, write_bytes, write_json

WHAT = ("training", "prediction")
Rates = dict[str, dict[str, dict[int, float]]]  # by what, contender and round, in images a second


class Contender(NamedTuple):
    """A number of processes, and of threads in each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{processes}, threads {self.threads}"


def contenders(counts: Sequence[int]) -> list[Contender]:
    """One process, then each number as processes and as threads.

    >>> [tuple(one) for one in contenders([1, 2])]
    [(1, 1), (2, 1), (1, 2)]
    """
    several = [count for count in sorted(set(counts)) if count > 1]
    return [
        Contender(1, 1),
        *(Contender(count, 1) for count in several),
        *(Contender(1, count) for count in several),
    ]


def run(arguments: Sequence[str], threads: int) -> None:
    """Run a command of fsanet.

    Raises:
        InputError: it fails; with the last line that it wrote.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "fsanet", *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"fsanet {arguments[0]}: {last}")


def train_once(options: Sequence[str], batch: int, steps: int, one: Contender, out: Path) -> float:
    """Images a second of a training of ``steps`` steps with ``batch`` images each."""
    own = [f"--out={out}", f"--steps={steps}", f"--log-every={steps}", "--task.warmup_steps=0"]
    own += [f"--data.batch_size={batch // one.processes}", f"--data.steps_per_epoch={steps}"]
    own += [f"--devices={one.processes}", "--accelerator=cpu", "--overwrite", "--logger=none"]
    own += ["--strategy=ddp"] if one.processes > 1 else []
    run(["train", *options, *own], one.threads)
    with (out / "metrics.csv").open(newline="") as stream:
        rows = [row["train/images_per_second"] for row in csv.DictReader(stream)]
    return float(next(filter(None, reversed(rows))))


def predict_once(images: str, model: Path, one: Contender, out: Path) -> float:
    """Images a second of a prediction, files written."""
    own = [f"--model={model}", f"--out={out}", f"--devices={one.processes}", "--accelerator=cpu"]
    run(["predict", images, *own], one.threads)
    return float(json.loads((out / "summary.json").read_text())["images_per_second"])


def measure(
    options: Sequence[str], images: str, counts: Sequence[int], *, rounds: int, steps: int
) -> Rates:
    """Rates of training and prediction in interleaved rounds.

    Raises:
        InputError: a command fails, or the processes cannot share a batch evenly.
    """
    batch = Recipe(options).data().batch_size
    for count in counts:
        if batch % count:
            raise InputError(f"--processes {count}: cannot share {batch} images a step evenly")
    rivals = contenders(counts)
    rates: Rates = {what: {str(one): {} for one in rivals} for what in WHAT}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(rounds):
            first = round_ % len(rivals)
            for one in rivals[first:] + rivals[:first]:
                training, prediction = Path(folder, "run"), Path(folder, "out")
                rate = train_once(options, batch, steps, one, training)
                rates["training"][str(one)][round_] = rate
                rate = predict_once(images, training / "model", one, prediction)
                rates["prediction"][str(one)][round_] = rate
                print(f"round {round_ + 1} of {rounds}: {one}", file=sys.stderr, flush=True)
    return rates


def table(rates: Rates) -> Grid:
    """Rates, and how many times those of one process with one thread they are."""
    rows = []
    for what, found in rates.items():
        alone = next(iter(found.values()))
        for name, by_round in found.items():
            rate = Quartiles.of(list(by_round.values()))
            gain = Quartiles.of(ratios(by_round, alone))
            rows.append((f"{what}, {name}", spread(rate), spread(gain), str(len(by_round))))
    return Grid("Processes", ("what", "images/s", "times one process", "rounds"), rows)


def draw(rates: Rates, about: Mapping[str, str]) -> bytes:
    """Bars of the rates over those of one process, with quartiles: a PNG file, 1800 pixels wide."""
    from fsanet.report.figures import LIGHT, new_figure, png, style

    figure, panels = new_figure(9, 3.8, len(WHAT), LIGHT)
    for axes, (what, found) in zip(panels, rates.items(), strict=True):
        alone = next(iter(found.values()))
        gains = [Quartiles.of(ratios(by_round, alone)) for by_round in found.values()]
        medians = [gain.median for gain in gains]
        errors = [[g.median - g.low for g in gains], [g.high - g.median for g in gains]]
        axes.bar(range(len(gains)), medians, 0.6, color=LIGHT.first, yerr=errors, capsize=4)
        axes.set_xticks(range(len(gains)), [name.replace(", ", "\n") for name in found])
        style(axes, what, LIGHT, grid="y")
        axes.set_ylabel("times one process with one thread", color=LIGHT.ink)
    words = [f"{name} {about[name]}" for name in ("device", "torch", "commit") if name in about]
    figure.suptitle(", ".join(words), fontsize=8, color=LIGHT.ink)
    return png(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", required=True, help="image files to predict: a folder")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a training")
    parser.add_argument("--json", help="write all numbers to this file")
    parser.add_argument("--figure", help="draw the ratios into this PNG file")
    given, options = parser.parse_known_args()
    with user_errors(parser.prog):
        if min(given.rounds, given.steps, *given.processes) < 1:
            raise InputError("--rounds, --steps, --processes: give at least 1")
        for file in filter(None, (given.json, given.figure)):
            check_writable_file(file)
        rates = measure(
            options, given.images, given.processes, rounds=given.rounds, steps=given.steps
        )
        about = environment()
        if given.json:
            write_json(given.json, {"images_per_second": rates, "versions": about})
        if given.figure:
            write_bytes(given.figure, draw(rates, about))
    console = Console(width=180, highlight=False, markup=False)
    console.print(table(rates).markdown(), soft_wrap=True)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
