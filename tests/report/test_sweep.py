"""The record of a sweep: what it keeps, and how it continues."""

import json
import os

import pytest
import torch
from torch import nn

from fsanet.attention import SpatialSelfAttention
from fsanet.attention.dct import Band
from fsanet.convert.variants import Variant, attention_variants
from fsanet.errors import InputError
from fsanet.metrics.confusion import scores_of
from fsanet.report.sweep import Sweep


@pytest.fixture
def evaluated():
    """The bands that were evaluated, by a stand-in that fails at k=4 while ``broken`` is set."""
    calls, broken = [], [False]

    def evaluate(model):
        band = getattr(model.attention, "band", None)
        calls.append(band)
        if broken[0] and band is not None and band.h1 == 4:
            raise InputError("no such image")
        hits = 50 if band is None or band.h1 is None else 10 * band.h1
        return scores_of(torch.tensor([[hits, 100 - hits], [0, 100]]), ("a", "b"))

    return evaluate, calls, broken


def model_of_one_layer():
    model = nn.Module()
    model.attention = SpatialSelfAttention(8, similarity="softmax")
    return model


def test_each_band_once_and_goes_on_after_a_failure(evaluated, tmp_path):
    evaluate, calls, broken = evaluated
    points = attention_variants(["2", "4", "full"], ["low", "full", "3:"], (2, 4))
    about = {"weights": "abc", "split": "test"}
    broken[0] = True
    record = Sweep.open(tmp_path, about, points)
    with pytest.raises(InputError, match="k=4: no such image"):
        list(record.evaluate(model_of_one_layer(), points, evaluate))
    assert len(calls) == 4  # as trained, removed, k=2, k=4
    broken[0] = False
    calls.clear()
    record = Sweep.open(tmp_path, about, points)
    assert list(record.converted) == ["as trained", "attention removed", "k=2"]
    list(record.evaluate(model_of_one_layer(), points, evaluate))
    assert [str(band) for band in calls] == ["[0:4) x [0:4)", "[0:) x [0:)", "[3:) x [3:)"]
    assert record.converted["low 0:2"] == record.converted["k=2"]
    content = json.loads((tmp_path / "sweep.json").read_text())
    rows = {row["name"]: row for row in content["points"]}
    assert rows["k=4"]["band"] == [[0, 4], [0, 4]]
    # 40 of 100 right: IoU 0.4 and 100 / 160
    assert rows["k=4"]["no_retraining"]["miou"] == pytest.approx((0.4 + 100 / 160) / 2)


def test_table_and_files(evaluated, tmp_path):
    evaluate, _, _ = evaluated
    points = attention_variants(["2", "full"])
    record = Sweep.open(tmp_path, {"weights": "abc"}, points)
    list(record.evaluate(model_of_one_layer(), points, evaluate))
    record.retrained["k=2"] = {str(seed): {"miou": m} for seed, m in enumerate((0.5, 0.6, 0.7))}
    header, *rows = record.table(points)
    assert header[-2:] == ["spread (std)", "seeds"]
    base = (0.5 + 100 / 150) / 2
    at_2 = (0.2 + 100 / 180) / 2
    assert rows[2][:3] == ["k=2", f"{100 * at_2:.2f}", f"{100 * (at_2 - base):+.2f}"]
    assert rows[2][-3:] == ["60.00", "10.00", "3"]  # mean and sample deviation of 50, 60, 70
    assert rows[3][-3:] == ["", "", ""]
    record.write_report(points, "title")
    assert "| k=2 |" in (tmp_path / "sweep.md").read_text()
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_folder_of_another_sweep(evaluated, tmp_path):
    evaluate, _, _ = evaluated
    points = attention_variants(["2"], ["low"])
    record = Sweep.open(tmp_path, {"weights": "abc"}, points)
    list(record.evaluate(model_of_one_layer(), points, evaluate))
    with pytest.raises(InputError, match="a sweep with weights 'abc', not 'xyz'"):
        Sweep.open(tmp_path, {"weights": "xyz"}, points)
    other = attention_variants([], ["low"], (3, 4))
    assert (
        Sweep.open(tmp_path, {"weights": "abc"}, other).converted.keys() == record.converted.keys()
    )
    low = Variant("low 0:8", "band", Band.of(3))
    with pytest.raises(InputError, match="low 0:8 is another band there"):
        Sweep.open(tmp_path, {"weights": "abc"}, [low])
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match="not the file of a sweep"):
        Sweep.open(tmp_path, {"weights": "abc"}, points)


POINT = {"name": "k=2", "kind": "band", "band": [[0, 2], [0, 2]]}
SCORES = {"miou": 0.5, "pixel_accuracy": 0.5}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "[" * 10_000,
        {"about": [1], "points": []},
        {"about": None, "points": []},
        {"about": {}, "points": [POINT | {"retrained": "abc", "no_retraining": None}]},
        {"about": {}, "points": [POINT | {"retrained": {"0": 5}, "no_retraining": None}]},
        {"about": {}, "points": [POINT | {"retrained": {}, "no_retraining": {"miou": "x"}}]},
        {"about": {}, "points": [POINT | {"retrained": {}, "no_retraining": 5}]},
        {
            "about": {},
            "points": [
                POINT | {"retrained": {}, "no_retraining": SCORES | {"mean_accuracy": float("nan")}}
            ],
        },
    ],
)
def test_damaged_records(tmp_path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match=r"sweep\.json: ") as error:
        Sweep.open(tmp_path, {}, [])
    assert "\n" not in str(error.value)


def test_a_pipe_is_no_record(tmp_path):
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "sweep.json")
    with pytest.raises(InputError, match="is a pipe"):
        Sweep.open(tmp_path, {}, [])
