from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.data.datasets.scenes import AMBIGUOUS_PAIRS
from fsanet.errors import InputError
from fsanet.models import FsaNet
from fsanet.models.segmenter import Masks
from fsanet.predict.predictor import Predictor
from fsanet.report import demo as demo_module
from fsanet.report import demo_recipe
from fsanet.report.demo import run_demo, score_look_alikes, varied_scenes
from fsanet.report.demo_recipe import affordable_steps, demo_data, demo_network
from fsanet.report.figures import read_history


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_recipe, "LENGTHS", {"train": 10, "val": 3, "test": 5})
    monkeypatch.setattr(demo_recipe, "SIZE", (48, 128))
    monkeypatch.setattr(demo_recipe, "BATCH", 2)
    monkeypatch.setattr(demo_module, "EXAMPLES", 2)


def test_the_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new/demo"
    result = run_demo(out, steps=3)
    printed = capsys.readouterr().out
    first = printed.split("nothing is downloaded")[0]
    assert "Takes 3 training steps each" in first  # before anything is done
    assert str(out) in first
    assert f"Report: {out / 'report.html'}" in printed

    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    data = demo_data(0, 3)
    shown = varied_scenes(data)
    examples = {
        f"predictions/test-0{i}{end}"
        for i in shown
        for end in ("_mask.png", "_overlay.png", ".json")
    }
    examples |= {f"scenes/test-0{i}.png" for i in shown}
    run = {"run/metrics.csv", "run/config.yaml", "run/checkpoints/last.ckpt"}
    run |= {file.replace("run/", "without_attention/", 1) for file in run}
    model = {"run/model/config.json", "run/model/model.safetensors"}
    assert {"report.html", "curves.png", "metrics.json"} | examples | run | model <= files
    assert not any("partial" in name for name in files)

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == result["steps"] == 3
    assert metrics["miou"] == result["miou"]
    assert metrics["scores"]["miou"] == metrics["miou"]
    assert metrics["versions"]["torch"] == torch.__version__
    network = FsaNet.from_pretrained(result["model"])
    image, mask = data.dataset("test")[shown[1]]
    predicted = Predictor(network)(image.as_subclass(torch.Tensor)).mask.numpy()
    with Image.open(out / f"predictions/test-0{shown[1]}_mask.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), predicted)

    with Image.open(out / f"scenes/test-0{shown[1]}.png") as scene:
        np.testing.assert_array_equal(np.asarray(scene), image.permute(1, 2, 0).numpy())

    page = (out / "report.html").read_text()
    right = 100 * (predicted == mask.numpy()).mean()
    assert f"Test scene {shown[1]}: {right:.1f} % of the pixels right with attention, " in page
    other = FsaNet.from_pretrained(out / "without_attention/model")
    assert not hasattr(other.head.attention, "query")
    found = Predictor(other)(image.as_subclass(torch.Tensor)).mask.numpy()
    assert f"{100 * (found == mask.numpy()).mean():.1f} % of the pixels right without" in page
    assert metrics["without_attention"]["steps"] == 3
    miou = metrics["scores_without_attention"]["miou"]
    assert f"<dd>{100 * miou:.1f} %</dd><dt>mean IoU without attention</dt>" in page
    assert f"<dd>{100 * metrics['miou']:.1f} %</dd><dt>mean IoU</dt>" in page
    assert page.count("<figure>") == 2
    assert all(f"</i>{name}</th>" in page for name in network.classes)
    sources = re.findall(r"(?:src|srcset|href)=\"(.{30})", page)
    assert len(sources) == 2 * 2 + 2 * 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)


@pytest.mark.slow
def test_given_steps_give_the_same_numbers_again(tmp_path: Path) -> None:
    results, states = [], []
    for _ in range(2):  # the second replaces the first
        results.append(run_demo(tmp_path, steps=2, seed=3, progress=False))
        states.append(FsaNet.from_pretrained(results[-1]["model"]).state_dict())
    assert results[0]["miou"] == results[1]["miou"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_seed_decides_the_weights_and_leaves_the_global_state() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    same = [demo_network(1), demo_network(1), demo_network(2)]
    assert torch.equal(torch.rand(1), expected)
    first = [next(network.head.parameters()) for network in same]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_steps_follow_the_time_and_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    network = demo_network(0)
    pace, networks = [0.05], [1]

    def slow_forward(self: FsaNet, images: torch.Tensor) -> torch.Tensor:
        clock[0] += pace[0]
        bias = next(self.parameters()).mean()
        return images.new_zeros(len(images), 7, *images.shape[2:]) + bias

    monkeypatch.setattr(FsaNet, "forward", slow_forward)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def steps(seconds: float, speed: float) -> int:
        pace[0] = speed
        return affordable_steps([network] * networks[0], torch.device("cpu"), seconds, clock[0])

    whole = steps(120, 0.1)
    assert 0.75 * 1200 < whole < 1200
    networks[0] = 2
    assert 0.4 < steps(120, 0.1) / whole < 0.5
    networks[0] = 1
    half = steps(120, 0.2)
    assert 0.4 < half / whole < 0.55
    assert steps(60, 0.1) < 0.5 * whole
    assert steps(5, 10.0) == demo_recipe.MIN_STEPS
    assert steps(1e6, 0.001) == demo_recipe.MAX_STEPS
    # The network that is going to be trained has not been touched.
    fresh = demo_network(0).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_a_machine_that_gets_slower_stops_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fsanet.report.demo.affordable_steps", lambda *_: 4000)
    result = run_demo(tmp_path, minutes=0.01)
    assert 1 <= result["steps"] < 400
    assert f"stopped after {result['steps']} of 4000 steps" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == result["steps"]
    assert "stopped early, of 4000" in (tmp_path / "report.html").read_text()
    assert metrics["without_attention"]["steps"] == result["steps"]
    # Validated all the same, although no epoch was finished.
    assert len(read_history(tmp_path / "run/metrics.csv").miou) == 1


def test_examples_show_every_state_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_recipe, "LENGTHS", {"train": 1, "val": 1, "test": 24})
    monkeypatch.setattr(demo_module, "EXAMPLES", 6)
    data = demo_data(0, 1)
    chosen = varied_scenes(data)
    assert len(set(chosen)) == 6
    assert all(type(index) is int and 0 <= index < 24 for index in chosen)
    ambiguous = {label for pair in AMBIGUOUS_PAIRS for label in pair}
    states = [
        frozenset(data.dataset("test")[index][1].unique().tolist()) & ambiguous for index in chosen
    ]
    assert len(set(states[:4])) == 4
    assert states[4:] == states[:2]


def test_look_alikes_against_a_loop() -> None:
    data = demo_data(0, 1)
    rng = np.random.default_rng(0)
    guesses = [rng.integers(0, 7, (48, 128)) for _ in range(5)]

    class Guess:
        batch_size = 2
        done = 0

        def masks(self, images: torch.Tensor) -> Masks:
            some = guesses[self.done : self.done + len(images)]
            self.done += len(images)
            return Masks(torch.from_numpy(np.stack(some)).to(torch.uint8), None, None)

    right = wrong = 0
    for guess, (_, mask) in zip(guesses, data.dataset("test"), strict=False):
        for label, found in zip(mask.numpy().ravel(), guess.ravel(), strict=True):
            for pair in AMBIGUOUS_PAIRS:
                if label in pair and found in pair:
                    right += label == found
                    wrong += label != found
    guess: Any = Guess()
    assert score_look_alikes(guess, data) == pytest.approx(right / (right + wrong))
    assert 0.4 < right / (right + wrong) < 0.6


def test_bad_settings_are_noticed_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    began = time.perf_counter()
    for out, options, message in [
        (tmp_path / "file", {}, "cannot be written"),
        (tmp_path / "out", {"minutes": 0}, "minutes=0"),
        (tmp_path / "out", {"minutes": float("nan")}, "minutes=nan"),
        (tmp_path / "out", {"steps": 0}, "steps=0"),
    ]:
        with pytest.raises(InputError, match=message):
            run_demo(out, progress=False, **options)
    assert time.perf_counter() - began < 5
    assert not (tmp_path / "out").exists()
