"""Findings about one layer, and the problems it may have."""

from functools import partial

import pytest
import torch
from torch import nn

from fsanet.bench.compare_layers import LayerSettings, make_layer
from fsanet.bench.measure import Findings, Settings, Subject, measure_alone, time_passes
from fsanet.cost import Timed
from fsanet.errors import InputError


class Behaving(nn.Module):
    """Multiplies by the sum of five weights; misbehaves as asked."""

    def __init__(self, behaviour):
        super().__init__()
        self.behaviour = behaviour
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x):
        if self.behaviour == "fails" or (self.behaviour == "fails to train" and self.training):
            raise RuntimeError("no gradient\nsecond line")
        return x * self.weight.sum()


def find(behaviour, *, backward=True):
    module = Behaving(behaviour)
    subject = Subject(module, module, torch.ones(1, 2, 3, 4))
    return measure_alone(lambda: subject, Settings(), Findings(parameters=5), backward=backward)


SUM, MAP = 4, 24 * 4  # bytes


@pytest.mark.usefixtures("in_process")
def test_findings_and_problems():
    found = find("well")
    assert (found.parameters, found.peak, found.kept) == (5, SUM + MAP, SUM)
    assert (found.problem, found.training_problem) == (None, None)
    # output, the gradients of output and map, and what they are computed from
    assert 3 * MAP <= found.training_peak <= 5 * MAP
    assert find("well", backward=False) == Findings(parameters=5, peak=SUM + MAP)
    problem = "failed (RuntimeError: no gradient)"
    assert find("fails") == Findings(problem, problem, parameters=5)
    assert find("fails to train") == Findings(
        training_problem=problem, parameters=5, peak=SUM + MAP
    )


@pytest.mark.slow
def test_a_layer_in_a_fresh_process():
    settings = LayerSettings(layers=("sdpa",), sizes=((9, 7),), channels=8, batch=2)
    make = partial(make_layer, settings, "sdpa", (9, 7))
    found = measure_alone(make, settings, Findings(), backward=True)
    bytes_of_map = 2 * 8 * 9 * 7 * 4
    assert (found.problem, found.training_problem) == (None, None)
    assert found.peak >= bytes_of_map
    assert found.training_peak >= found.kept + bytes_of_map


def test_a_pass_that_fails_leaves_the_others():
    def fail():
        raise RuntimeError("CUDA out of memory")

    timings, problems = time_passes(
        {"sdpa": Timed(lambda: 1), "dot-R1": Timed(fail)},
        Settings(rounds=2),
        baseline="sdpa",
        seconds=1.0,
    )
    assert list(timings) == ["sdpa"]
    assert timings["sdpa"].speedup.median == 1
    assert timings["sdpa"].over_floor is None
    assert problems == {"dot-R1": "out of memory"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds=0: must be at least 1"),
        ({"rounds": 10**12}, "rounds=.*: must be at most 10000"),
        ({"seconds": float("nan")}, "seconds=nan: must be at least"),
        ({"limit_seconds": float("inf")}, "limit_seconds=inf: must be at most"),
        ({"threads": 10**9}, "threads=.*: must be at most 1024"),
        ({"batch": -1}, "batch=-1: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(InputError, match=message):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("channels", "size", "message"),
    [
        (0, (9, 9), "channels=0: must be at least 1"),
        (8, (10**9, 5), "height=1000000000: must be at most 1000000"),
        (8, (1024, 1024), r"an input of 2x8x1024x1024 takes 0.1 GiB, and 0.1 may be used"),
    ],
)
def test_inputs_that_do_not_fit(channels, size, message):
    settings = Settings(batch=2, dtype="float64", limit_memory=2**27 - 1)
    with pytest.raises(InputError, match=message):
        settings.check_input(channels, size)
    settings.check_input(8, (1024, 1023))
