"""Processes that run the cases, two at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from campaign.case import Case
from campaign.judge import judge, snapshot

PROCESSES = int(os.environ.get("CAMPAIGN_PROCESSES", "2"))
SECONDS = float(os.environ.get("CAMPAIGN_SECONDS", "60"))  # for one command
MEMORY = 3000  # MiB


@dataclass(frozen=True)
class Outcome:
    """What became of a case: a class of `judge`, and what is the matter."""

    case: Case
    kind: str
    reason: str
    ended: dict[str, Any]

    @property
    def good(self) -> bool:
        return self.kind in ("accepted", "refused")


@contextmanager
def workers(count: int) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that runs a case of `campaign.worker.run` in one of ``count`` processes."""
    here = Path(__file__).resolve().parents[1]
    source = os.pathsep.join([str(here), str(here.parent / "src")])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    free: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "campaign.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]

    def run(case: dict[str, Any]) -> dict[str, Any]:
        process = free.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        finally:
            free.put(process)

    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "the worker did not start"
            free.put(process)
        yield run
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_cases(makers: list[Callable[[Path], Case]], work: Path, *, count: int) -> Iterator[Outcome]:
    """Make, run and judge cases; folders of those that went well are removed."""

    def one(numbered: tuple[int, Callable[[Path], Case]]) -> Outcome:
        number, make = numbered
        folder, log = work / f"{number:04}" / "case", work / f"{number:04}" / "log"
        for place in (folder / "home", log):
            place.mkdir(parents=True)
        (folder.parent / "canary").write_text("untouched\n")
        case = make(folder)
        before = snapshot(folder)
        ended = run(
            {
                "command": [os.fsencode(text).hex() for text in case.command],
                "folder": str(folder),
                "log": str(log),
                "seconds": SECONDS,
                "memory": MEMORY,
                "stdin": "y\n" * 20,  # to whoever asks
            }
        )
        kind, reason = judge(case, ended, log, before)
        beside = sorted(path.name for path in folder.parent.iterdir())
        if beside != ["canary", "case", "log"]:
            kind, reason = "outside", f"beside the folder: {beside}"
        outcome = Outcome(case, kind, reason, ended)
        if outcome.good:
            shutil.rmtree(folder.parent)
        return outcome

    with workers(count) as run, ThreadPoolExecutor(count) as threads:
        yield from threads.map(one, enumerate(makers))
