"""A measurement in a fresh process: its results, and the reason if it goes wrong."""

import os
import subprocess
import sys
import time

import pytest
from support.behaving import MIB, measure
from support.processes import alive_in_session

from fsanet.cost import Outcome, describe_error, run_isolated
from fsanet.errors import InputError


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize(
    ("behaviour", "problem", "found"),
    [
        ("well", None, {"done": True}),
        ("huge", "out of memory", {"inside the limit": True}),
        ("slow", "over 0.3 s", {}),
        ("dies", "failed (exit code 3)", {}),
        ("wrong", "failed (k=0: give more)", {}),
    ],
)
def test_a_fresh_process_reports_results_and_problems(behaviour, problem, found):
    outcome = run_isolated(measure, behaviour, memory=500 * MIB, threads=3)
    assert outcome.found.pop("pid") != os.getpid()
    assert outcome == Outcome({"threads": 3, **found}, "work", problem)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed on Linux only")
@pytest.mark.parametrize(
    "last",
    [
        pytest.param("", id="done", marks=pytest.mark.slow),
        pytest.param("raise SystemExit(3)", id="stopped", marks=pytest.mark.slow),
    ],
)
def test_nothing_outlives_the_program(last):
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from support.behaving import measure
from support.processes import alive_in_session
from fsanet.cost import run_isolated
run_isolated(measure, "well", memory=None, threads=1)
assert len(alive_in_session(os.getpid())) > 1
{last}
"""
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    assert process.wait(60) == (3 if last else 0)
    time.sleep(0.5)  # Python's own process that watches resources sees the end of the others
    assert not alive_in_session(process.pid)


def test_errors_are_described_on_one_line():
    assert describe_error(MemoryError()) == "out of memory"
    assert describe_error(RuntimeError("CUDA out of memory. Tried")) == "out of memory"
    assert describe_error(RuntimeError("std::bad_alloc")) == "out of memory"
    assert describe_error(ValueError("a\nb")) == "failed (ValueError: a)"
    assert describe_error(InputError("a")) == "failed (a)"
