"""The program `fsanet`: finds the command and turns errors into one line and an exit code.

Each command is a file of this folder, imported when it is called.

Exit codes: 0 done, 2 wrong input (one line on stderr says what), 128 + signal if interrupted.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import errno
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fsanet.cli.help import requested_help
from fsanet.errors import InputError, one_line, printable
from fsanet.signals import Interrupted, handled

__all__ = ["COMMANDS", "main", "reuse_freed_memory", "user_error", "user_errors"]

COMMANDS = {
    "demo": "train on built-in scenes for two minutes, evaluate, predict, write a report",
    "train": "train a network from a recipe and options",
    "eval": "score a trained network on a split: mIoU or average precision",
    "predict": "segment images: masks, overlays, class areas",
    "convert": "replace the attention of a trained network, or open a published checkpoint",
    "sweep": "find which frequencies a trained network needs: table and figure",
    "bench": "measure attention layers or whole networks: FLOPs, memory, time",
    "export": "write a trained network as one ONNX or torch.export file",
    "explain": "show why a pixel got its class: attention, frequencies, gradients",
    "serve": "open a page in the browser: drop an image, see its classes, click a pixel",
    "data": "check a data set on disk, or show what it consists of (stats)",
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
    _complete_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        with handled(to_the_end=arguments is None):
            code = _run(given, debug)
            _finish_output()
            return code
    except KeyboardInterrupt as stop:
        if debug:
            raise
        interrupted = stop if isinstance(stop, Interrupted) else Interrupted()
        files = sys.modules.get("fsanet.files")
        if files is None or files.first_process():
            _report(str(interrupted))
        return 128 + interrupted.number
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            _finish_output()
        return 141
    except (Exception, SystemExit) as error:
        if debug or (isinstance(error, SystemExit) and not isinstance(error.code, str)):
            raise
        with contextlib.suppress(Exception):
            _finish_output()
        line = user_error(error)
        if line is not None:
            _report(f"error: {line}")
            return 2
        message = str(error).strip()
        if "Traceback (most recent call last)" in message:  # of a process that loads data
            message = message.rpartition("\n")[2]
        defect = type(error).__name__ + (f": {one_line(message)}" if message else "")
        _report(
            f"internal error: {defect}; this is a defect of fsanet, please report it "
            "(--debug shows the traceback)"
        )
        return 1


def _complete_streams() -> None:
    """Give a process without one of the standard streams, as with ``>&-``, one to nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order, which is that of the free descriptors
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _report(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody can be told
        print(f"fsanet: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def user_errors(program: str) -> Iterator[None]:
    """End a program with one line and exit code 2 on errors that `user_error` has a line for."""
    try:
        yield
    except Exception as error:
        line = user_error(error)
        if line is None:
            raise
        print(f"{program}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from error


def user_error(error: BaseException) -> str | None:
    """The line for an error that the user or the machine has caused; None for a defect."""
    if isinstance(error, InputError):
        return printable(" ".join(str(error).split()), 1000)
    if isinstance(error, UnicodeEncodeError):  # a surrogate: a byte that is no UTF-8
        return f"{printable(error.object, 300)}: not UTF-8 text; give another name"
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "the name of a file or folder holds a null character; give another name"
    torch = sys.modules.get("torch")
    out_of_memory = (MemoryError, *([] if torch is None else [torch.OutOfMemoryError]))
    message = str(error)
    if isinstance(error, out_of_memory) or any(text in message for text in _OUT_OF_MEMORY):
        return (
            "does not fit into memory: try a smaller --data.batch-size or crop (train), or a "
            "--window"
        )
    if "DataLoader worker" in message and ("signal" in message or "unexpectedly" in message):
        return "a process that loads data was killed, probably for memory: try fewer --data.workers"
    cause: BaseException | None = error
    while cause is not None:  # torch hides a full disk behind an error of its own
        if isinstance(cause, OSError) and cause.errno in _ENVIRONMENT:
            where = "" if cause.filename is None else f"{printable(str(cause.filename), 300)}: "
            return f"{where}{(cause.strerror or '').lower()}"
        cause = cause.__cause__ or cause.__context__
    return None


# How torch says on a CPU that there is not enough memory, or that no machine has that much; and
# the system, that it does not even hold the libraries.
_OUT_OF_MEMORY = (
    *("you tried to allocate", "Storage size calculation overflowed"),
    "failed to map segment from shared object",
)

# Errors of the system that no program can prevent.
_ENVIRONMENT = tuple(
    getattr(errno, name)
    for name in (
        *("EACCES", "EAGAIN", "EDQUOT", "EEXIST", "EFBIG", "EIO", "EISDIR", "ELOOP", "EMFILE"),
        *("ENAMETOOLONG", "ENFILE", "ENOENT", "ENOSPC", "ENOTDIR", "EPERM", "EROFS", "ESTALE"),
        "ETXTBSY",
    )
    if hasattr(errno, name)
)


def _finish_output() -> None:
    """Write what is still to be written; if that fails, keep Python from trying again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _run(given: list[str], debug: bool) -> int:
    name = given[0] if given else ""
    if name in COMMANDS:
        command = import_module(f"fsanet.cli.{name}")
        page = requested_help(name, given[1:], command.HELP)
        if page is not None:
            print(page, end="")
            return 0
        try:
            os.getcwd()
        except OSError as error:  # oneMKL ends the process without it
            raise InputError("the current folder is gone; change to another one") from error
        silence_libraries(debug)
        _check_environment()
        # `bench` measures what a program has that only imports the library, `bench --predict` what
        # `predict` has; `--window` is for images that hardly fit into memory.
        options = {one.partition("=")[0] for one in given}
        if "--window" not in options and (name != "bench" or "--predict" in options):
            reuse_freed_memory()
        return command.run(given[1:])
    if name in ("--help", "-h"):
        print(_USAGE.format("\n".join(f"  {n:9}{text}" for n, text in COMMANDS.items())), end="")
        return 0
    if name == "--version":
        from fsanet import __version__

        print(f"fsanet {__version__}")
        return 0
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(COMMANDS)}, or --help"
    raise InputError(f"no command {name!r}; {hint}" if name else f"a command is missing; {hint}")


def silence_libraries(debug: bool = False) -> None:
    """Keep from the console what the user neither asked for nor can act on.

    Args:
        debug: errors that are logged keep their tracebacks.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ["MPLBACKEND"] = "agg"  # figures are files
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it cannot read, it raises, too
    if not debug:
        logging.basicConfig(handlers=[_OneLine()])
    for pattern in (
        r".*does not have many workers.*",
        r".*LeafSpec.*",
        r".*module\(s\) in eval mode.*",  # frozen batch norms
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*GPU available but not used.*",
        r".*when logging on epoch level in distributed setting.*",  # they are equal already
    ):
        warnings.filterwarnings("ignore", message=pattern)
    for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.formatwarning = _one_line_warning


def _check_environment() -> None:
    """Find settings about which libraries print messages of their own when they are loaded.

    Raises:
        InputError: OMP_NUM_THREADS is no number.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not threads:
        os.environ.pop("OMP_NUM_THREADS", None)
    elif not re.fullmatch(r"[1-9][0-9]{0,4}(\s*,\s*[1-9][0-9]{0,4})*", threads):
        raise InputError(
            f"OMP_NUM_THREADS={threads}: give a number of threads from 1 to 99999, or unset it"
        )
    for name in ("COLUMNS", "LINES"):  # with a width of 0, tables would be empty
        if not re.fullmatch("[1-9][0-9]{1,3}", os.environ.get(name, "")):
            os.environ.pop(name, None)


def reuse_freed_memory() -> None:
    """Let glibc keep the memory of freed maps for the next ones, in this process.

    Otherwise every block of more than 32 MiB comes from the system, which clears it page by page.
    Blocks of more than 256 MiB still do, so that the memory of large images is given back. Settings
    of the environment (mallopt(3)) take precedence.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**28)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class _OneLine(logging.StreamHandler[Any]):
    """Errors that are logged, each on one line."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.ERROR)  # Lightning sets the level of its own logger

    def format(self, record: logging.LogRecord) -> str:
        return f"fsanet: warning: {record.name}: {one_line(record.getMessage())}"


_PACKAGE = Path(__file__).resolve().parents[1]


def _one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    own = Path(filename).is_relative_to(_PACKAGE)
    text = printable(" ".join(str(message).split()), 1000) if own else one_line(message)
    return f"fsanet: warning: {text}\n"
