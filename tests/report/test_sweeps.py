"""Points of a sweep against dense attention on maps that SciPy has cut to the band."""

import json

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.dct import Band
from fsanet.errors import InputError
from fsanet.metrics.scores import scores_of
from fsanet.models import FsaNet
from fsanet.report import sweep as sweep_run
from fsanet.report.sweep import SweepRecord, sweep_without_training, train_point
from fsanet.report.sweeps import Point, attention_points, with_point

SIZE = (10, 13)


def cut(x, rows, columns):
    """The part of a map in a rectangle of frequencies."""
    coefficients = dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    kept = np.zeros_like(coefficients)
    kept[..., rows, columns] = coefficients[..., rows, columns]
    return torch.tensor(idctn(kept, axes=(-2, -1), norm="ortho"))


def layers():
    torch.manual_seed(0)
    options = {"similarity": "softmax", "block": "nonlocal", "zero_init": False}
    regular = SpatialSelfAttention(8, **options).double().eval()
    trained_with_3 = FrequencySelfAttention(8, k=3, **options).double().eval()
    trained_with_3.load_state_dict(regular.state_dict())
    return regular, trained_with_3


@pytest.mark.parametrize("start", [0, 1], ids=["regular", "frequency k=3"])
@pytest.mark.parametrize(
    ("k", "band", "rows", "columns"),
    [
        (["5"], [], slice(0, 5), slice(0, 5)),
        (["full"], [], slice(None), slice(None)),
        ([], ["low"], slice(0, 3), slice(0, 3)),
        ([], ["middle"], slice(3, 6), slice(3, 6)),
        ([], ["high"], slice(6, None), slice(6, None)),
        ([], ["1:4,7:"], slice(1, 4), slice(7, None)),
    ],
)
def test_attention_sees_the_band_alone(start, k, band, rows, columns):
    regular = layers()[0]
    model = nn.Sequential(nn.Identity(), layers()[start])
    point = attention_points(k, band, (3, 6))[-1]
    x = torch.randn(2, 8, *SIZE, dtype=torch.float64)
    seen = cut(x, rows, columns)
    with torch.no_grad():
        expected = x + regular(seen) - seen  # what attention adds, of the band alone
        assert torch.allclose(with_point(model, point)(x), expected, atol=1e-10)
        assert not torch.allclose(expected, x, atol=1e-3)


def network(**options):
    torch.manual_seed(1)
    model = FsaNet(
        "resnet10t", num_classes=3, head_channels=8, aux_channels=0, output_stride=16, **options
    )
    return model.eval()


def test_removed_is_the_network_without_attention():
    model = network(attention="spatial", zero_init=False)
    with torch.no_grad():  # an untrained one adds next to nothing
        model.head.attention.norm.weight *= 1e5
    without = network(attention=None)
    state = {n: v for n, v in model.state_dict().items() if not n.startswith("head.attention")}
    without.load_state_dict(state)
    removed = with_point(model, attention_points()[1])
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(removed(images), without(images))
        assert not torch.allclose(removed(images), model(images))
    assert isinstance(model.head.attention, SpatialSelfAttention)  # left alone


def test_match_chooses_layers():
    model = nn.ModuleDict({"a": layers()[0], "b": layers()[1]})
    changed = with_point(model, attention_points(["4"])[-1], "a")
    assert isinstance(changed["a"], FrequencySelfAttention)
    assert (changed["a"].band.h1, changed["b"].band.h1) == (4, 3)
    with pytest.raises(InputError, match="'c' fits no attention"):
        with_point(model, attention_points(["4"])[-1], "c")


def test_token_attention_is_converted_but_not_taken_out():
    timm = pytest.importorskip("timm")
    vit = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=12, depth=1, num_heads=2, num_classes=2
    ).eval()
    points = attention_points(["2", "full"])
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(with_point(vit, points[-1])(image), vit(image), atol=1e-5)
        assert not torch.allclose(with_point(vit, points[-2])(image), vit(image), atol=1e-5)
    with pytest.raises(InputError, match="cannot be taken out"):
        with_point(vit, points[1])


@pytest.mark.parametrize(
    ("k", "bands", "cuts", "line"),
    [
        (["0"], [], (8, 16), "--k 0: give numbers from 1 up, or full"),
        (["many"], [], (8, 16), "--k many"),
        (["4", "4"], [], (8, 16), "k=4: given twice"),
        ([], ["lowest"], (8, 16), "--bands lowest: give low, middle, high, full, or ranges"),
        ([], ["8:8"], (8, 16), "--bands 8:8: .*empty"),
        ([], ["0:1,0:2,0:3"], (8, 16), "--bands 0:1,0:2,0:3"),
        ([], ["low"], (8, 8), "--cuts 8 8"),
    ],
)
def test_points_that_make_no_sense(k, bands, cuts, line):
    with pytest.raises(InputError, match=line):
        attention_points(k, bands, cuts)


# --- the record -------------------------------------------------------------------------


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
    model.attention = layers()[0]
    return model


def test_each_band_once_and_goes_on_after_a_failure(evaluated, tmp_path):
    calls, broken = evaluated
    points = attention_points(["2", "4", "full"], ["low", "full", "3:"], (2, 4))
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
    points = attention_points(["2", "full"])
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
    points = attention_points(["2"], ["low"])
    record = SweepRecord.open(tmp_path, {"weights": "abc"}, points)
    sweep_without_training(model_of_one_layer(), None, points, record)
    with pytest.raises(InputError, match="a sweep with weights 'abc', not 'xyz'"):
        SweepRecord.open(tmp_path, {"weights": "xyz"}, points)
    other = attention_points([], ["low"], (3, 4))
    assert SweepRecord.open(tmp_path, {"weights": "abc"}, other).plain.keys() == record.plain.keys()
    low = Point("low 0:8", "band", Band.of(3))
    with pytest.raises(InputError, match="low 0:8 was another band there"):
        SweepRecord.open(tmp_path, {"weights": "abc"}, [low])
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match="not the file of a sweep"):
        SweepRecord.open(tmp_path, {"weights": "abc"}, points)


def test_trained_point_of_other_options_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(InputError, match="a run with other options"):
        train_point(lambda: (None, None, "steps: 4\n"), tmp_path, training={}, testing={})
