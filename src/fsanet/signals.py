"""SIGINT, SIGTERM and SIGHUP end a command in order: one line, and exit code 128 + signal.

The first signal raises `Interrupted`, at once or, within `deferred`, where it does no harm. A
second one ends the process on the spot.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupted", "deferred", "handled", "install", "outlive_parent_signals", "received"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

# `timeout`, terminals and schedulers send a signal to a process and then to its whole group.
_SAME_SIGNAL = 1.0  # seconds


class Interrupted(KeyboardInterrupt):
    """A signal has asked the program to stop.

    Args:
        number: of the signal.
        advice: what was kept, or how to go on; it ends the line that the user sees.
    """

    def __init__(self, number: int = signal.SIGINT, advice: str = "") -> None:
        super().__init__(number, advice)
        self.number = number
        self.advice = advice

    def __str__(self) -> str:
        return f"interrupted; {self.advice}" if self.advice else "interrupted"


class _State:
    process = 0  # a forked process inherits the handlers
    depth = 0  # of `handled`
    deferring = 0  # depth of `deferred`
    received: int | None = None
    when = 0.0
    imports = 0  # frames of imports below `handled`
    unraisable: Callable[[Any], object] = sys.unraisablehook
    signals: tuple[int, ...] = ()  # those that are not ignored, as nohup does with SIGHUP


def _handle(number: int, frame: Any) -> None:
    if os.getpid() != _State.process:
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return  # the parent process decides
    if _State.received is not None:
        if time.monotonic() - _State.when > _SAME_SIGNAL:
            os._exit(128 + number)
        return
    _State.received, _State.when = number, time.monotonic()
    if _State.deferring:
        return
    if _imports(frame) > _State.imports:
        threading.Thread(target=_send_after_import, args=(number,), daemon=True).start()
    else:
        raise Interrupted(number)


def _imports(frame: Any) -> int:
    """The number of frames of the import system among a frame and those that called it."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return count


def _send_after_import(number: int) -> None:
    """Send a signal again that arrived in an import.

    A library may catch any exception there, and go on with a half of a module.
    """
    main = threading.main_thread().ident
    assert main is not None
    while _imports(sys._current_frames().get(main)) > _State.imports:
        time.sleep(0.01)
    _State.received = None
    os.kill(os.getpid(), number)


def _unraisable(found: Any) -> None:
    """Send a signal again that arrived in a `__del__`, where its exception is lost."""
    if not isinstance(found.exc_value, Interrupted):
        _State.unraisable(found)
        return
    threading.Thread(target=_send_again, args=(found.exc_value.number,)).start()
    # Last: raised any earlier, its exception would be lost in this function as well.
    _State.received = None


def _send_again(number: int) -> None:
    while _State.received is not None:
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def install() -> None:
    """Install the handlers again within `handled`, after a library has replaced them."""
    if _State.depth and threading.current_thread() is threading.main_thread():
        for number in _State.signals:
            signal.signal(number, _handle)


@contextmanager
def handled(*, to_the_end: bool = False) -> Iterator[None]:
    """Raise `Interrupted` at the first signal within this block, and exit at the second.

    Only the main thread receives signals; in any other, this does nothing.

    Args:
        to_the_end: leave the handlers installed, for a program that exits after this block: a
            signal that comes twice must not kill it while it reports the first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if not _State.depth:
        _State.process, _State.received = os.getpid(), None
        _State.imports = _imports(sys._getframe())
        _State.unraisable, sys.unraisablehook = sys.unraisablehook, _unraisable
        _State.signals = tuple(n for n in _SIGNALS if before[n] != signal.SIG_IGN)
    _State.depth += 1
    try:
        install()
        yield
    finally:
        if not to_the_end:
            _State.depth -= 1
            if not _State.depth:
                sys.unraisablehook = _State.unraisable
            for number, handler in before.items():
                if handler is not None:  # None: it was not installed from Python
                    signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Only note a signal within this block, for `received`, and raise `Interrupted` at its end.

    Raises:
        Interrupted: a signal was received, and the block ended without an exception.
    """
    with handled():
        _State.deferring += 1
        try:
            yield
        finally:
            _State.deferring -= 1
        if _State.received is not None and not _State.deferring:
            raise Interrupted(_State.received)


def received() -> int | None:
    """The number of the signal received since the start of `handled` or `deferred`, or None."""
    return _State.received if _State.depth else None


def outlive_parent_signals(*_: Any) -> None:
    """Let a worker process live on while its parent, which got the same signal, still needs it.

    It ends with the parent, or ten seconds after a SIGTERM. For `worker_init_fn` of a DataLoader.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))
