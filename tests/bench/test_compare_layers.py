"""A whole comparison at tiny sizes: what is measured, skipped, and restored."""

import pytest
import torch

from fsanet.bench import compare_layers as module
from fsanet.bench.cases import find_cases
from fsanet.bench.compare_layers import LayerRow, LayerSettings, compare_layers, exponent
from fsanet.bench.measure import Findings


@pytest.mark.usefixtures("in_process")
def test_every_layer_at_every_size():
    phases = []

    def watch(title, count):
        phase = [title, count, 0]
        phases.append(phase)

        def step(name):
            phase[2] += 1

        return step

    sizes_done = []
    settings = LayerSettings(
        layers=("dot-R1", "floor"),
        sizes=((7, 6), (4, 5)),
        channels=8,
        threads=1,
        baseline="sdpa",
        rounds=3,
        seconds=300,
    )
    threads = torch.get_num_threads()
    report = compare_layers(
        settings, watch=watch, on_size=lambda report, size: sizes_done.append(size)
    )
    assert torch.get_num_threads() == threads
    assert sizes_done == report.sizes() == [(4, 5), (7, 6)]
    assert [row.case.name for row in report.at((4, 5))] == ["dot-R1", "floor", "sdpa"]
    assert all(count == steps for _, count, steps in phases), phases
    for row in report.rows:
        assert row.findings.problem is None
        assert row.findings.training_problem is None
        floor = report.of("floor")[report.sizes().index((row.height, row.width))]
        for timing, base in ((row.forward, floor.forward), (row.training, floor.training)):
            assert len(timing.rounds) == timing.seconds.count == 3
            over = sorted(timing.rounds[r] / base.rounds[r] for r in range(3))
            assert timing.over_floor.median == over[1]
    for row in report.of("sdpa"):
        assert row.forward.speedup.median == 1
    assert set(report.exponents()) == {"dot-R1", "floor", "sdpa"}
    for row in report.of("floor"):
        # the new map, and the sum while it lives
        bytes_of_map = 8 * row.positions * 4
        assert bytes_of_map <= row.findings.peak <= bytes_of_map + 64
        assert row.findings.kept == 0


def test_a_layer_that_needed_too_much_is_not_tried_on_a_larger_map(monkeypatch):
    """Its FLOPs are known all the same."""
    tried = []

    def measure_alone(make, settings, findings, *, backward):
        tried.append((make.args[1], make.args[2]))
        problem = {"sdpa": "out of memory", "dot-R1": "failed (no compiler)"}[make.args[1]]
        return Findings(problem, problem, findings.parameters, findings.flops)

    monkeypatch.setattr(module, "measure_alone", measure_alone)
    settings = LayerSettings(
        layers=("sdpa", "dot-R1"), sizes=((2, 2), (4, 1), (3, 3), (4, 4)), channels=8
    )
    report = compare_layers(settings)
    assert [size for name, size in tried if name == "dot-R1"] == [(2, 2), (4, 1), (3, 3), (4, 4)]
    assert [size for name, size in tried if name == "sdpa"] == [(2, 2), (4, 1)]  # not larger
    problems = [row.findings.problem for row in report.of("sdpa")]
    assert problems == [*["out of memory"] * 2, *["out of memory at 2x2"] * 2]
    assert all(row.findings.flops > 0 and row.forward is None for row in report.rows)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_exponent_of_an_exact_power_law(power):
    positions = [97 * 97, 128 * 128, 128 * 256, 256 * 512]
    seconds = [3e-7 * n**power for n in positions]
    assert exponent(positions, seconds) == pytest.approx(power)


def test_flops_of_one_layer_by_size_and_batch():
    (case,) = find_cases(["sdpa"])
    settings = LayerSettings(layers=("sdpa",), sizes=((9, 7),), channels=8, batch=2)
    found = module._count(settings, case, (9, 7))
    n = 9 * 7
    assert found.flops == found.flops_by_hand == 2 * 2 * n * (8 * 12 + n * 8 + 32)
    assert found.parameters == 4 * 8 * 4 + 2 * 8  # four projections, batch norm
    assert LayerRow(case, 9, 7, found).positions == n


def test_layout_of_the_map():
    settings = LayerSettings(layers=("dot-R1",), sizes=((4, 5),), channels=8)
    for name, layout in [
        ("dot-R1", torch.contiguous_format),
        ("dot-R1-channels-last", torch.channels_last),
    ]:
        subject = module.make_layer(settings, name, (4, 5))
        assert subject.x.is_contiguous(memory_format=layout)
        assert subject.call(subject.x).is_contiguous(memory_format=layout)
