"""What a user waits for before the work begins: one photo, and the help of each command.

    python benchmarks/start_up.py photo.jpg --model runs/mine

times `fsanet predict photo.jpg` and `fsanet COMMAND --help`, each in a fresh process, beside
`import torch` alone, in interleaved rounds; prints medians and quartiles, and which packages the
time of the prediction's imports goes to (`python -X importtime`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch

from fsanet.bench.tables import spread
from fsanet.cli.main import COMMANDS
from fsanet.cost import Quartiles, Timed, time_calls
from fsanet.files import environment


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def import_seconds(log: str) -> dict[str, float]:
    """Seconds by package, of the lines "import time: self | cumulative | name"."""
    seconds = defaultdict[str, float](float)
    for line in log.splitlines():
        if not line.startswith("import time:"):
            continue
        own, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        if own.isdigit():  # not the header
            seconds[name.split(".")[0]] += int(own) / 1e6
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        predict = ["-m", "fsanet", "predict", given.photo, "--model", given.model, "--out", folder]
        calls: dict[str, Callable[[], object]] = {
            "import torch": partial(run, "-c", "import torch"),
            "predict": partial(run, *predict),
        }
        for name in COMMANDS:
            calls[f"{name} --help"] = partial(run, "-m", "fsanet", name, "--help")
        timed = {name: Timed(call) for name, call in calls.items()}
        found = time_calls(timed, device=torch.device("cpu"), rounds=given.rounds)
        log = run("-X", "importtime", *predict).stderr
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    print("\n| command | seconds, median (quartiles) |\n| --- | ---: |")
    for name, by_round in found.items():
        print(f"| {name} | {spread(Quartiles.of([*by_round.values()]))} |")
    largest = sorted(import_seconds(log).items(), key=lambda entry: -entry[1])[:6]
    print("\nimports of predict, by package: ", end="")
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in largest))


if __name__ == "__main__":
    main()
