"""A whole run at tiny sizes: what is measured, skipped, and left as it was."""

import torch

from fsanet.bench.cases import find_cases
from fsanet.bench.harness import _known_problem, run_bench, time_subjects
from fsanet.bench.probe import Findings
from fsanet.bench.results import Row, Settings


def test_every_layer_at_every_size():
    told = []

    def watch(title, count):
        told.append([title, count, 0])
        phase = told[-1]

        def step(name):
            phase[2] += 1

        return step

    sizes_done = []
    settings = Settings(
        layers=("dot-R1", "floor"),
        sizes=((12, 10), (8, 8)),
        channels=8,
        threads=1,
        baseline="sdpa",
        rounds=3,
        seconds=300,
        limit_seconds=300,
        limit_memory=2**31,
    )
    threads = torch.get_num_threads()
    report = run_bench(settings, watch=watch, done=lambda _, size: sizes_done.append(size))
    assert torch.get_num_threads() == threads
    assert sizes_done == report.sizes() == [(8, 8), (12, 10)]
    assert [row.case.name for row in report.at((8, 8))] == ["dot-R1", "floor", "sdpa"]
    for row in report.rows:
        assert row.findings.problem is None
        assert row.findings.training_problem is None
        for timing in (row.forward, row.training):
            assert timing.seconds.count == len(timing.rounds) == 3
            assert timing.seconds.low <= timing.seconds.median <= timing.seconds.high
        floor = report.of("floor")[report.sizes().index((row.height, row.width))]
        over = sorted(row.forward.rounds[r] / floor.forward.rounds[r] for r in range(3))
        assert row.forward.over_floor.median == over[1]
    for row in report.of("sdpa"):
        assert row.forward.speedup.median == 1
    assert set(report.exponents()) == {"dot-R1", "floor", "sdpa"}
    assert all(count == steps for _, count, steps in told), told
    # the floor: the fresh map, and the sum beside it while that lives
    for row in report.of("floor"):
        bytes_of_map = 8 * row.positions * 4
        assert bytes_of_map <= row.findings.peak <= bytes_of_map + 64
        assert row.findings.kept == 0


def test_what_was_too_much_is_not_tried_on_a_larger_map():
    sdpa, dot = find_cases(["sdpa", "dot-R1"])
    earlier = [
        Row(sdpa, 10, 10, Findings("out of memory", "out of memory")),
        Row(dot, 10, 10, Findings("failed (no compiler)", None)),
    ]
    assert _known_problem(sdpa, (20, 5), earlier) is None  # not larger
    found = _known_problem(sdpa, (20, 20), earlier)
    assert found.problem == "out of memory at 10x10"
    again = _known_problem(sdpa, (30, 30), [Row(sdpa, 20, 20, found)])
    assert again.problem == "out of memory at 10x10"
    assert _known_problem(dot, (20, 20), earlier) is None  # size was not the reason


def test_one_that_fails_in_its_rounds_leaves_the_others():
    class Works:
        def prepare(self):
            pass

        def run(self):
            return 1

    class Fails(Works):
        def run(self):
            raise RuntimeError("CUDA out of memory")

    timings, problems = time_subjects(
        {"sdpa": Works(), "dot-R1": Fails()},
        device=torch.device("cpu"),
        baseline="sdpa",
        rounds=2,
        seconds=1.0,
    )
    assert list(timings) == ["sdpa"]
    assert timings["sdpa"].over_floor is None
    assert problems == {"dot-R1": "out of memory"}
