"""`fsanet explain`: its files, and one line for bad input."""

import json

import pytest
import torch
from PIL import Image
from support.tiny import small_fsanet

from fsanet.cli import main as cli


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_fsanet(zero_init=False, classes=["sky", "road", "car"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "photo.jpg"
    noise = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(file)
    return file


def test_an_explanation(model, photo, tmp_path, capsys):
    out = tmp_path / "why"
    given = [str(photo), "--model", str(model), "--at", "100,80", "--out", str(out)]
    assert cli.main(["explain", *given, "--steps", "4", "--max-side", "60"]) == 0
    content = json.loads((out / "explanation.json").read_text())
    assert (content["width"], content["height"], content["pixel"]) == (60, 45, [50, 40])
    assert content["image"] == str(photo)
    assert content["integrated_gradients"]["steps"] == 4
    assert content["class"] in ("sky", "road", "car")
    assert f"pixel 100,80 is {content['class']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "100"], "--at 100: give a pixel as X,Y, such as 240,180"),
        (["--at", "a,b"], "--at a,b: give a pixel"),
        (["--at", "120,0"], "pixel 120,0 lies outside the image of 120 x 90 pixels"),
        (["--at", "1,1", "--layer", "none"], "layer 'none': not an attention layer"),
        (["--at", "1,1", "--max-pixels", "99"], "120x90 pixels, more than the limit"),
        (["--at", "1,1", "--steps", "1"], "steps=1"),
    ],
)
def test_wrong_input(model, photo, tmp_path, capsys, options, message):
    given = [str(photo), "--model", str(model), "--out", str(tmp_path / "why")]
    assert cli.main(["explain", *given, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "why").exists()
