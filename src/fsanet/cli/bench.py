"""`fsanet bench`: attention layers, or whole networks, measured side by side."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fsanet.cli.parsing import Parser, available_device
from fsanet.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from fsanet.bench.results import Report
    from fsanet.bench.tables import Grid

_SIZES = ((97, 97), (128, 128), (128, 256), (256, 512))
_NETWORK = "resnet101s"


def run(given: list[str]) -> int:
    options = _parser().parse_args(given)
    _check(options)
    options.device = available_device(options.device)
    command = shlex.join(["fsanet", "bench", *given])
    from fsanet.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        if options.model is not None:
            _networks(options, progress, command)
        else:
            _layers(options, progress, command)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="fsanet bench",
        description="Measure attention layers side by side on the same tensors: FLOPs, memory, "
        "time. Every layer is first tried in a process of its own; one that runs out of memory or "
        "time is reported so. All layers at all sizes take about half an hour on two cores; "
        "--sizes 97x97 --layers floor sdpa dot-R1 takes one minute.",
    )
    add = parser.add_argument
    add("--layers", nargs="+", metavar="NAME", help="which (default: all; a wrong name lists them)")
    add("--sizes", nargs="+", metavar="HxW", help="default: 97x97 128x128 128x256 256x512")
    add("--channels", type=int, default=512, metavar="N", help="default: 512")
    add("--batch", type=int, default=1, metavar="N", help="default: 1")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add("--threads", type=int, metavar="N", help="of CPU operators (default: torch's)")
    add("--baseline", metavar="NAME", help="layer that times refer to (default: sdpa)")
    add("--rounds", type=int, metavar="N", help="at most (default: 20, networks 10)")
    add("--seconds", type=float, metavar="S", help="for the rounds of a size (default: 60)")
    add(
        "--backward",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time forward + backward, too",
    )
    add(
        "--limit-seconds",
        type=float,
        metavar="S",
        help="leave out what takes longer for one forward pass (default: 20, networks 120)",
    )
    add("--limit-memory", type=float, metavar="GIB", help="default: 80 %% of what is free (Linux)")
    add("--json", metavar="FILE", help="write all numbers to this file")
    add("--markdown", metavar="FILE", help="write the tables to this file")
    add("--figures", metavar="DIR", help="draw time and memory against N into this folder")
    add(
        "--paper",
        action="store_true",
        help="the paper's claims, at its sizes: 97x97 and 129x129, materialised baseline",
    )
    network = parser.add_argument_group("whole networks")
    network.add_argument(
        "--model",
        nargs="?",
        const=_NETWORK,
        metavar="ENCODER_OR_FOLDER",
        help=f"without, with regular and with frequency attention (default: {_NETWORK})",
    )
    network.add_argument("--image", default=None, metavar="HxW", help="default: 769x769")
    network.add_argument("--k", type=int, metavar="N", help="frequencies kept per axis")
    network.add_argument(
        "--similarity", choices=["dot", "linear_softmax", "linear", "softmax"], metavar="NAME"
    )
    network.add_argument("--recurrence", type=int, metavar="R")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.model is not None:
        layer_only = ("layers", "sizes", "baseline", "figures")
        for name in layer_only:
            if getattr(options, name) is not None:
                raise InputError(f"--{name} is for layers; leave it out with --model")
        if options.paper:
            raise InputError("--paper is for layers; leave it out with --model")
    else:
        for name in ("image", "k", "similarity", "recurrence"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} is for whole networks; give --model with it")
    if options.paper and (options.layers or options.baseline):
        raise InputError("--paper chooses layers and baseline itself; leave those options out")
    for name in (
        *("channels", "batch", "threads", "rounds", "k", "recurrence"),
        *("seconds", "limit_seconds", "limit_memory"),
    ):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {value}: give more than 0")


def _size(text: str, option: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if match is None:
        raise InputError(f"--{option} {text}: give height x width, such as 97x97")
    return int(match[1]), int(match[2])


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """Options of layers and networks alike; those not given are left to their defaults."""
    given = {
        "batch": options.batch,
        "dtype": options.dtype,
        "device": options.device,
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "limit_seconds": options.limit_seconds,
        "limit_memory": None if options.limit_memory is None else int(options.limit_memory * 2**30),
    }
    return {name: value for name, value in given.items() if value is not None}


def _layers(options: argparse.Namespace, progress: Progress, command: str) -> None:
    from fsanet.bench import paper
    from fsanet.bench.cases import CASES, find_cases
    from fsanet.bench.harness import run_bench
    from fsanet.bench.progress import watch_on
    from fsanet.bench.results import Settings
    from fsanet.bench.tables import about, cost_grid, markdown, scaling_grid, time_grid

    sizes: Sequence[tuple[int, int]] = paper.SIZES if options.paper else _SIZES
    if options.sizes is not None:
        sizes = [_size(text, "sizes") for text in options.sizes]
    names = paper.LAYERS if options.paper else options.layers or [case.name for case in CASES]
    settings = Settings(
        layers=tuple(names),
        sizes=tuple(sizes),
        channels=options.channels,
        baseline=paper.BASELINE if options.paper else options.baseline or "sdpa",
        backward=options.backward,
        **_common(options),
    )
    find_cases([settings.baseline])

    def save(report: Report, first: Grid | None = None) -> None:
        text = markdown(report, command=command)
        text = text if first is None else f"{first.markdown()}\n{text}"
        _write(options, report.as_dict(), text)
        if options.figures is not None:
            from fsanet.bench.figures import write_figures

            write_figures(report, options.figures)

    def show(report: Report, size: tuple[int, int]) -> None:
        _print(progress, cost_grid(report, size), time_grid(report, size))
        save(report)  # an interrupted run leaves what it has

    report = run_bench(settings, watch=watch_on(progress), done=show)
    scaling = scaling_grid(report)
    claims = paper.paper_grid(report) if options.paper else None
    save(report, claims)
    _print(progress, *(grid for grid in (scaling, claims) if grid is not None))
    _print(progress, about(report))


def _networks(options: argparse.Namespace, progress: Progress, command: str) -> None:
    from fsanet.bench.network import NetworkSettings, run_network_bench
    from fsanet.bench.network_table import network_about, network_grid, network_markdown
    from fsanet.bench.progress import watch_on

    settings = NetworkSettings(
        source=options.model,
        size=_size(options.image or "769x769", "image"),
        similarity=options.similarity,
        recurrence=options.recurrence,
        k=options.k,
        **_common(options),
    )
    report = run_network_bench(settings, watch=watch_on(progress))
    _write(options, report.as_dict(), network_markdown(report, command=command))
    _print(progress, network_grid(report), network_about(report))


def _print(progress: Progress, *parts: Grid | str) -> None:
    """To stdout, with the bar out of the way."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)  # a file has room
    progress.stop()
    for part in parts:
        console.print(part if isinstance(part, str) else part.rich(), highlight=False, markup=False)
    progress.start()


def _write(options: argparse.Namespace, values: dict[str, Any], text: str) -> None:
    from fsanet.files import write_json, write_text

    if options.json is not None:
        write_json(options.json, values)
    if options.markdown is not None:
        write_text(options.markdown, text)
