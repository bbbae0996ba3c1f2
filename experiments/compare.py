"""The tables of docs/results.md: attention variants under one budget, and low k with no retraining.

    python experiments/compare.py train --config configs/camvid_short.yaml --out runs/compare
    python experiments/compare.py table --out runs/compare
    python experiments/compare.py cost --config configs/camvid.yaml
    python experiments/compare.py sweep runs/compare/softmax-seed0 --split test

`train` runs every variant with every seed in a process of its own, goes on where it was stopped,
and ends with the table. `cost` times the variants in interleaved rounds of one process, and takes
peak memory in a fresh process for each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fsanet.errors import InputError
from fsanet.files import environment

VARIANTS = {
    "none": {"attention": "null"},
    "softmax": {"attention": "spatial", "similarity": "softmax", "recurrence": "1"},
    "dot-R1": {"attention": "frequency", "similarity": "dot", "recurrence": "1"},
    "dot-R2": {"attention": "frequency", "similarity": "dot", "recurrence": "2"},
    "linear_softmax-R1": {
        "attention": "frequency",
        "similarity": "linear_softmax",
        "recurrence": "1",
    },
    "linear_softmax-R2": {
        "attention": "frequency",
        "similarity": "linear_softmax",
        "recurrence": "2",
    },
}


def options_of(variant: str) -> list[str]:
    return [f"--model.{key}={value}" for key, value in VARIANTS[variant].items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (("train", train), ("table", table), ("cost", cost), ("sweep", sweep)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        if name in ("train", "table"):
            command.add_argument("--out", type=Path, default=Path("runs/compare"))
        if name in ("train", "cost"):
            command.add_argument("--config", required=True)
            command.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
        if name == "train":
            command.add_argument("--steps", type=int, help="in place of those of the config")
            command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
            command.add_argument("--jobs", type=int, default=2, help="runs at a time")
        if name == "cost":
            command.add_argument("--rounds", type=int, default=10)
            command.add_argument("--size", type=int, nargs=2, metavar=("H", "W"))
            command.add_argument("--batch", type=int)
        if name == "sweep":
            command.add_argument("model", type=Path, help="run trained with attention=spatial")
            command.add_argument("--k", nargs="+", default=["2", "4", "6", "8", "12", "16", "full"])
            command.add_argument("--split", default="test")
            command.add_argument("--json", type=Path)
    arguments, rest = parser.parse_known_args()
    arguments.rest = rest  # further options of `fsanet train`
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    return 0


def train(arguments: argparse.Namespace) -> None:
    """Every variant with every seed, each in a process of its own, then the table."""
    train_all(arguments, {variant: options_of(variant) for variant in arguments.variants})
    table(arguments)


def train_all(arguments: argparse.Namespace, variants: dict[str, list[str]]) -> None:
    """Train and test variants, given with their options of `fsanet train`, with every seed.

    A run that has its test.json is left alone, one that was stopped goes on.
    """
    runs = [(v, s) for s in arguments.seeds for v in variants]
    started, done = time.monotonic(), 0
    share = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    threads = os.environ.get("OMP_NUM_THREADS", share)

    def one(run: tuple[str, int]) -> None:
        nonlocal done
        variant, seed = run
        out = arguments.out / f"{variant}-seed{seed}"
        result = out / "test.json"
        if not result.is_file():
            call = [sys.executable, "-m", "fsanet"]
            base = [f"--config={arguments.config}", f"--seed={seed}"]
            if arguments.steps:
                base.append(f"--steps={arguments.steps}")
            again = ["--resume=true"] if (out / "checkpoints" / "last.ckpt").is_file() else []
            extra = [*variants[variant], *arguments.rest]
            quiet = {**os.environ, "OMP_NUM_THREADS": threads}
            out.parent.mkdir(parents=True, exist_ok=True)
            with (arguments.out / f"{out.name}.log").open("a") as log:
                for command in (
                    [*call, "train", *base, f"--out={out}", *again, *extra],
                    [*call, "eval", str(out), "--split=test", f"--json={result}"],
                ):
                    if subprocess.run(command, env=quiet, stdout=log, stderr=log).returncode:
                        raise InputError(f"{variant} seed {seed} failed; see {log.name}")
        done += 1
        miou = json.loads(result.read_text())["miou"]
        left = (time.monotonic() - started) / done * (len(runs) - done) / 60
        print(
            f"[{done}/{len(runs)}] {variant} seed {seed}: mIoU {100 * miou:.2f}, "
            f"about {left:.0f} min left",
            flush=True,
        )

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, runs))


def table(arguments: argparse.Namespace) -> None:
    print_table(arguments.out, list(VARIANTS))


def print_table(out: Path, order: list[str]) -> None:
    """Mean and sample standard deviation over seeds, from the runs' test.json."""
    scores: dict[str, list[float]] = {}
    for path in sorted(out.glob("*-seed*/test.json")):
        variant = path.parent.name.rsplit("-seed", 1)[0]
        scores.setdefault(variant, []).append(100 * json.loads(path.read_text())["miou"])
    print(
        "| attention | seeds | mIoU mean | spread (std) | each |\n| --- | --- | --- | --- | --- |"
    )
    for variant in sorted(scores, key=order.index):
        s = scores[variant]
        spread = f"{statistics.stdev(s):.2f}" if len(s) > 1 else "-"
        each = ", ".join(f"{value:.2f}" for value in s)
        print(f"| {variant} | {len(s)} | {statistics.mean(s):.2f} | {spread} | {each} |")
    print_environment()


def build(config: str, variant: str, rest: list[str]) -> tuple:
    """The network of a variant, and the data module, as `fsanet train` would make them."""
    from fsanet.cli import options

    parser = options.train_parser()
    parsed = options.parse(parser, ["--config", config, *options_of(variant), *rest])
    data = options.make_data(parser, parsed)
    return options.make_task(parsed, data).model, data, parsed


def training_step(model, images, masks) -> None:
    from torch.nn.functional import cross_entropy

    logits, auxiliary = model.forward_with_auxiliary(model.normalise(images))
    loss = cross_entropy(logits, masks)
    if auxiliary is not None:
        loss = loss + 0.4 * cross_entropy(auxiliary, masks)
    loss.backward()
    model.zero_grad(set_to_none=True)


def batch_for(arguments: argparse.Namespace, parsed, classes: int) -> tuple:
    import torch

    init = parsed.data.init_args
    height, width = arguments.size or init.crop
    batch = arguments.batch or init.batch_size
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    return images, torch.randint(0, classes, (batch, height, width))


def cost(arguments: argparse.Namespace) -> None:
    """Median time of forward + backward, in interleaved rounds; peak memory, freshly measured."""
    models = {}
    for variant in arguments.variants:
        models[variant], data, parsed = build(arguments.config, variant, arguments.rest)
        models[variant].train()
    images, masks = batch_for(arguments, parsed, data.num_classes)
    times: dict[str, list[float]] = {variant: [] for variant in models}
    for round_ in range(arguments.rounds + 1):
        for variant, model in models.items():
            start = time.perf_counter()
            training_step(model, images, masks)
            if round_:  # the first one warms up
                times[variant].append(time.perf_counter() - start)
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for variant in models:
        with context.Pool(1) as pool:
            peaks[variant] = pool.apply(peak_memory, (arguments, variant))
    base = statistics.median(times[arguments.variants[0]])
    print(f"batch {tuple(images.shape)}, median of {arguments.rounds} interleaved rounds\n")
    print("| attention | s per step | ratio | quartiles | peak MiB above the network |")
    print("| --- | --- | --- | --- | --- |")
    for variant, values in times.items():
        middle = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        print(
            f"| {variant} | {middle:.3f} | {middle / base:.3f} | {low:.3f} - {high:.3f} | "
            f"{peaks[variant] / 2**20:.0f} |"
        )
    print_environment()


def peak_memory(arguments: argparse.Namespace, variant: str) -> int:
    """Peak resident bytes of two training steps above what the process held before them."""
    model, data, parsed = build(arguments.config, variant, arguments.rest)
    images, masks = batch_for(arguments, parsed, data.num_classes)
    model.train()
    before = resident_peak(reset=True)
    for _ in range(2):
        training_step(model, images, masks)
    return resident_peak() - before


def resident_peak(*, reset: bool = False) -> int:
    """Largest resident bytes of this process since the last reset (Linux).

    Not `getrusage`: what it tells outlives exec, so a child starts with its parent's peak.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise InputError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def sweep(arguments: argparse.Namespace) -> None:
    """A network trained with regular attention, run with its k x k lowest frequencies alone."""
    from fsanet.cli import main as cli

    call = ["sweep", str(arguments.model), "--split", arguments.split, "--k", *arguments.k]
    if arguments.json:
        call += ["--json", str(arguments.json)]
    if cli.main([*call, *arguments.rest]):
        raise InputError("the sweep failed")


def print_environment() -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in environment().items()))


if __name__ == "__main__":
    sys.exit(main())
