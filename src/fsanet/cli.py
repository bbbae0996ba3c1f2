"""The command `fsanet`: parses, calls, prints. Heavy imports wait for the command that needs them.

Exit codes: 0 done, 2 bad input (one line on stderr says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsanet.errors import InputError

if TYPE_CHECKING:
    from fsanet.tasks.scores import Scores

_COMMANDS = {
    "demo": "train on built-in scenes for two minutes, evaluate, predict, write a report",
    "train": "train a network from a YAML file and options",
    "eval": "mIoU of a trained network on a split, class by class",
    "predict": "segment images: masks, overlays, class areas",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        arguments: without the program's name; `sys.argv` by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        return _run(given)
    except KeyboardInterrupt:
        if debug:
            raise
        print("fsanet: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse: after --help, or after its own message
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no noise at exit
        return 141
    except InputError as error:
        if debug:
            raise
        return _fail(str(error))
    except Exception as error:
        if debug or not _out_of_memory(error):
            raise
        return _fail(
            "out of memory; try a smaller data.init_args.batch_size or crop (train), "
            "or a window (eval, predict)"
        )


def _run(given: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "eval": _eval,
        "predict": _predict,
        "demo": _demo,
    }
    if given and given[0] in commands:
        return commands[given[0]](given[1:])
    if given and not given[0].startswith("-"):
        near = difflib.get_close_matches(given[0], commands, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"give one of {', '.join(_COMMANDS)}"
        raise InputError(f"no command '{given[0]}'; {hint}")
    lines = "\n".join(f"  {name:9}{text}" for name, text in _COMMANDS.items())
    parser = _Parser(
        prog="fsanet",
        usage="fsanet [--version] [--debug] COMMAND ...",
        description="Semantic segmentation with frequency self-attention.",
        epilog=f"commands (each has its own --help):\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if parser.parse_args(given).version:
        from fsanet import __version__

        print(f"fsanet {__version__}")
        return 0
    raise InputError(f"a command is missing; give one of {', '.join(_COMMANDS)}, or --help")


def _train(given: list[str]) -> int:
    _quiet()
    import lightning

    from fsanet import options
    from fsanet.tasks.run_folder import first_process
    from fsanet.tasks.training import train

    parser = options.train_parser()
    if "--resume" in given and not _has(given, "--config"):
        config = Path(_value_of(given, "--out") or "") / "config.yaml"
        if config.is_file():  # a run knows its own options
            given = ["--config", str(config), *given]
    # `--resume` alone, as well as `--resume true`
    given = _switches(given, ("--resume", "--overwrite"))
    parsed = options.parse(parser, given)
    name = Path(str(parsed.config[-1])).stem if parsed.config else "run"
    out = Path(parsed.out) if parsed.out else Path("runs") / name
    lightning.seed_everything(parsed.seed, verbose=False)
    data = options.make_data(parser, parsed)
    task = options.make_task(parsed, data)
    result = train(
        task,
        data,
        out=out,
        config=options.record(parser, parsed, out),
        **options.train_arguments(parsed),
    )
    if first_process():
        print(
            f"best mIoU {result.miou:.4f} after {result.best_step} of {result.steps} steps, "
            f"{result.seconds / 60:.1f} min; model in {result.model}"
        )
    return 0


def _eval(given: list[str]) -> int:
    _quiet()
    from fsanet import options
    from fsanet.files import write_json
    from fsanet.tasks.run_folder import first_process
    from fsanet.tasks.training import evaluate

    folders = [Path(text) for text in given if not text.startswith("-") and Path(text).is_dir()]
    known = [found for found in map(options.data_of_run, folders) if found is not None]
    parser = options.eval_parser(known[0] if known else None)
    parsed = options.parse(parser, given)
    data = options.make_data(parser, parsed)
    arguments = {
        key: value for key, value in vars(parsed).items() if key not in ("model", "data", "json")
    }
    scores = evaluate(parsed.model, data, **arguments)
    if not first_process():
        return 0
    _print_scores(scores, f"{parsed.model}, {parsed.split} split")
    if parsed.json is not None:
        from fsanet.provenance import environment

        about = {"model": str(parsed.model), "split": parsed.split}
        write_json(parsed.json, about | scores.as_dict() | {"versions": environment()})
    return 0


def _predict(given: list[str]) -> int:
    parser = _Parser(prog="fsanet predict", description="Segment images and folders of images.")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    add("--model", required=True, metavar="DIR", help="run folder, model folder, or hub id")
    add("--out", required=True, metavar="DIR", help="masks, overlays and summaries go here")
    add("--window", type=int, nargs="+", metavar="N", help="sliding window: side, or height width")
    add("--stride", type=int, nargs="+", metavar="N", help="its step (default: 2/3 of it)")
    add("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="average over scales")
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--batch-size", type=int, default=1, metavar="N", help="windows or images at once")
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add("--dtype", choices=["bfloat16", "float16"], help="half precision where it is safe")
    add("--offload", action="store_true", help="keep logits in main memory")
    add("--confidence", action="store_true", help="write how sure the network is, too")
    add("--no-recursive", action="store_true", help="leave out sub-folders")
    add("--alpha", type=float, default=0.5, help="strength of the overlay, 0..1")
    add("--no-legend", action="store_true", help="overlays without a legend")
    options = parser.parse_args(given)
    window, stride = (_side(name, getattr(options, name)) for name in ("window", "stride"))

    import torch

    from fsanet.predict import predict_to_folder

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"--device {device}: not available ({line})") from error
    summary = predict_to_folder(
        options.model,
        options.images,
        options.out,
        window=window,
        stride=stride,
        scales=options.scales,
        flip=options.flip,
        batch_size=options.batch_size,
        device=device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        offload=options.offload,
        confidence=options.confidence,
        recursive=not options.no_recursive,
        alpha=options.alpha,
        legend=not options.no_legend,
        progress=sys.stderr.isatty(),
    )
    print(f"{summary['images']} images in {summary['seconds']:.1f} s; results in {options.out}")
    failed = summary["failed"]
    if failed:
        raise InputError(f"{len(failed)} not read, the first: {failed[0]['error']}")
    return 0


def _demo(given: list[str]) -> int:
    parser = _Parser(
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
    _quiet()
    from fsanet.demo import run_demo

    run_demo(Path(options.out), minutes=options.minutes, seed=options.seed, steps=options.steps)
    return 0


def _print_scores(scores: Scores, title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def percent(value: float) -> str:
        return "no label" if value != value else f"{100 * value:.2f}"

    table = Table(title=escape(title), title_justify="left")
    table.add_column("class")
    for name in ("IoU %", "accuracy %", "pixels"):
        table.add_column(name, justify="right")
    for name, iou, accuracy, pixels in zip(
        scores.classes, scores.iou, scores.accuracy, scores.pixels, strict=True
    ):
        table.add_row(escape(name), percent(iou), percent(accuracy), f"{pixels:,}")
    console = Console()
    console.print(table)
    print(
        f"mIoU {percent(scores.miou)} %, pixel accuracy {percent(scores.pixel_accuracy)} %, "
        f"mean accuracy {percent(scores.mean_accuracy)} %"
    )


class _Parser(argparse.ArgumentParser):
    """Raises `InputError` instead of ending the process."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(message)


def _side(name: str, values: list[int] | None) -> int | tuple[int, int] | None:
    if values is None:
        return None
    if len(values) > 2:
        raise InputError(f"--{name} takes a side, or height and width; got {len(values)} numbers")
    return values[0] if len(values) == 1 else (values[0], values[1])


def _has(given: list[str], option: str) -> bool:
    return any(text == option or text.startswith(option + "=") for text in given)


def _value_of(given: list[str], option: str) -> str | None:
    for index, text in enumerate(given):
        if text.startswith(option + "="):
            return text.split("=", 1)[1]
        if text == option and index + 1 < len(given):
            return given[index + 1]
    return None


def _switches(given: list[str], names: tuple[str, ...]) -> list[str]:
    result = []
    for index, text in enumerate(given):
        follows = given[index + 1].lower() if index + 1 < len(given) else ""
        result.append(
            f"{text}=true" if text in names and follows not in ("true", "false") else text
        )
    return result


def _quiet() -> None:
    """Nothing on the console that the user neither asked for nor can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        r".*does not have many workers.*",
        r".*LeafSpec.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*GPU available but not used.*",
        r".*when logging on epoch level in distributed setting.*",  # they are equal already
    ):
        warnings.filterwarnings("ignore", message=pattern)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _fail(message: str) -> int:
    print(f"fsanet: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
