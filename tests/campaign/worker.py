"""Runs `fsanet` commands in forks of a process that has imported everything once.

A line of JSON on stdin asks for a command, a line of JSON on stdout says how it ended. The command
runs in a session of its own with its output in files, without a network, and with limits on time
and memory. What it opens outside its folder, and every attempt to connect, is noted in a file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from support.processes import alive_in_session

MIB = 2**20
ADDRESS_SPACE = 6 * 2**30  # more than at the fork; beyond it, an allocation fails at once
FILE_SIZE = 2**30

_CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
)
_CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname")
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")


def warm_up() -> None:
    """Import what any command may import: a fork then starts in milliseconds."""
    import importlib
    import pkgutil

    import torch

    torch.set_num_threads(1)  # a fork cannot use the threads of its parent
    import fsanet

    for module in pkgutil.walk_packages(fsanet.__path__, "fsanet."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("lightning", "torchmetrics", "transformers", "timm.models", "matplotlib.pyplot"):
        importlib.import_module(name)
    for name in ("torch._dynamo", "tensorboard.summary.writer.event_file_writer", "scipy.io"):
        importlib.import_module(name)
    from transformers import SegformerForSemanticSegmentation  # noqa: F401


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Run one command and say how it ended.

    Args:
        case: "command" (arguments of fsanet, in hexadecimal), "folder" to work in, "log" (a folder
            for what it prints and does), "seconds" and "memory" (MiB more than at the fork), what
            "stdin" holds; optionally "signal" to send "after" so many seconds, and "tmp" (TMPDIR).

    Returns:
        "code" (negative: signal), "why" it was ended ("time", "memory" or ""), "cpu" and "seconds",
        "peak" in MiB.
    """
    log = Path(case["log"])
    (log / "stdin").write_text(case["stdin"])
    base = _resident(os.getpid())
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(case, log)
    why, largest, sent = "", base, "signal" not in case
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        largest = max(largest, _resident(pid))
        if not sent and time.monotonic() - began > case["after"]:
            os.kill(pid, case["signal"])
            sent = True
        if largest - base > case["memory"]:
            why = "memory"
        elif time.monotonic() - began > case["seconds"]:
            why = "time"
        if why:
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(0.01)
    left = _outlived(pid)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "why": why or ("left processes" if left else ""),
        "seconds": round(time.monotonic() - began, 2),
        "cpu": round(usage.ru_utime + usage.ru_stime, 2),
        "peak": max(0, round(max(largest, usage.ru_maxrss / 1024) - base)),
    }


def _outlived(session: int, seconds: float = 1.0) -> bool:
    """Whether processes of a command are alive some time after it; they are killed."""
    stop = time.monotonic() + seconds
    while left := alive_in_session(session):
        if time.monotonic() > stop:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


def _child(case: dict[str, Any], log: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(case["folder"])
        for number, (name, flags) in enumerate(
            (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY))
        ):
            descriptor = os.open(log / name, flags | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, number)
        sys.stdin = os.fdopen(0, closefd=False)
        for name in list(os.environ):
            if name.startswith(("PYTEST", "FSANET", "COV")):
                del os.environ[name]
        home = Path(case["folder"], "home")
        tmp = case.get("tmp", str(home))
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{home}/torchinductor"  # it stays by design
        os.environ |= {"HOME": str(home), "TMPDIR": tmp, "COLUMNS": "200", "NO_COLOR": "1"}
        import tempfile

        tempfile.tempdir = None
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for limit, value in (
            (resource.RLIMIT_AS, size + ADDRESS_SPACE),
            (resource.RLIMIT_FSIZE, FILE_SIZE),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (value, value))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _watch(Path(case["folder"]), log)
        from fsanet.cli.main import main

        sys.argv = ["fsanet", *map(os.fsdecode, map(bytes.fromhex, case["command"]))]
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _watch(folder: Path, log: Path) -> None:
    """Note connections, programs, and changes of files outside the folder; refuse the first."""
    inside = (f"{folder}/", "/dev/null", "/dev/shm/", "/proc/self/")
    if sys.pycache_prefix:  # bytecode that the tests keep (tests/conftest.py)
        inside += (sys.pycache_prefix,)
    notes = os.open(log / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor
        text = os.path.abspath(os.fsdecode(path))
        return text != str(folder) and not text.startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        what = None
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if flags else 0
            if (writes or any(c in str(mode or "r") for c in "wax+")) and outside(path):
                what = f"write {os.fsdecode(path)}"
        elif event in _CHANGES and any(outside(path) for path in arguments[:2]):
            what = f"{event} {arguments[:2]}"
        elif event in _PROGRAMS:
            program = str(arguments[0])
            if "git" not in program and "python" not in program:
                what = f"program {arguments[:2]}"
        elif event == "socket.connect" and isinstance(arguments[1], str | bytes):
            pass  # a socket of the file system, as between the workers of a loader
        elif event in _CONNECTS:
            os.write(notes, f"network {event} {arguments[1:]!r}\n".encode("utf-8", "replace"))
            raise OSError(101, "Network is unreachable")
        if what is not None:
            os.write(notes, f"{what}\n".encode("utf-8", "replace"))

    sys.addaudithook(hook)


def _resident(pid: int) -> float:
    """MiB in memory of a process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / MIB


def main() -> None:
    warm_up()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else speaks on stdout
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        replies.write(json.dumps(run(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
