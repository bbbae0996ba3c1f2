"""Rounds and ratios of times that are known beforehand."""

from collections import Counter

import pytest
import torch

from fsanet.cost import Quartiles, Timed, ratios, time_calls, timing


def test_each_round_has_every_call_once_and_starts_with_the_next():
    order = list(timing.interleaved({"a": 1, "b": 1, "c": 1}, 4))
    names = [[name for round_, name in order if round_ == r] for r in range(4)]
    assert names == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_rounds_of_a_slow_call_are_rounds_of_every_quicker_one():
    costs = {"slow": 3.0, "middle": 0.7, "quick": 0.01}
    found = timing.strides(costs, 20, 10.0)
    taken = {name: {r for r, n in timing.interleaved(found, 20) if n == name} for name in costs}
    assert taken["slow"] < taken["middle"] <= taken["quick"] == set(range(20))
    spent = sum(len(taken[name]) * cost for name, cost in costs.items())
    assert spent <= 10.0
    counts = Counter(
        name for _, name in timing.interleaved(timing.strides({"endless": 99.0}, 20, 1.0), 20)
    )
    assert counts == {"endless": 1}  # once, whatever it costs


def test_quartiles_and_ratios_within_a_round():
    assert Quartiles.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Quartiles(2.0, 3.0, 4.0, 5)
    # the machine gets slower: the ratio within a round does not show it
    base, own = {0: 10.0, 1: 20.0, 2: 40.0}, {0: 1.0, 2: 4.0, 3: 9.0}
    assert ratios(base, own) == [10.0, 10.0]


class Simulated:
    """A call that moves the clock, and writes down what was done when."""

    def __init__(self, name, seconds, log, clock):
        self.name, self.seconds, self.log, self.clock = name, seconds, log, clock

    def run(self):
        self.log.append(f"run {self.name}")
        self.clock[0] += self.seconds

    def timed(self):
        return Timed(self.run, lambda: self.log.append(f"prepare {self.name}"))


@pytest.fixture
def simulate(monkeypatch):
    """Calls of known duration by name, and the log that they write."""
    log, clock = [], [0.0]

    def mark(self):
        log.append("mark")
        return clock[0]

    monkeypatch.setattr(timing.Clock, "mark", mark)

    def make(**seconds):
        return {name: Simulated(name, s, log, clock).timed() for name, s in seconds.items()}, log

    return make


CPU = torch.device("cpu")


def test_only_the_run_is_timed_and_quick_calls_settle_first(simulate):
    calls, log = simulate(slow=4.0, quick=0.01)
    seconds = time_calls(calls, device=CPU, rounds=2, seconds=100)
    assert {name: list(by_round) for name, by_round in seconds.items()} == {
        "slow": [0, 1],
        "quick": [0, 1],
    }
    assert seconds["slow"] == pytest.approx({0: 4.0, 1: 4.0})
    assert seconds["quick"] == pytest.approx({0: 0.01, 1: 0.01})
    slow = ["prepare slow", "mark", "run slow", "mark"]
    quick = ["prepare quick", "mark", "run quick", "mark"]
    settled = ["prepare quick", "run quick", *quick]
    assert log == [*slow, *quick, *quick, *slow, *settled, *settled, *slow]


def test_slow_calls_take_part_in_fewer_rounds_where_time_is_short(simulate):
    calls, _ = simulate(slow=3.0, quick=0.5)
    seconds = time_calls(calls, device=CPU, rounds=8, seconds=14.0)
    assert list(seconds["quick"]) == list(range(8))
    assert list(seconds["slow"]) == [0, 4]


def test_a_call_that_fails_is_left_out_or_raises(simulate):
    calls, _ = simulate(works=1.0)

    def fail():
        raise RuntimeError("out of memory")

    calls["fails"] = Timed(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        time_calls(calls, device=CPU, rounds=1)
    failed, steps = {}, []

    def watch(title, count):
        steps.append(count)
        return lambda name: steps.append(name)

    seconds = time_calls(calls, device=CPU, rounds=1, watch=watch, on_error=failed.__setitem__)
    assert list(seconds) == ["works"]
    assert str(failed["fails"]) == "out of memory"
    assert steps == [2, "works", "fails", 1, "works"]
