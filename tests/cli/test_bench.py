"""`fsanet bench`: options, files, and one line for bad input."""

import json

import pytest

from fsanet.bench import harness
from fsanet.cli import bench
from fsanet.cli import main as cli


def line(capsys, *arguments):
    """The one line on stderr of a command that exits with 2."""
    assert cli.main(["bench", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("fsanet: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "sdpa", "dot-R3"], "no layer 'dot-R3'; did you mean 'dot-R"),
        (["--layers", "sdpa", "--baseline", "softmaxx"], "did you mean 'softmax'?"),
        (["--sizes", "97"], "--sizes 97: give height x width, such as 97x97"),
        (["--sizes", "0x4"], "--sizes 0x4: give height x width"),
        (["--rounds", "0"], "--rounds 0: give more than 0"),
        (["--seconds", "nan"], "--seconds nan: give more than 0"),
        (["--limit-seconds", "-1"], "--limit-seconds -1.0: give more than 0"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--device", "nonsense"], "--device nonsense: not available"),
        (["--k", "4"], "--k is for whole networks; give --model with it"),
        (["--model", "--sizes", "9x9"], "--sizes is for layers; leave it out with --model"),
        (["--model", "--figures", "x"], "--figures is for layers"),
        (["--model", "--paper"], "--paper is for layers"),
        (["--paper", "--layers", "sdpa"], "--paper chooses layers and baseline itself"),
        (["--model", "runs/no/such"], "runs/no/such"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert message in line(capsys, *arguments)


def test_a_run_prints_tables_and_writes_files(capsys, tmp_path):
    arguments = ["--sizes", "6x5", "8x8", "--channels", "8", "--layers", "floor", "dot-R1"]
    arguments += ["--baseline", "floor", "--rounds", "2", "--no-backward", "--threads", "1"]
    arguments += ["--limit-seconds", "300", "--limit-memory", "2", "--dtype", "float64"]
    files = ["--json", str(tmp_path / "a" / "b.json"), "--markdown", str(tmp_path / "b.md")]
    assert cli.main(["bench", *arguments, *files, "--figures", str(tmp_path / "f")]) == 0
    out = capsys.readouterr().out
    for part in ("6x5: cost", "8x8: time", "dot-R1", "Scaling of the forward pass", "float64"):
        assert part in out
    content = json.loads((tmp_path / "a" / "b.json").read_text())
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


def test_the_papers_claims_come_first_in_the_file(monkeypatch, capsys, tmp_path):
    asked = {}

    def fake(settings, *, watch, done):
        asked["settings"] = settings
        tiny = harness.Settings(
            layers=("softmax", "dot-R1"),
            sizes=((16, 16),),
            channels=8,
            baseline="softmax",
            rounds=1,
            limit_seconds=300,
            limit_memory=2**31,
        )
        return real(tiny, watch=watch, done=done)

    real = harness.run_bench
    monkeypatch.setattr(harness, "run_bench", fake)
    assert cli.main(["bench", "--paper", "--markdown", str(tmp_path / "p.md")]) == 0
    assert asked["settings"].sizes == ((97, 97), (129, 129))
    assert asked["settings"].channels == 512
    assert asked["settings"].baseline == "softmax"
    assert {"linear_softmax-R2", "paper-R1"} <= set(asked["settings"].layers)
    text = (tmp_path / "p.md").read_text()
    assert text.startswith("### The paper's claims")
    assert "| the paper | 87.29 - 90.04 |" in text
    assert "the paper" in capsys.readouterr().out


def test_defaults_of_the_command():
    options = bench._parser().parse_args([])
    bench._check(options)
    assert options.backward
    assert bench._SIZES == ((97, 97), (128, 128), (128, 256), (256, 512))
    assert "rounds" not in bench._common(options)  # networks have another default
    assert bench._parser().parse_args(["--model"]).model == "resnet101s"
