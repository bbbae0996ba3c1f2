"""Rounds, ratios and fits, on numbers known beforehand."""

import math
from collections import Counter

import pytest
import torch

from fsanet.bench.timing import (
    Clock,
    exponent,
    interleaved,
    quartiles,
    ratios,
    run_rounds,
    strides,
)


def test_each_round_holds_every_layer_once_and_starts_further_on():
    order = list(interleaved({"a": 1, "b": 1, "c": 1}, 4))
    names = [[name for round_, name in order if round_ == r] for r in range(4)]
    assert names == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_rounds_of_a_slow_layer_are_rounds_of_every_quicker_one():
    costs = {"slow": 3.0, "middle": 0.7, "quick": 0.01}
    found = strides(costs, 20, 10.0)
    taken = {name: {r for r, n in interleaved(found, 20) if n == name} for name in costs}
    assert taken["slow"] < taken["middle"] <= taken["quick"] == set(range(20))
    spent = sum(len(taken[name]) * cost for name, cost in costs.items())
    assert spent <= 10.0
    counts = Counter(name for _, name in interleaved(strides({"endless": 99.0}, 20, 1.0), 20))
    assert counts == {"endless": 1}  # once in any case


def test_quartiles_and_paired_ratios():
    q = quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (q.low, q.median, q.high, q.count) == (2.0, 3.0, 4.0, 5)
    assert quartiles([]) is None
    # the machine gets slower: the ratio within a round does not show it
    base, own = {0: 10.0, 1: 20.0, 2: 40.0}, {0: 1.0, 2: 4.0, 3: 9.0}
    assert ratios(base, own) == [10.0, 10.0]


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_exponent_of_an_exact_power_law(power):
    positions = [97 * 97, 128 * 128, 128 * 256, 256 * 512]
    seconds = [3e-7 * n**power for n in positions]
    assert math.isclose(exponent(positions, seconds), power, rel_tol=1e-9)
    assert exponent(positions[:1], seconds[:1]) is None


def test_a_turn_times_run_alone_and_settles_where_asked():
    calls = []

    class Subject:
        def __init__(self, name):
            self.name = name

        def prepare(self):
            calls.append(f"prepare {self.name}")

        def run(self):
            calls.append(f"run {self.name}")

    class Ticks(Clock):
        """Every mark is one second after the last one."""

        now = 0.0

        def mark(self):
            calls.append("mark")
            self.now += 1.0
            return self.now

    seconds = run_rounds(
        {"a": Subject("a"), "b": Subject("b")},
        Ticks(torch.device("cpu")),
        stride_of={"a": 1, "b": 2},
        settle={"a": False, "b": True},
        rounds=2,
    )
    assert seconds == {"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0}}
    timed_a = ["prepare a", "mark", "run a", "mark"]
    assert calls == [
        *timed_a,
        *("prepare b", "run b", "prepare b", "mark", "run b", "mark"),
        *timed_a,
    ]
