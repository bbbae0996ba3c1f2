"""The moving picture of the README, from a demo's folder without a training."""

import json
import runpy
import sys
from pathlib import Path

from PIL import Image

from fsanet.report import demo, demo_recipe

SCRIPT = Path(__file__).parents[2] / "experiments" / "scenes_picture.py"


def test_a_frame_for_each_scene(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_recipe, "LENGTHS", {"train": 1, "val": 1, "test": 6})
    monkeypatch.setattr(demo_recipe, "SIZE", (48, 128))
    monkeypatch.setattr(demo, "EXAMPLES", 3)
    for folder, attention in zip(demo.FOLDERS.values(), ("frequency", None), strict=True):
        network = demo_recipe.demo_network(0, attention=attention)
        network.save_pretrained(tmp_path / folder / "model")
    (tmp_path / "metrics.json").write_text(json.dumps({"settings": {"seed": "0"}}))
    file = tmp_path / "scenes.gif"
    monkeypatch.setattr(sys, "argv", ["scenes_picture.py", str(tmp_path), "--out", str(file)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "3 scenes" in capsys.readouterr().out
    with Image.open(file) as picture:
        assert picture.n_frames == 3
        assert picture.width > 2 * 2 * 128
        frames = []
        for index in range(3):
            picture.seek(index)
            frames.append(picture.convert("RGB").tobytes())
        assert picture.info["duration"] == 1600
    assert len(set(frames)) == 3
