"""The first signal stops a program in order, in a real process; the second one at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fsanet.signals import Interrupted, deferred, handled

PROGRAM = """
import sys, time
from fsanet.signals import Interrupted, deferred, handled, received

def wait(seconds):
    print("ready", flush=True)
    time.sleep(seconds)

try:
    with handled(to_the_end=True):
        {body}
except KeyboardInterrupt as stop:
    print(stop, flush=True)
    time.sleep(0.3)  # the same signal may come once more, but not after the interpreter's end
    sys.exit(128 + stop.number)
"""
AT_ONCE = "wait(60)"
LATER = """
        with deferred():
            print("ready", flush=True)
            while received() is None:
                time.sleep(0.01)
            print("step done", received(), flush=True)
            {more}
        print("never here")
"""


def start(body, before=""):
    return subprocess.Popen(
        [sys.executable, "-c", before + PROGRAM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("later", [False, True])
def test_first_signal(number, later):
    process = start(LATER.format(more="pass") if later else AT_ONCE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (128 + number, "")
    assert out == (f"step done {int(number)}\n" if later else "") + "interrupted\n"


def test_second_signal_ends_a_program_that_does_not_finish():
    process = start(LATER.format(more="wait(60)"))
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "step done 15\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 128 + signal.SIGHUP


def test_ignored_signals_stay_ignored():
    """`nohup` ignores SIGHUP for the program that it starts."""
    process = start(AT_ONCE, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "interrupted\n"


def test_workers_leave_a_signal_to_their_parent():
    """A signal to the whole group, as from a terminal."""
    body = """
        import os
        from torch.utils.data import DataLoader
        from fsanet.signals import outlive_parent_signals
        class Numbers:
            def __len__(self): return 3
            def __getitem__(self, i): time.sleep(0.3 * (i > 0)); return i
        loader = DataLoader(Numbers(), num_workers=1, worker_init_fn=outlive_parent_signals)
        with deferred():
            for number in loader:
                print("ready", flush=True)
            assert received()
"""
    process = start(body)
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (143, "ready\nready\ninterrupted\n", "")


def test_handlers_are_restored():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), handled(), deferred():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_signal_while_an_object_is_deleted(capfd):
    """Python discards an exception in `__del__`: the signal is sent again."""

    class Signals:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            len(())  # the handler runs here

    def delete_and_wait():
        Signals()
        time.sleep(10)

    with pytest.raises(Interrupted, match="interrupted"), handled():
        delete_and_wait()
    assert capfd.readouterr().err == ""


IMPORT = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    whole = True
except BaseException:  # as libraries do around what is optional
    whole = False
"""


def test_a_signal_in_an_import_comes_after_it(tmp_path):
    (tmp_path / "library.py").write_text(IMPORT)
    body = f"sys.path.insert(0, {str(tmp_path)!r}); import library; print(library.whole); wait(60)"
    process = start(body)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (128 + signal.SIGTERM, "")
    assert out.startswith("True\n")
    assert out.endswith("interrupted\n")


def test_a_program_that_runs_in_an_import_is_interrupted_at_once(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(body=AT_ONCE))
    process = subprocess.Popen(
        [sys.executable, "-c", "import program"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "interrupted\n")
