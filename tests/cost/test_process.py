"""A measurement in a fresh process: its results, and the reason if it goes wrong."""

import os
import sys

import pytest
from support.behaving import MIB, measure

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


def test_errors_are_described_on_one_line():
    assert describe_error(MemoryError()) == "out of memory"
    assert describe_error(RuntimeError("CUDA out of memory. Tried")) == "out of memory"
    assert describe_error(RuntimeError("std::bad_alloc")) == "out of memory"
    assert describe_error(ValueError("a\nb")) == "failed (ValueError: a)"
    assert describe_error(InputError("a")) == "failed (a)"
