"""The record of a sweep: what it keeps, and how it continues."""

import json

import pytest
import torch
from torch import nn

from fsanet.attention import SpatialSelfAttention
from fsanet.attention.dct import Band
from fsanet.convert.variants import Variant, attention_variants
from fsanet.errors import InputError
from fsanet.metrics.confusion import scores_of
from fsanet.report import sweep as sweep_run
from fsanet.report.sweep import SweepRecord, sweep_without_training, train_point


@pytest.fixture
def evaluated(monkeypatch):
    """Bands given to a stand-in for `evaluate`; fails at k=4 as long as it is told to."""
    calls, broken = [], [False]

    def evaluate(model, data, **options):
        band = getattr(model.attention, "band", None)
        calls.append(band)
        if broken[0] and band is not None and band.h1 == 4:
            raise InputError("no such image")
        hits = 50 if band is None or band.h1 is None else 10 * band.h1
        return scores_of(torch.tensor([[hits, 100 - hits], [0, 100]]), ("a", "b"))

    monkeypatch.setattr(sweep_run, "evaluate", evaluate)
    return calls, broken


def model_of_one_layer():
    model = nn.Module()
    model.attention = SpatialSelfAttention(8, similarity="softmax")
    return model


def test_each_band_once_and_goes_on_after_a_failure(evaluated, tmp_path):
    calls, broken = evaluated
    points = attention_variants(["2", "4", "full"], ["low", "full", "3:"], (2, 4))
    about = {"weights": "abc", "split": "test"}
    broken[0] = True
    record = SweepRecord.open(tmp_path, about, points)
    with pytest.raises(InputError, match="k=4: no such image"):
        sweep_without_training(model_of_one_layer(), None, points, record)
    assert len(calls) == 4  # as trained, removed, k=2, k=4
    broken[0] = False
    calls.clear()
    record = SweepRecord.open(tmp_path, about, points)
    assert list(record.plain) == ["as trained", "attention removed", "k=2"]
    sweep_without_training(model_of_one_layer(), None, points, record)
    assert [str(band) for band in calls] == ["[0:4) x [0:4)", "[0:) x [0:)", "[3:) x [3:)"]
    assert record.plain["low 0:2"] == record.plain["k=2"]
    content = json.loads((tmp_path / "sweep.json").read_text())
    rows = {row["name"]: row for row in content["points"]}
    assert rows["k=4"]["band"] == [[0, 4], [0, 4]]
    # 40 of 100 right: IoU 0.4 and 100 / 160
    assert rows["k=4"]["no_retraining"]["miou"] == pytest.approx((0.4 + 100 / 160) / 2)


def test_table_and_files(evaluated, tmp_path):
    points = attention_variants(["2", "full"])
    record = SweepRecord.open(tmp_path, {"weights": "abc"}, points)
    sweep_without_training(model_of_one_layer(), None, points, record)
    record.again["k=2"] = {str(seed): {"miou": m} for seed, m in enumerate((0.5, 0.6, 0.7))}
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
    points = attention_variants(["2"], ["low"])
    record = SweepRecord.open(tmp_path, {"weights": "abc"}, points)
    sweep_without_training(model_of_one_layer(), None, points, record)
    with pytest.raises(InputError, match="a sweep with weights 'abc', not 'xyz'"):
        SweepRecord.open(tmp_path, {"weights": "xyz"}, points)
    other = attention_variants([], ["low"], (3, 4))
    assert SweepRecord.open(tmp_path, {"weights": "abc"}, other).plain.keys() == record.plain.keys()
    low = Variant("low 0:8", "band", Band.of(3))
    with pytest.raises(InputError, match="low 0:8 was another band there"):
        SweepRecord.open(tmp_path, {"weights": "abc"}, [low])
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match="not the file of a sweep"):
        SweepRecord.open(tmp_path, {"weights": "abc"}, points)


def test_trained_point_of_other_options_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(InputError, match="a run with other options"):
        train_point(lambda: (None, None, "steps: 4\n"), tmp_path, training={}, testing={})
