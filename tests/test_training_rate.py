"""benchmarks/training_rate.py: what its clock counts, and a training in miniature."""

import json
import sys

import pytest
import torch
from support.miniature import write_camvid
from support.scripts import load_benchmark
from torch import nn

from fsanet.bench.training import make_training_step


@pytest.fixture(scope="module")
def script():
    return load_benchmark("training_rate")


def test_steps_and_loops_are_timed_apart(script):
    now = 0.0

    def wait(seconds):
        nonlocal now
        now += seconds

    loops = {"quick": lambda: wait(1), "slow": lambda: wait(10)}
    between = script.Interleaved(loops, rounds=4, seconds=30, clock=lambda: now)
    wait(100)
    between.on_train_epoch_start()
    for step in range(2 + 4):
        wait(3 if step < 2 else 2)  # the warm-up is slower
        between.on_train_batch_end()
    between.on_validation_start()
    wait(50)
    between.on_validation_end()
    assert between.training == dict.fromkeys(range(4), 2.0)
    assert between.taken == {"quick": dict.fromkeys(range(4), 1.0), "slow": {0: 10.0, 2: 10.0}}
    assert between.validation == 50
    between.on_train_epoch_start()
    wait(2)
    between.on_train_batch_end()
    assert between.training[4] == 2  # without the validation


def test_rates_and_ratios(script):
    found = script.TrainingRate(
        options=[],
        same="bfloat16",
        images=8,
        training={0: 4.0, 1: 4.0},
        bare={"float32": {0: 8.0, 1: 8.0}, "bfloat16": {0: 2.0, 1: 3.0}},
        validation=3.0,
        ending=0.5,
        share=0.25,
    )
    rates, rest = script.tables(found)
    assert rates.rows[0] == (
        *("fsanet train", "2.00 (2.00 - 2.00)", "0.625 (0.562 - 0.688)"),
        *("2.00 (2.00 - 2.00)", "2"),
    )
    assert rest.title == "Validation takes 25.0 % of the whole training"


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.frozen = nn.Conv2d(3, 5, 1).requires_grad_(False)
        self.seen = []

    def forward_with_auxiliary(self, images):
        self.seen.append(images)
        logits = self.conv(images)
        return logits + self.frozen(images), logits


def cross_entropy(logits, labels):
    return nn.functional.cross_entropy(logits, labels), None


@pytest.mark.parametrize("options", [{}, {"channels_last": True}, {"bfloat16": True}])
def test_a_bare_step_trains_what_is_not_frozen(options):
    torch.manual_seed(0)
    network = Tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step = make_training_step(network, (2, 3, 4, 6), num_classes=5, loss=cross_entropy, **options)
    step()
    step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("frozen")
    first, second = network.seen
    assert first is second
    memory = torch.channels_last if "channels_last" in options else torch.contiguous_format
    assert first.is_contiguous(memory_format=memory)


@pytest.mark.slow
def test_a_training_in_miniature(script, monkeypatch, tmp_path, capsys):
    data = write_camvid(tmp_path / "data")
    options = [
        "--config=camvid_full",
        "--model.encoder=mobilenetv2_035",
        "--model.pretrained=false",
    ]
    options += ["--model.pretrained=false", "--model.head_channels=8", "--model.aux_channels=4"]
    options += [f"--data.root={data}", "--data.crop", "32", "48"]
    options += ["--data.batch_size=2", "--data.steps_per_epoch=3"]
    json_file = tmp_path / "rate.json"
    own = ["--steps=2", "--threads=1", f"--json={json_file}"]
    monkeypatch.setattr(sys, "argv", ["training_rate.py", *own, *options])
    threads = torch.get_num_threads()
    try:
        assert script.main() == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(json_file.read_text())
    assert found["same"] == "float32"
    assert set(found["bare"]) == {
        *("float32", "float32, channels-last", "bfloat16", "bfloat16, channels-last")
    }
    assert list(found["training"]) == list(found["bare"]["float32"]) == ["0", "1"]
    assert found["validation"] > 0
    assert 0 < found["share"] < 1
    assert "### Training, 2 images a step" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["training_rate.py", *own, *options, "--data.workers=1"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "would load during other loops; give 0" in capsys.readouterr().err
