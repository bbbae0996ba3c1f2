"""A probe's numbers, and what it says of layers that need too much."""

import sys

import pytest
from support.behaving import BehavingJob

from fsanet.bench.harness import LayerJob
from fsanet.bench.probe import Limits, describe, run_probe

LIMITS = Limits(seconds=300, memory=2 * 2**30, threads=1)


@pytest.mark.skipif(sys.platform == "win32", reason="other start of processes")
@pytest.mark.parametrize(
    ("what", "limits", "problem"),
    [
        ("huge", LIMITS, "out of memory"),
        ("slow", Limits(0.2, None, 1), "over 0.2 s"),
        ("dies", LIMITS, "failed (exit code 3)"),
        ("wrong", LIMITS, "failed (k=0: give more)"),
    ],
)
def test_a_layer_that_cannot_run_is_named_with_the_reason(what, limits, problem):
    found = run_probe(BehavingJob(what), limits)
    assert found.problem == found.training_problem == problem
    assert (found.parameters, found.flops_by_hand) == (5, 7)
    assert found.peak is None
    assert found.flops is None


@pytest.mark.parametrize(
    ("what", "limits", "problem"),
    [
        ("slow to train", Limits(5, None, 1), "over 20 s"),
        ("closed to gradients", LIMITS, "failed (RuntimeError: no gradient)"),
    ],
)
def test_a_layer_that_cannot_be_trained_keeps_its_forward(what, limits, problem):
    found = run_probe(BehavingJob(what), limits)
    assert found.problem is None
    assert found.training_problem == problem
    assert found.peak == 4 + 24 * 4  # the sum, and the output
    assert found.kept is None


def test_numbers_of_a_layer():
    job = LayerJob("sdpa", 9, 7, channels=8, batch=2, dtype="float64", device="cpu", backward=True)
    found = run_probe(job, LIMITS)
    assert found.problem is None
    assert found.training_problem is None
    assert found.parameters == 4 * 8 * 4 + 2 * 8  # four projections, batch norm
    n = 9 * 7
    assert found.flops == found.flops_by_hand == 2 * 2 * n * (8 * 12 + n * 8 + 32)
    map_bytes = 2 * 8 * n * 8
    assert found.peak >= map_bytes
    assert found.training_peak >= found.kept + map_bytes


def test_without_backward_nothing_is_said_of_training():
    found = run_probe(BehavingJob("well", backward=False), LIMITS)
    assert found.problem is None
    assert found.training_problem is None
    assert found.kept is None
    assert run_probe(BehavingJob("well"), LIMITS).training_peak is not None


def test_errors_in_one_line():
    assert describe(MemoryError()) == "out of memory"
    assert describe(RuntimeError("CUDA out of memory. Tried")) == "out of memory"
    assert describe(RuntimeError("std::bad_alloc")) == "out of memory"
    assert describe(ValueError("a\nb")) == "failed (ValueError: a)"
