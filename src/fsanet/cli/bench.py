"""`fsanet bench`: measure attention layers or whole networks side by side."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fsanet.cli.help import Section
from fsanet.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from fsanet.bench.compare_layers import LayerReport
    from fsanet.bench.grow_layers import GrowthReport, Value
    from fsanet.bench.tables import Grid

HELP = [Section("fsanet.cli.bench:bench", skip={"command"})]

_SIZES = ("97x97", "128x128", "128x256", "256x512")
_PAPER_SIZES = ("97x97", "129x129")
_ENCODER = "resnet101s"


def run(given: Sequence[str]) -> int:
    from fsanet.cli.parsing import CommandParser

    arguments = list(given)
    for index, text in enumerate(given):  # --model may stand alone
        if text == "--model" and (index + 1 == len(given) or given[index + 1].startswith("--")):
            arguments[index] = f"--model={_ENCODER}"
    parser = CommandParser()
    parser.add_function_arguments(bench, as_group=False, skip={"command"})
    bench(**parser.parse(arguments).as_dict(), command=shlex.join(["fsanet", "bench", *given]))
    return 0


def bench(
    *,
    command: str,
    layers: list[str] | None = None,
    sizes: list[str] | None = None,
    channels: int = 512,
    baseline: str | None = None,
    backward: bool = True,
    paper: bool = False,
    grow: list[str] | None = None,
    figures: str | None = None,
    model: str | None = None,
    image: str | None = None,
    predict: list[str] | None = None,
    k: int | None = None,
    similarity: Literal["dot", "linear_softmax", "linear", "softmax"] | None = None,
    recurrence: int | None = None,
    json: str | None = None,
    markdown: str | None = None,
    device: str | None = None,
    limit_memory: float | None = None,
    batch: int = 1,
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    threads: int | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    limit_seconds: float | None = None,
) -> None:
    """Measure attention layers side by side on the same map: FLOPs, memory, time.

    Each layer is first run in a process of its own, and one that runs out of memory or time is
    reported as such. All layers at all sizes take about half an hour on two cores;
    --sizes 97x97 --layers floor sdpa dot-R1 takes one minute.

    Args:
        command: the command line, for the reports.
        layers: names of layers; by default all of them (a wrong name lists them).
        sizes: height x width of the maps; by default 97x97 128x128 128x256 256x512.
        channels: channels of the maps.
        baseline: layer that speed-ups refer to; by default sdpa.
        backward: measure forward + backward too; --no-backward leaves it out.
        paper: compare with the paper's claims, at its sizes, 97x97 and 129x129, and with its
            baseline, which stores the N x N matrix.
        grow: measure how cost grows along one axis at a time, N, batch, channels, k or R, from a
            map of 64x64 by default; --grow N k=4,8,16 chooses the values of k. All five take about
            ten minutes on two cores.
        figures: folder to draw time and memory against N, or along each axis of --grow, into.
        model: measure a whole network instead, without, with regular and with frequency attention;
            a timm encoder (resnet101s if none is given) or the folder of a saved FsaNet.
        image: height x width of the network's images; by default 769x769.
        predict: image files and folders: measure fsanet predict with --model, the folder of a saved
            network, against the network alone on the same batches.
        k: frequencies that the network keeps per axis; by default its own.
        similarity: similarity of the network's frequency attention; by default its own.
        recurrence: rounds of the network's frequency attention; by default its own.
        json: file to write all numbers to.
        markdown: file to write the tables to.
        device: cpu, cuda, cuda:1 or mps; by default a GPU if there is one.
        limit_memory: memory in GiB that a layer or network may take; by default 80 percent of what
            is free (Linux).
        batch: maps or images per call.
        dtype: dtype of parameters and input.
        threads: threads of CPU operators; by default as many as torch uses.
        rounds: largest number of rounds; by default 20, for a network 10, with --predict 5.
        seconds: time in seconds for all rounds of one size; by default 60, for a network 120, with
            --predict 600, for one value of --grow 3.
        limit_seconds: leave out what takes more seconds for a forward pass; by default 20, for a
            network 120, with --grow 8.
    """
    from fsanet.cli.parsing import available_device
    from fsanet.errors import check_range
    from fsanet.files import check_writable, check_writable_file, write_json, write_text

    attention: dict[str, Any] = {"k": k, "similarity": similarity, "recurrence": recurrence}
    chosen: dict[str, Any] = {"layers": layers, "baseline": baseline}
    if model is None:
        _refuse({"image": image, **attention}, "is for whole networks; give --model with it")
    else:
        for_layers = {**chosen, "sizes": sizes, "figures": figures, "paper": paper or None}
        for_layers |= {"grow": grow}
        _refuse(for_layers, "is for layers; leave it out with --model")
    if predict is not None:
        if model is None:
            raise InputError("--predict requires --model, the folder of a saved network")
        _refuse({"image": image, **attention}, "is for one call of a network; leave it out")
    if paper:
        _refuse(chosen, "cannot be combined with --paper, which chooses the layers itself")
        _refuse({"grow": grow}, "cannot be combined with --paper")
    if limit_memory is not None:
        check_range("limit_memory", limit_memory, 0.001, 1e6)
    for file in (json, markdown):
        if file is not None:
            check_writable_file(file)
    if figures is not None:
        check_writable(figures)
    options: dict[str, Any] = {
        "batch": batch,
        "dtype": dtype,
        "device": available_device(device),
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "limit_seconds": limit_seconds,
        "limit_memory": None if limit_memory is None else int(limit_memory * 2**30),
    }
    options = {name: value for name, value in options.items() if value is not None}
    from fsanet.bench import cases, tables
    from fsanet.bench.compare_layers import LayerSettings, compare_layers
    from fsanet.bench.compare_networks import NetworkSettings, compare_networks
    from fsanet.progress import ConsoleProgress

    def save(content: dict[str, Any], text: str) -> None:
        if json is not None:
            write_json(json, content)
        if markdown is not None:
            write_text(markdown, text)

    def save_layers(report: LayerReport, first: Grid | None = None) -> None:
        text = tables.layers_markdown(report, command=command)
        save(report.as_dict(), text if first is None else f"{first.markdown()}\n{text}")
        if figures is not None:
            from fsanet.bench.figures import write_figures

            write_figures(report, figures)

    def on_size(report: LayerReport, size: tuple[int, int]) -> None:
        _print(progress, tables.cost_grid(report, size), tables.time_grid(report, size))
        save_layers(report)  # an interrupted run leaves what it has

    def on_axis(report: GrowthReport) -> None:
        _print(progress, *tables.growth_grids(report.growths[-1]))
        save(report.as_dict(), tables.growth_markdown(report, command=command))
        if figures is not None:
            from fsanet.bench.figures import write_growth

            write_growth(report, figures)

    with ConsoleProgress() as progress:
        if model is not None and predict is not None:
            from fsanet.bench.compare_prediction import PredictionSettings, compare_prediction

            task = PredictionSettings(model=model, images=tuple(predict), **options)
            found = compare_prediction(task, watch=progress.watch)
            save(found.as_dict(), tables.prediction_markdown(found, command=command))
            _print(progress, tables.prediction_grid(found), tables.steps_grid(found))
            _print(progress, tables.describe_prediction(found))
            return
        if model is not None:
            size = _size(image or "769x769", "image")
            settings = NetworkSettings(source=model, size=size, **attention, **options)
            network = compare_networks(settings, watch=progress.watch)
            save(network.as_dict(), tables.network_markdown(network, command=command))
            _print(progress, tables.network_grid(network), tables.describe_network(network))
            return
        if grow is not None:
            from fsanet.bench.grow_layers import LAYERS, grow_layers

            options = {"seconds": 3.0, "limit_seconds": 8.0, **options}
            base = LayerSettings(
                layers=tuple(layers or LAYERS),
                sizes=tuple(_size(text, "sizes") for text in sizes or ["64x64"]),
                channels=channels,
                baseline=baseline or "sdpa",
                backward=backward,
                **options,
            )
            if len(base.sizes) != 1:
                raise InputError("--sizes: give one with --grow; --grow N=32x32,64x64 has several")
            axes = dict(_axis(text) for text in grow)
            grown = grow_layers(base, axes, watch=progress.watch, on_axis=on_axis)
            _print(progress, tables.describe_growth(grown))
            return
        if paper:
            layers, baseline = list(cases.PAPER_LAYERS), cases.PAPER_LAYERS[0]
            sizes = sizes or list(_PAPER_SIZES)
        report = compare_layers(
            LayerSettings(
                layers=tuple(layers or [case.name for case in cases.CASES]),
                sizes=tuple(_size(text, "sizes") for text in sizes or _SIZES),
                channels=channels,
                baseline=baseline or "sdpa",
                backward=backward,
                **options,
            ),
            watch=progress.watch,
            on_size=on_size,
        )
        claims = tables.paper_grid(report) if paper else None
        save_layers(report, claims)
        grids = [tables.scaling_grid(report), claims]
        _print(progress, *(grid for grid in grids if grid is not None))
        _print(progress, tables.describe_layers(report))


def _refuse(options: dict[str, Any], reason: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name} {reason}")


def _size(text: str, option: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,8})[xX]([1-9]\d{0,8})", text)
    if match is None:
        raise InputError(f"--{option} {text}: give height x width, such as 97x97")
    return int(match[1]), int(match[2])


def _axis(text: str) -> tuple[str, list[Value]]:
    """An axis and its values, none by default: "k=4,8", "N=32x32,64x64", "batch"."""
    name, _, given = text.partition("=")
    values: list[Value] = []
    for one in given.split(",") if given else ():
        if name == "N":
            values.append(_size(one, "grow N"))
        elif re.fullmatch(r"[1-9]\d{0,6}", one):
            values.append(int(one))
        else:
            raise InputError(f"--grow {text}: give positive whole numbers, such as {name}=2,4,8")
    return name, values


def _print(progress: Progress, *parts: Grid | str) -> None:
    """Print to stdout with the bar out of the way."""
    from rich.console import Console

    console = Console(emoji=False)
    if not console.is_terminal:
        console = Console(width=180, emoji=False)  # a file has room
    progress.stop()
    for part in parts:
        console.print(part if isinstance(part, str) else part.rich(), highlight=False, markup=False)
    progress.start()
