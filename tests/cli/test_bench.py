"""`fsanet bench`: options, files, and one line for bad input."""

import json
from dataclasses import replace

import pytest
from PIL import Image
from support.behaving import run_in_process

from fsanet.bench import compare_layers, compare_networks, measure
from fsanet.cli import main as cli
from fsanet.errors import InputError
from fsanet.models import FsaNet


def line(capsys, *arguments):
    """The one line on stderr of a command that exits with 2."""
    assert cli.main(["bench", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("fsanet: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "sdpa", "dot-R0"], "no layer 'dot-R0'; did you mean 'dot-R"),
        (["--layers", "sdpa", "--baseline", "softmaxx"], "did you mean 'softmax'?"),
        (["--sizes", "97"], "--sizes 97: give height x width, such as 97x97"),
        (["--sizes", "0x4"], "--sizes 0x4: give height x width"),
        (["--sizes", "99999x99999"], "GiB, and "),
        (["--rounds", "0"], "rounds=0: must be at least 1"),
        (["--seconds", "0"], "seconds=0.0: must be at least 0.001"),
        (["--limit-memory", "1e300"], "limit_memory=1e+300: must be at most"),
        (["--json", "/dev/null"], "/dev/null: cannot be written"),
        (["--figures", __file__], "cannot be written (Not a directory)"),
        (["--model", "resnet18", "--recurrence", "1000000"], "recurrence=1000000: must be at most"),
        (["--dtype", "int8"], "int8"),
        (["--device", "nonsense"], "--device nonsense: not available"),
        (["--k", "4"], "--k is for whole networks; give --model with it"),
        (["--model", "--sizes", "9x9"], "--sizes is for layers; leave it out with --model"),
        (["--model", "--figures", "x"], "--figures is for layers"),
        (["--model", "--paper"], "--paper is for layers"),
        (["--paper", "--layers", "sdpa"], "--layers cannot be combined with --paper"),
        (["--model", "runs/no/such"], "runs/no/such"),
        (
            ["--grow", "depth"],
            "no axis 'depth' to grow along; choose from N, batch, ",
        ),
        (["--grow", "k=0"], "--grow k=0: give positive whole numbers, such as k=2,4,8"),
        (["--grow", "N=97"], "--grow N 97: give height x width"),
        (["--grow", "k", "--sizes", "8x8", "9x9"], "--sizes: give one with --grow"),
        (["--grow", "k", "--model"], "--grow is for layers; leave it out with --model"),
        (["--grow", "k", "--paper"], "--grow cannot be combined with --paper"),
        (["--predict", "x"], "--predict requires --model"),
        (["--predict", "x", "--model", "y", "--k", "4"], "--k is for one call of a network"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert message in line(capsys, *arguments)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(measure, "run_isolated", run_in_process)


@pytest.mark.usefixtures("in_process")
def test_a_run_prints_tables_and_writes_files(capsys, tmp_path):
    arguments = ["--sizes", "6x5", "8x8", "--channels", "8", "--layers", "floor", "dot-R1"]
    arguments += ["--baseline", "floor", "--rounds", "2", "--no-backward", "--threads", "1"]
    arguments += ["--limit-seconds", "300", "--limit_memory", "2", "--dtype", "float64"]
    files = ["--json", str(tmp_path / "a" / "b.json"), "--markdown", str(tmp_path / "b.md")]
    assert cli.main(["bench", *arguments, *files, "--figures", str(tmp_path / "f")]) == 0
    out = capsys.readouterr().out
    for part in ("6x5: cost", "8x8: time", "dot-R1", "Scaling of the forward pass", "float64"):
        assert part in out
    content = json.loads((tmp_path / "a" / "b.json").read_text())
    assert content["settings"] == {
        "layers": ["floor", "dot-R1"],
        "sizes": [[6, 5], [8, 8]],
        "channels": 8,
        "batch": 1,
        "dtype": "float64",
        "device": "cpu",
        "threads": 1,
        "baseline": "floor",
        "rounds": 2,
        "seconds": 60.0,
        "backward": False,
        "limit_seconds": 300.0,
        "limit_memory": 2**31,
    }
    assert [(row["layer"], row["width"]) for row in content["rows"]] == [
        ("floor", 5),
        ("dot-R1", 5),
        ("floor", 8),
        ("dot-R1", 8),
    ]
    assert all(row["training"] is None for row in content["rows"])
    assert content["rows"][0]["peak"] >= 8 * 30 * 8
    text = (tmp_path / "b.md").read_text()
    assert text.startswith("    fsanet bench --sizes 6x5 8x8 --channels 8")
    assert "fwd + bwd" not in text
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"time.png", "memory.png"}


@pytest.mark.usefixtures("in_process")
def test_growth_prints_tables_and_draws_a_figure_of_each_axis(capsys, tmp_path):
    arguments = ["--grow", "N=4x5,6x6", "R=1,3", "--sizes", "5x4", "--channels", "8", "--rounds=1"]
    arguments += ["--layers", "floor", "dot-R1", "--baseline=floor", "--no-backward"]
    arguments += ["--threads", "1", "--figures", str(tmp_path), "--json", str(tmp_path / "g.json")]
    assert cli.main(["bench", *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())  # titles are wrapped
    assert "Time in ms, forward, against N" in out
    assert "Forward, times faster than floor, against R" in out
    assert {path.name for path in tmp_path.glob("*.png")} == {"grow_N.png", "grow_R.png"}
    axes = json.loads((tmp_path / "g.json").read_text())["axes"]
    assert [point["value"] for point in axes["N"]["points"]] == ["4x5", "6x6"]
    assert axes["R"]["settings"]["seconds"] == 3
    assert axes["R"]["points"][1]["rows"]["dot"]["layer"] == "dot-R3"


@pytest.mark.usefixtures("in_process")
def test_the_papers_claims_come_first_in_the_file(monkeypatch, capsys, tmp_path):
    settings = []

    def small(asked, **options):
        settings.append(asked)
        layers = ("softmax", "dot-R1")
        return real(replace(asked, layers=layers, sizes=((4, 4),), channels=8, rounds=1), **options)

    real = compare_layers.compare_layers
    monkeypatch.setattr(compare_layers, "compare_layers", small)
    assert cli.main(["bench", "--paper", "--markdown", str(tmp_path / "p.md")]) == 0
    (asked,) = settings
    assert asked.sizes == ((97, 97), (129, 129))
    assert (asked.channels, asked.baseline, asked.backward) == (512, "softmax", True)
    assert (asked.rounds, asked.seconds, asked.limit_seconds) == (20, 60, 20)
    assert {"linear_softmax-R2", "paper-R1"} <= set(asked.layers)
    text = (tmp_path / "p.md").read_text()
    assert text.startswith("### The paper's claims")
    assert "| the paper | 87.29 - 90.04 |" in text
    assert "the paper" in capsys.readouterr().out


@pytest.mark.parametrize("model", [["--model"], ["--model", "resnet18"], ["--model=resnet18"]])
def test_a_network_is_measured_with_its_own_defaults(monkeypatch, model):
    asked = []

    def stop(settings, **options):
        asked.append(settings)
        raise InputError("enough")

    monkeypatch.setattr(compare_networks, "compare_networks", stop)
    assert cli.main(["bench", *model, "--image", "64x32", "--k", "4", "--seconds", "7"]) == 2
    (settings,) = asked
    assert settings.source == ("resnet18" if "resnet18" in model[-1] else "resnet101s")
    assert (settings.size, settings.k, settings.similarity) == ((64, 32), 4, None)
    assert (settings.rounds, settings.seconds, settings.limit_seconds) == (10, 7, 120)


def test_prediction_is_measured_against_its_network(capsys, tmp_path):
    network = FsaNet("test_resnet", num_classes=3, head_channels=8, aux_channels=0, k=2)
    network.save_pretrained(tmp_path / "model")
    for number, size in enumerate([(48, 32), (32, 32), (48, 32)]):
        Image.new("RGB", size, (90 * number, 9, 9)).save(tmp_path / f"{number}.png")
    files = ["--json", str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]
    what = ["--predict", str(tmp_path), "--model", str(tmp_path / "model"), "--batch", "2"]
    options = ["--rounds", "2", "--threads", "1", "--device", "cpu", "--dtype", "bfloat16"]
    assert cli.main(["bench", *what, *options, *files]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["images"] == 3
    assert found["network"]["count"] == found["pipeline"]["count"] == 2
    assert found["ratio"]["median"] == pytest.approx(
        found["network"]["median"] / found["pipeline"]["median"], rel=0.5
    )
    assert list(found["steps"]) == [
        *("decode", "preprocess", "network", "argmax", "draw", "encode + write")
    ]
    assert 0 <= found["agreement"] <= 1
    for text in (printed, (tmp_path / "b.md").read_text()):
        assert "% of pixels have the class of float32; threads 1; device CPU" in text
        assert "network alone, bfloat16" in text
        assert "encode + write" in text
