"""Tables, claims and figures from a report with made-up numbers."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fsanet.bench.cases import find_cases
from fsanet.bench.compare_layers import LayerReport, LayerRow, LayerSettings
from fsanet.bench.figures import draw_scaling, spread_out, write_figures
from fsanet.bench.measure import Findings, Timing
from fsanet.bench.tables import (
    cost_grid,
    layers_markdown,
    mebibytes,
    paper_grid,
    scaling_grid,
    spread,
    time_grid,
)
from fsanet.cost import Quartiles
from fsanet.files import write_json


def timing(seconds):
    q = Quartiles(0.9 * seconds, seconds, 1.1 * seconds, 4)
    return Timing(q, Quartiles(1.9, 2.0, 2.1, 4), None, dict.fromkeys(range(4), seconds))


@pytest.fixture
def report():
    softmax, dot, floor = find_cases(["softmax", "dot-R1", "floor"])
    rows = []
    for side in (10, 20):
        n = side * side
        findings = Findings(None, None, 64, 1000 * n * n, 1000 * n * n, 2**20 * n, 5 * 2**20, 2**22)
        if side == 10:
            rows.append(LayerRow(softmax, side, side, findings, timing(1e-5 * n * n), None))
        else:
            problem = Findings("out of memory", "out of memory")
            rows.append(LayerRow(softmax, side, side, problem))
        findings = Findings(None, "over 80 s", 64, 10 * n, 11 * n, 2**10 * n, 2**18, 2**19)
        rows.append(LayerRow(dot, side, side, findings, timing(1e-6 * n), timing(2e-6 * n)))
        rows.append(LayerRow(floor, side, side, Findings(), timing(1e-7 * n)))
    settings = LayerSettings(
        layers=("softmax", "dot-R1", "floor"), sizes=((10, 10), (20, 20)), baseline="softmax"
    )
    return LayerReport(
        settings, {"device": "a device", "torch": "9.9", "commit": "abc"}, tuple(rows)
    )


def test_cells_say_what_was_found_and_why_not(report):
    grid = cost_grid(report, (10, 10))
    assert grid.rows[0] == ("softmax", "64", "0.01", "100", "4.00", "5.00")
    assert grid.strong == {1}
    grid = cost_grid(report, (20, 20))
    assert grid.rows[0] == ("softmax", "", "", "out of memory", "out of memory", "")
    grid = time_grid(report, (20, 20))
    assert len(grid.heading) == len(grid.rows[0]) == 9
    assert grid.rows[0] == ("softmax", "out of memory", "", "", "", "out of memory", "", "", "")
    assert grid.rows[1][:3] == ("dot-R1", "0.4 (0.36 - 0.44)", "2.00 (1.90 - 2.10)")
    assert grid.rows[1][4] == "4"


def test_exponents_are_fitted_to_the_sizes_that_ran(report):
    assert report.exponents() == {"dot-R1": pytest.approx(1), "floor": pytest.approx(1)}
    grid = scaling_grid(report)
    assert grid.rows[0] == ("dot-R1", "1.00", "10x10, 20x20")


def test_savings_against_the_materialised_layer(report):
    grid = paper_grid(report)
    cells = {row[0]: row[1:] for row in grid.rows}
    # 2**10 of 2**20, 10 of 1000 * 100, 1e-6 of 1e-5 * 100, each times N
    assert cells["10x10 dot-R1"] == ("99.90", "87.50", "99.99", "99.90", "")
    assert cells["20x20 dot-R1"] == ("", "", "", "", "")  # nothing to compare with
    assert cells["the paper"][0] == "87.29 - 90.04"


def test_markdown_is_complete(report):
    text = layers_markdown(report, command="fsanet bench --x")
    tables = [line for line in text.splitlines() if line.startswith("| layer")]
    assert len(tables) == 5  # cost and time at two sizes, scaling
    assert text.startswith("    fsanet bench --x\n")
    for part in ("a device", "commit abc", "### 20x20: time", "| softmax | out of memory |"):
        assert part in text
    widths = {line.count("|") for line in text.split("### 10x10: cost")[1].splitlines()[2:6]}
    assert widths == {7}


def test_json_holds_settings_machine_and_every_round(report, tmp_path):
    file = write_json(tmp_path / "bench.json", report.as_dict())
    content = json.loads(file.read_text())
    assert content["settings"]["baseline"] == "softmax"
    assert content["environment"]["commit"] == "abc"
    assert len(content["rows"]) == 6
    row = content["rows"][1]
    assert row["layer"] == "dot-R1"
    assert row["forward"]["seconds"]["median"] == pytest.approx(1e-4)
    assert len(row["forward"]["rounds"]) == 4
    assert row["training_problem"] == "over 80 s"


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_figures_show_each_layer_in_its_colour(report, tmp_path):
    written = write_figures(report, tmp_path / "figures")
    assert [path.name for path in written] == ["time.png", "memory.png", "training_time.png"]
    time = pixels(written[0].read_bytes())
    blue = (abs(time - (0x00, 0x72, 0xB2)).sum(-1) < 30).sum()
    red = (abs(time - (0xD5, 0x5E, 0x00)).sum(-1) < 30).sum()
    assert blue > 3000  # a thick line of two points
    assert 50 < red < blue  # one point, and its name
    empty = pixels(draw_scaling(report, axis="nothing", value=lambda row: None))
    assert (abs(empty - (0x00, 0x72, 0xB2)).sum(-1) < 30).sum() == 0
    assert time[0, 0].tolist() == [255, 255, 255]


def test_labels_keep_their_distance():
    wanted = [0.0, 0.01, 0.5, 0.98, 0.99, 1.0]
    found = spread_out(wanted, 0.05)
    assert min(b - a for a, b in pairwise(found)) > 0.0499
    assert found[2] == 0.5
    assert found[0] >= 0
    assert found[-1] <= 1 + 1e-9


def test_numbers_as_text():
    assert mebibytes(None) == ""
    assert mebibytes(3 * 2**19) == "1.50"
    assert spread(None) == ""
    assert spread(Quartiles(1, 2, 3, 1), 1e3) == "2,000"
    assert spread(Quartiles(1, 2, 3, 2)) == "2.00 (1.00 - 3.00)"
