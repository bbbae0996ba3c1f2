"""The command `fsanet`: finds the command, and turns what goes wrong into one line.

The commands are in `fsanet.cli`, one file each, imported when called.

Exit codes: 0 done, 2 bad input (one line on stderr says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from fsanet.cli.parsing import Parser
from fsanet.errors import InputError

_COMMANDS = {
    "demo": "train on built-in scenes for two minutes, evaluate, predict, write a report",
    "train": "train a network from a YAML file and options",
    "eval": "mIoU of a trained network on a split, class by class",
    "sweep": "which frequencies a trained network needs: k and band sweeps, table and figure",
    "predict": "segment images: masks, overlays, class areas",
    "export": "write a trained network as one ONNX or torch.export file",
    "convert": "replace the attention of a trained network, or open a published checkpoint",
    "data": "check a data set on disk: numbers, pairs, sizes, ids, unreadable files",
    "bench": "attention layers or whole networks side by side: FLOPs, memory, time",
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
    if given and given[0] in _COMMANDS:
        return importlib.import_module(f"fsanet.cli.{given[0]}").run(given[1:])
    if given and not given[0].startswith("-"):
        near = difflib.get_close_matches(given[0], _COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"give one of {', '.join(_COMMANDS)}"
        raise InputError(f"no command '{given[0]}'; {hint}")
    lines = "\n".join(f"  {name:9}{text}" for name, text in _COMMANDS.items())
    parser = Parser(
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


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _fail(message: str) -> int:
    print(f"fsanet: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
