"""`fsanet demo`: the main job on built-in scenes, with a report."""

from __future__ import annotations

from pathlib import Path

from fsanet.cli.parsing import Parser, quiet
from fsanet.errors import InputError


def run(given: list[str]) -> int:
    parser = Parser(
        prog="fsanet demo",
        description="Train a small network on built-in scenes, evaluate it, predict, and write "
        "a folder with overlays, curves and report.html. Needs no data and no GPU.",
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="default: runs/demo")
    parser.add_argument("--minutes", type=float, default=2.0, help="length of it all")
    parser.add_argument(
        "--steps", type=int, help="train for so many steps instead: the same numbers each time"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    if not options.minutes > 0:
        raise InputError(f"--minutes {options.minutes}: give more than 0")
    quiet()
    from fsanet.report.demo import run_demo

    run_demo(Path(options.out), minutes=options.minutes, seed=options.seed, steps=options.steps)
    return 0
