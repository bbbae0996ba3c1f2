"""Growth along each axis at tiny sizes: what is changed, what is skipped, tables and figures."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fsanet.bench import compare_layers
from fsanet.bench.compare_layers import LayerSettings
from fsanet.bench.figures import draw_growth
from fsanet.bench.grow_layers import AXES, Point, grow_layers
from fsanet.bench.measure import Findings, Timing
from fsanet.bench.tables import growth_grids, growth_markdown
from fsanet.cost import Quartiles
from fsanet.errors import InputError


@pytest.fixture
def settings():
    return LayerSettings(layers=("dot-R1", "floor"), sizes=((4, 5),), channels=8, threads=1)


@pytest.fixture
def measured(monkeypatch):
    """Takes the place of measuring: returns (name, settings, size) of every layer in turn."""
    found = []

    def measure_alone(make, settings, findings, *, backward):
        found.append((make.args[1], settings, make.args[2]))
        enough = "sdpa" in make.args[1] and settings.batch >= 4
        problem = "out of memory" if enough else None
        return Findings(problem, problem, peak=None if enough else 2**20 * settings.batch)

    def time_passes(passes, settings, *, baseline, **options):
        def timing(name):
            seconds = 0.001 * settings.batch**2
            ratio = Quartiles(1, 1, 1, 1) if name == baseline else Quartiles(2, 3, 4, 9)
            return Timing(Quartiles(seconds, seconds, seconds, 1), ratio, None, {0: seconds})

        return {name: timing(name) for name in passes}, {}

    monkeypatch.setattr(compare_layers, "measure_alone", measure_alone)
    monkeypatch.setattr(compare_layers, "time_passes", time_passes)
    return found


def test_one_thing_changes_along_an_axis(settings, measured):
    axes = {"N": [(6, 6), (3, 3)], "channels": [8, 16], "k": [2, 4], "R": [3]}
    seen = []
    report = grow_layers(settings, axes, on_axis=lambda report: seen.append(len(report.growths)))
    assert seen == [1, 2, 3, 4]
    ours = [(name, one.channels, one.batch, size) for name, one, size in measured if "dot" in name]
    assert ours == [
        ("dot-R1", 8, 1, (3, 3)),
        ("dot-R1", 8, 1, (6, 6)),
        ("dot-R1", 8, 1, (4, 5)),
        ("dot-R1", 16, 1, (4, 5)),
        ("dot-R1-k2", 8, 1, (4, 5)),
        ("dot-R1-k4", 8, 1, (4, 5)),
        ("dot-R3", 8, 1, (4, 5)),
    ]
    lines = {growth.axis: list(growth.points[0].rows) for growth in report.growths}
    assert lines["N"] == lines["k"] == ["dot-R1", "floor", "sdpa"]  # the baseline is always there
    assert lines["R"] == ["dot", "floor", "sdpa"]
    assert [point.label for point in report.growths[0].points] == ["3x3", "6x6"]


def test_what_ran_out_of_memory_is_not_tried_at_larger_values(settings, measured):
    (growth,) = grow_layers(settings, {"batch": [1, 2, 4, 8]}).growths
    assert [one.batch for name, one, _ in measured if name == "sdpa"] == [1, 2, 4]
    problems = [row.findings.problem for _, row in growth.lines()["sdpa"]]
    assert problems == [None, None, "out of memory", "out of memory at batch=4"]
    assert growth.exponents()["dot-R1"] == pytest.approx(2)
    time, faster, memory = growth_grids(growth)
    cells = {row[0]: row[1:] for row in time.rows}
    assert cells["dot-R1"] == ("1.00 / 1.00", "4.00 / 4.00", "16.0 / 16.0", "64.0 / 64.0", "2.00")
    assert cells["sdpa"] == ("1.00 / 1.00", "4.00 / 4.00", "out of memory", "out of memory", "2.00")
    assert faster.rows[0] == ("dot-R1", *["3.00 (2.00 - 4.00)"] * 4)
    assert memory.rows[0] == ("dot-R1", "1.00", "2.00", "4.00", "8.00")
    assert time.strong == {0}


def test_markdown_has_three_tables_for_each_axis(settings, measured):
    report = grow_layers(replace(settings, backward=False), {"k": [1, 2], "batch": [1]})
    text = growth_markdown(report, command="fsanet bench --grow k batch=1")
    assert text.startswith("    fsanet bench --grow k batch=1\n")
    assert text.count("### ") == 6
    assert "### Time in ms, forward, against k" in text
    assert "4x5 map, C=8, batch 1, float32" in text


def test_a_figure_has_each_layer_in_its_colour(settings, measured):
    settings = replace(settings, backward=False)
    (growth,) = grow_layers(settings, {"batch": [1, 4]}).growths
    with Image.open(io.BytesIO(draw_growth(growth, {"device": "a device"}))) as image:
        assert image.size == (2200, 1000)  # of forward alone
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = (abs(pixels - (0x00, 0x72, 0xB2)).sum(-1) < 30).sum()
    orange = (abs(pixels - (0xE6, 0x9F, 0x00)).sum(-1) < 30).sum()
    assert blue > 3000
    assert 50 < orange < blue  # only points: it stopped after the first value


def test_values_by_default_and_unknown_axes(settings, measured):
    (growth,) = grow_layers(settings, {"R": []}).growths
    assert tuple(point.value for point in growth.points) == AXES["R"][1]
    assert Point((3, 7), {}).number == 21
    with pytest.raises(InputError, match="no axis 'depth' to grow along; choose from N, batch"):
        grow_layers(settings, {"depth": []})
    with pytest.raises(InputError, match="GiB"):
        grow_layers(settings, {"N": [(99_999, 99_999)]})
