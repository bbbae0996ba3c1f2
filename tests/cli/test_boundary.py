"""Whatever happens ends with one line: exit code 2 for a mistake, 1 for a defect of fsanet."""

import errno
import os
import signal
import sys
import warnings

import numpy as np
import pytest
import torch

from fsanet.cli import main as cli
from fsanet.cli.eval import print_table
from fsanet.errors import InputError
from fsanet.signals import Interrupted


def ending(capsys, *arguments):
    """Exit code and standard error of a command."""
    capsys.readouterr()
    return cli.main(list(arguments)), capsys.readouterr().err


ALLOCATION = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


WORKER = """Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1, in x
ValueError: bad
"""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.png: no such file"), 2, "error: a.png: no such file"),
        (InputError("\x1b[31m\nred"), 2, r"error: \x1b[31m\nred"),
        (MemoryError(), 2, "error: does not fit into memory: try"),
        (torch.OutOfMemoryError("Tried to allocate"), 2, "error: does not fit into memory: try"),
        (RuntimeError(ALLOCATION), 2, "error: does not fit into memory: try"),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype("f4")), 2, "error: does not fit"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), 2, "error: x: no space left"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "error: no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "x\n"), 2, r"x\n: permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 400), 2, "...: file name too"),
        (OSError("odd"), 1, "internal error: OSError: odd; this is a defect of fsanet"),
        (RecursionError("deep"), 1, "internal error: RecursionError: deep; "),
        (KeyError("k\x1b"), 1, r"internal error: KeyError: 'k\x1b'; "),
        (ValueError("first\nframe #0: c10::Error" * 99), 1, "internal error: ValueError: first "),
        (AssertionError(), 1, "internal error: AssertionError; "),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), 2, r"error: \ud800: not UTF-8 text"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), 2, "try fewer"),
        (
            KeyError("Caught.\nTraceback (most recent call last):\n  x\nKeyError: 'k'"),
            1,
            "internal",
        ),
        (SystemExit("text"), 1, "internal error: SystemExit: text"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGTERM, "go on"), 143, "interrupted; go on"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_one_line_for_every_error(error, code, line, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr("fsanet.cli.demo.run", fail)
    found, shown = ending(capsys, "demo")
    assert found == code
    assert shown.startswith("fsanet: ")
    assert line in shown
    assert shown.count("\n") == 1
    assert len(shown) < 600
    assert ("--debug shows the traceback" in shown) == (code == 1)
    with pytest.raises(type(error)):
        cli.main(["--debug", "demo"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "a command is missing"),
        (["trian"], "did you mean train"),
        (["\x1b[31m"], r"no command '\x1b[31m'"),
        (["\udcff"], "no command"),
        (["demo", "--seed", "\udcff"], "seed"),
        (["demo", "--out\udcff", "x"], "nrecognized"),
        (["demo", "\x1b[31m"], r"\x1b[31m"),
        (["demo", "--seed", "[" * 5000], "seed"),
        (["demo", "--seed", "&a [*a]"], "seed"),
        (["demo", "--seed", "!!python/name:os.system"], "seed"),
        (["demo", "--seed", "null"], "seed"),
        (["demo", "--seed", "1e999"], "seed"),
        (["demo", "--seed", "9" * 5000], "seed"),
        (["demo", "--seed", "-1"], "seed=-1"),
        (["demo", "--steps", "nan"], "steps"),
        (["demo", "--steps", "0"], "steps=0"),
        (["demo", "--minutes", "nan"], "minutes"),
        (["demo", "--minutes", "inf"], "minutes"),
        (["demo", "--minutes", "-1"], "minutes"),
        (["demo", "--seed"], "seed"),
        (["demo", "--config", "x"], "config"),
        (["export", "nowhere", "--out", "x.onnx", "--size", "0", "0"], "size"),
        (["export", "nowhere", "--out", "x.onnx"], "nowhere"),
        (["data", "check", "/nowhere"], "/nowhere"),
        (["data", "check", "/dev/null"], "/dev/null"),
        (["data", "delete", "/tmp"], "action"),
        (["bench", "--layers", "none"], "none"),
        (["bench", "--sizes", "0x0"], "0x0"),
        (["bench", "--sizes", "97"], "97"),
        (["bench", "--sizes", "9" * 400 + "x97"], "--sizes 999"),
        (["demo", "--minutes", "1e308"], "minutes=1e+308"),
        (["bench", "--device", "meta"], "--device meta"),
        (["bench", "--device", "abacus"], "--device abacus"),
        (["bench", "--threads", "0"], "threads"),
        (["convert", "x", "--out", "x"], "is the folder of the model"),
        (["convert", "x", "--out", "y", "--by", "miou"], "--by miou requires --calibrate"),
        (["convert", "x", "--out", "y", "--calibrate", "nan"], "calibrate"),
        (["convert", "x", "--out", "y", "--size", "0"], "--size 0"),
        (["sweep", "nowhere"], "nowhere"),
        (["eval", "nowhere", "--data", "FolderData"], "data"),
    ],
)
def test_one_line_for_every_command(arguments, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown = ending(capsys, *arguments)
    assert code == 2, shown
    assert shown.startswith("fsanet: error: ")
    assert shown.count("\n") == 1
    assert len(shown) < 600
    assert line in shown
    assert not list(tmp_path.iterdir())


def test_output_that_is_no_longer_read():
    read, write = os.pipe()
    os.close(read)
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        sys.stdout = os.fdopen(1, "w")
        os._exit(cli.main(["--help"]))
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_output_that_is_full(capfd):
    child = os.fork()
    if child == 0:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = cli.main(["--help"])
        sys.stderr.flush()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert capfd.readouterr().err == "fsanet: error: no space left on device\n"


def test_libraries_say_at_most_one_line(capsys, monkeypatch):
    import logging

    def chat(arguments):
        logging.getLogger("some.library").error("three\nmore\nlines")
        logging.getLogger("some.library").warning("chatter")
        return 0

    monkeypatch.setattr("fsanet.cli.demo.run", chat)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with warnings.catch_warnings():
        code, shown = ending(capsys, "demo")
    assert code == 0
    assert shown == "fsanet: warning: some.library: three more lines\n"


def test_class_name_of_two_lines_takes_one_row(capsys):
    print_table("a\x1b", ["class", "IoU %"], [["wall\nof [red]", "1.00"]])
    shown = capsys.readouterr().out
    assert shown.startswith(r"a\x1b")
    assert r"wall\nof [red]" in shown
    assert shown.count("1.00") == 1
    assert len(shown.splitlines()) == 6
