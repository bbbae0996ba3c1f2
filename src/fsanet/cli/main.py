"""The program `fsanet`: finds the command and turns errors into one line and an exit code.

Each command is a file of this folder, imported when it is called.

Exit codes: 0 done, 2 wrong input (one line on stderr says what), 128 + signal if interrupted.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from fsanet.errors import InputError
from fsanet.signals import Interrupted, handled

__all__ = ["main"]

_COMMANDS = {
    "demo": "train on built-in scenes for two minutes, evaluate, predict, write a report",
    "train": "train a network from a recipe and options",
    "eval": "mIoU or average precision of a trained network on a split",
    "predict": "segment images: masks, overlays, class areas",
    "convert": "replace the attention of a trained network, or open a published checkpoint",
    "sweep": "which frequencies a trained network needs: table and figure",
    "bench": "attention layers or whole networks side by side: FLOPs, memory, time",
    "export": "write a trained network as one ONNX or torch.export file",
    "data": "check a data set on disk: counts, pairs, sizes, label ids, unreadable files",
}
_USAGE = """\
usage: fsanet [--version] [--debug] COMMAND ...

Semantic and instance segmentation with frequency self-attention.

commands (each has its own --help):
{}

options:
  --version  print the version and exit
  --debug    show the traceback of an error
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; `sys.argv` by default.

    Returns:
        the exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        with handled(to_the_end=arguments is None):
            return _run(given)
    except KeyboardInterrupt as stop:
        if debug:
            raise
        interrupted = stop if isinstance(stop, Interrupted) else Interrupted()
        print(f"fsanet: {interrupted}", file=sys.stderr)
        return 128 + interrupted.number
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no message at exit
        return 141
    except Exception as error:
        if debug or not (isinstance(error, InputError) or _out_of_memory(error)):
            raise
        line = " ".join(str(error).split())
        if not isinstance(error, InputError):
            line = "out of memory; try a smaller --data.batch-size or crop (train), or a --window"
        print(f"fsanet: error: {line}", file=sys.stderr)
        return 2


def _run(given: list[str]) -> int:
    name = given[0] if given else ""
    if name in _COMMANDS:
        silence_libraries()
        return import_module(f"fsanet.cli.{name}").run(given[1:])
    if name in ("--help", "-h"):
        print(_USAGE.format("\n".join(f"  {n:9}{text}" for n, text in _COMMANDS.items())), end="")
        return 0
    if name == "--version":
        from fsanet import __version__

        print(f"fsanet {__version__}")
        return 0
    near = difflib.get_close_matches(name, _COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(_COMMANDS)}, or --help"
    raise InputError(f"no command {name!r}; {hint}" if name else f"a command is missing; {hint}")


def silence_libraries() -> None:
    """Keep from the console what the user neither asked for nor can act on."""
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
    warnings.formatwarning = _one_line_warning


_PACKAGE = Path(__file__).resolve().parents[1]
_FORMAT = warnings.formatwarning  # Python's own, for warnings of other packages


def _one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    if Path(filename).is_relative_to(_PACKAGE):
        return f"fsanet: warning: {' '.join(str(message).split())}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )
