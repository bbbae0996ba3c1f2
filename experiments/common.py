"""What the experiments share: training variants with several seeds, and commands."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import torch

from fsanet.cli.main import user_errors
from fsanet.errors import InputError
from fsanet.files import check_writable, environment
from fsanet.inputs import read_json

REMOVED = Path(__file__).with_name("removed.py")
Options = dict[str, dict[str, Any]]  # keywords of argparse's add_argument, by option


def main(description: str, commands: Mapping[str, tuple[Callable[..., None], Options]]) -> int:
    """Run the command that the command line names, with the options of that command.

    Options that it does not have are left in ``arguments.rest``, for `fsanet train`.
    """
    parser = Parser(description=description.splitlines()[0])
    subparsers = parser.add_subparsers(required=True)
    for name, (function, options) in commands.items():
        command = subparsers.add_parser(name)
        command.set_defaults(run=function)
        for option, keywords in options.items():
            command.add_argument(option, **keywords)
    arguments, arguments.rest = parser.parse_known_args()
    with user_errors(parser.prog):
        arguments.run(arguments)
    return 0


class Parser(argparse.ArgumentParser):
    """Reports a wrong option on one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def evidence_parser(description: str, *, data: str, scores: str, steps: int) -> Parser:
    """The options of experiments that leave one JSON file per training, see :func:`measure`."""
    parser = Parser(description=description.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument(
        "--weights", type=Path, default=Path("../shared/weights/mobilenetv2_100.safetensors")
    )
    parser.add_argument("--scores", type=Path, default=Path(scores))
    parser.add_argument("--steps", type=whole(1), default=steps)
    parser.add_argument("--table", action="store_true", help="only print what has been measured")
    return parser


def measure(
    parser: Parser, run_all: Callable[[argparse.Namespace], None]
) -> tuple[argparse.Namespace, list[dict[str, Any]]]:
    """Parse the options, train on one thread what is missing, and read all scores."""
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if not options.table:
            run_all(options)
        return options, read_scores(options.scores)
    except InputError as error:
        parser.error(str(error))


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """What has been measured so far."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    if not found:
        raise InputError(f"{folder}: no scores; run without --table first")
    return found


def cost_of_training(began: float, cpu: float, steps: int, loss: float) -> dict[str, float]:
    """The part of a scores file about time, from the clocks at the start, and the last loss."""
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds_per_step": (time.process_time() - cpu) / steps,
        "last_loss": loss,
    }


def whole(low: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``low`` to a million."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= 1_000_000:
            raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least {low}")
        return value

    return number


def train_options(out: str, variants: Sequence[str], default: Sequence[str] = ()) -> Options:
    """The options of :func:`train_all`."""
    return {
        "--out": {"type": Path, "default": Path(out)},
        "--config": {"required": True, "action": "append", "help": "as of fsanet train"},
        "--variants": {
            "nargs": "+",
            "choices": variants,
            "default": list(default or variants),
        },
        "--steps": {"type": whole(1), "help": "instead of those of the config"},
        "--seeds": {"type": whole(0), "nargs": "+", "default": [0, 1, 2]},
        "--jobs": {"type": whole(1), "default": 1, "help": "runs at a time"},
    }


def train_all(
    arguments: argparse.Namespace,
    variants: Mapping[str, Sequence[str]],
    evaluations: Mapping[str, Sequence[str]],
    score: Callable[[Path], str],
) -> None:
    """Train and evaluate variants with every seed, each in a process of its own.

    A run that has been evaluated is skipped, one that was interrupted is resumed. Networks with
    attention are also evaluated without it, as the first evaluation does, into ``removed.json``.

    Args:
        arguments: parsed options, see :func:`train_options`.
        variants: options of `fsanet train`, by variant.
        evaluations: options of `fsanet eval`, by the name of the JSON file in the run folder.
        score: describes a finished run in a few words, from its folder.
    """
    from fsanet.cli.recipe import read_recipe, recipe_file

    runs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    started, done = time.monotonic(), 0
    share = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    quiet = {"OMP_NUM_THREADS": share, **os.environ}
    for name in arguments.config:
        read_recipe(recipe_file(name))  # raises before anything is started
    configs = [f"--config={name}" for name in arguments.config]
    check_writable(arguments.out)
    arguments.out.mkdir(parents=True, exist_ok=True)

    def run(one: tuple[str, int]) -> None:
        nonlocal done
        variant, seed = one
        out = arguments.out / f"{variant}-seed{seed}"
        options = [*configs, f"--seed={seed}", f"--out={out}"]
        options += ["--resume=true"] if (out / "checkpoints" / "last.ckpt").is_file() else []
        options += [*variants[variant], *arguments.rest]
        options += [f"--steps={arguments.steps}"] if arguments.steps else []
        scripts = {name: (["-m", "fsanet", "eval"], how) for name, how in evaluations.items()}
        if not any(option.endswith("attention=null") for option in variants[variant]):
            scripts["removed"] = ([str(REMOVED)], next(iter(evaluations.values())))
        commands = [["-m", "fsanet", "train", *options]]
        for name, (script, how) in scripts.items():
            commands.append([*script, str(out), f"--json={out / name}.json", *how])
        if not all((out / f"{name}.json").is_file() for name in scripts):
            with (arguments.out / f"{out.name}.log").open("a") as log:
                for command in commands:
                    call = [sys.executable, *command]
                    if subprocess.run(call, env=quiet, stdout=log, stderr=log).returncode:
                        raise InputError(f"{variant} seed {seed} failed; see {log.name}")
        done += 1
        left = (time.monotonic() - started) / done * (len(runs) - done) / 60
        print(
            f"[{done}/{len(runs)}] {variant} seed {seed}: {score(out)}, about {left:.0f} min left",
            flush=True,
        )

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, runs))


def finished_runs(
    out: Path, order: Sequence[str], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The scores of finished runs by variant: for each seed, the content of its JSON files.

    Those without attention are among them, as "removed", where there are any.

    Raises:
        InputError: no run is finished.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob(f"*-seed*/{names[-1]}.json")):
        files = {name: path.parent / f"{name}.json" for name in [*names, "removed"]}
        scores = {
            name: read_json(file, "the scores of a run")
            for name, file in files.items()
            if name != "removed" or file.is_file()
        }
        found.setdefault(path.parent.name.rsplit("-seed", 1)[0], []).append(scores)
    if not found:
        raise InputError(f"{out}: no finished run; give the --out of train")
    return {variant: found[variant] for variant in sorted(found, key=list(order).index)}


def print_miou_table(out: Path, order: Sequence[str]) -> None:
    """Mean and sample standard deviation of the test mIoU over seeds, in percent."""
    print("| variant | seeds | mIoU | attention then removed | mIoU of each |")
    print("| --- | --- | --- | --- | --- |")
    variants = finished_runs(out, order, ["test"])
    for variant, runs in variants.items():
        cells = [percent(runs, name, "miou") for name in ("test", "removed")]
        each = ", ".join(f"{100 * score:.2f}" for score in figures(runs, "test", "miou"))
        print(f"| {variant} | {len(runs)} | {' | '.join(cells)} | {each} |")
    print_environment(next(reversed(variants.values()))[-1]["test"]["versions"])


def test_miou(out: Path) -> str:
    """The test mIoU of a finished run, in words."""
    return f"mIoU {100 * json.loads((out / 'test.json').read_text())['miou']:.2f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, with one decimal.

    >>> mean_and_spread([1.0, 2.0, 3.0])
    '2.0 ± 1.0'
    """
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def percent(runs: Sequence[dict[str, Any]], *path: str) -> str:
    """Mean and spread of one figure over runs, in percent; empty where it was not measured."""
    values = list(figures(runs, *path))
    return mean_and_spread([100 * value for value in values]) if values else ""


def figures(runs: Sequence[dict[str, Any]], *path: str) -> Iterator[float]:
    """One figure, by the keys that lead to it, of each run in which it was measured."""
    for one in runs:
        value: Any = one
        for name in path:
            value = value.get(name, {})
        if value != {}:
            yield value


def print_cost(results: Sequence[dict[str, Any]]) -> None:
    """What all trainings took, and where they ran."""
    minutes = sum(one["seconds"] for one in results) / 60
    core = sum(one["cpu_seconds_per_step"] * one["steps"] for one in results) / 60
    print(f"\n{len(results)} trainings: {minutes:.0f} minutes, {core:.0f} core-minutes")
    print_environment(results[0]["versions"])


def print_environment(versions: Mapping[str, str] | None = None) -> None:
    about = environment() if versions is None else versions
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
