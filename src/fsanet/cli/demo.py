"""`fsanet demo`: train, evaluate and predict on built-in scenes, with a report."""

from __future__ import annotations

from fsanet.cli.help import Section
from fsanet.errors import InputError

HELP = [Section("fsanet.cli.demo:demo")]


def demo(
    *, out: str = "runs/demo", minutes: float = 2.0, steps: int | None = None, seed: int = 0
) -> int:
    """Train a small network on built-in scenes, evaluate it, predict, and write a report.

    Needs no data and no GPU. Leaves overlays, curves and report.html in the output folder.

    Args:
        out: output folder.
        minutes: total time budget in minutes.
        steps: train for this many steps instead, for reproducible numbers.
        seed: seed of weights, data order and scenes.
    """
    if not minutes > 0:
        raise InputError(f"--minutes {minutes}: give more than 0")
    from fsanet.report.demo import run_demo

    run_demo(out, minutes=minutes, seed=seed, steps=steps)
    return 0


def run(arguments: list[str]) -> int:
    from fsanet.cli.parsing import call

    return call(demo, arguments)
