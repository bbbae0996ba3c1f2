"""The experiments that train on cached features, in miniature."""

import argparse
import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # the experiments set it to 1


def load(monkeypatch, name):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return importlib.import_module(name)


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    return module.main()


# --- token mixers -----------------------------------------------------------------------------


def write_features(cache):
    """Two images per split as real_context.py caches them; features tell the classes."""
    cache.mkdir()
    draws = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        labels = torch.randint(11, (2, 3, 4), generator=draws)
        grid = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)  # (2, 24, 32)
        features = nn.functional.one_hot(grid, 24).permute(0, 3, 1, 2).half()
        content = {
            "features": features,
            "mirrored": features.flip(-1) if split == "train" else None,
            "labels": grid.repeat_interleave(2, 1).repeat_interleave(2, 2).byte(),
        }
        torch.save(content, cache / f"19-{split}.pt")


@pytest.mark.slow
def test_token_mixers_leave_scores_and_tables(monkeypatch, capsys, tmp_path):
    mixers = load(monkeypatch, "token_mixers")
    monkeypatch.setattr(mixers, "KEPT", (2, None))
    write_features(tmp_path / "cache")
    where = ["--cache", tmp_path / "cache", "--scores", tmp_path / "scores"]
    assert run(monkeypatch, mixers, *where, "--steps", "2", "--seeds", "3") == 0
    out = capsys.readouterr().out
    for name, attention in itertools.product(("vit", "segformer"), mixers.ATTENTIONS):
        assert f"| {name} | {attention} | 3 |" in out
    for name, parts in (("vit", 3), ("segformer", 2)):
        found = json.loads((tmp_path / "scores" / f"{name}-softmax-3.json").read_text())
        assert found["lowest k x k"]["all"]["full"] == pytest.approx(found["trained"]["miou"])
        converted = json.loads((tmp_path / "scores" / f"{name}-frequency-3.json").read_text())
        assert len(found["removed"]) == len(found["lowest k x k"]) == parts + 1
        assert converted["removed"].keys() == found["removed"].keys()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").iterdir()}
    assert len(before) == 6
    assert run(monkeypatch, mixers, *where, "--steps", "2", "--seeds", "3") == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before


def changed_positions(network, x):
    """Positions of the output that depend on the first one of the input."""
    moved = x.clone()
    moved[..., 0, 0] += 1
    with torch.no_grad():
        return ((network(moved) - network(x)).abs().amax((0, 1)) > 1e-5).sum()


def test_only_attention_relates_the_positions_of_the_vit(monkeypatch):
    mixers = load(monkeypatch, "token_mixers")
    torch.manual_seed(0)
    network = mixers.Vit(5, 11).double().eval()
    for block in network.encoder.blocks:  # initial weights are small
        block.attn.qkv.weight.data *= 10
    x = torch.randn(1, 5, 24, 32, dtype=torch.double)
    assert changed_positions(network, x) > 700
    assert changed_positions(mixers.without_attention(network), x) == 1
    first = mixers.without_attention(network, network.parts["layer 1"])
    assert [isinstance(block.attn, mixers.NoAttention) for block in first.encoder.blocks] == [
        True,
        False,
        False,
    ]


def test_without_attention_the_segformer_sees_only_nearby(monkeypatch):
    mixers = load(monkeypatch, "token_mixers")
    torch.manual_seed(0)
    network = mixers.Segformer(5, 11).double().eval()
    for name, parameter in network.encoder.named_parameters():  # initial weights are small
        if "weight" in name and "norm" not in name:
            parameter.data *= 10
    x = torch.randn(1, 5, 24, 32, dtype=torch.double)
    near = changed_positions(mixers.without_attention(network), x)
    assert 1 < near < 200 < changed_positions(network, x)


# --- instances --------------------------------------------------------------------------------


@pytest.fixture
def balloons(tmp_path):
    """Options of balloon_folds.py for six photographs of one square each, and random weights."""
    import timm

    for split, count in (("train", 4), ("val", 2)):
        folder = tmp_path / "data" / split / "images"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            x, y, side = 10 * number, 6 * number, 30
            picture = Image.new("RGB", (120, 90), (40, 90, 20 * number))
            ImageDraw.Draw(picture).rectangle((x, y, x + side, y + side), fill=(220, 30, 30))
            picture.save(folder / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 90, "width": 120})
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": [corners],
                    "bbox": [x, y, side, side],
                    "area": side**2,
                    "iscrowd": 0,
                }
            )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "balloon"}],
        }
        (folder.parent / "instances.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("mobilenetv2_100", pad_type="same").state_dict(), weights)
    return {"config": "balloon_mask_rcnn", "data": tmp_path / "data", "weights": weights}


@pytest.mark.slow
def test_folds_leave_scores_and_tables(monkeypatch, capsys, tmp_path, balloons):
    pytest.importorskip("faster_coco_eval")
    folds = load(monkeypatch, "balloon_folds")
    options = [item for name, value in balloons.items() for item in (f"--{name}", value)]
    options += ["--scores", tmp_path / "scores", "--steps", "2", "--folds", "1"]
    assert run(monkeypatch, folds, *options) == 0
    out = capsys.readouterr().out
    assert "| regular | 1 | 0.0 |" in out
    assert "| mask AP | 0.0 |" in out
    found = json.loads((tmp_path / "scores" / "regular-1.json").read_text())
    assert found["images"] == 1
    assert set(found["lowest k x k"]) == {"1", "4", "8", "16"}
    assert run(monkeypatch, folds, *options) == 0  # nothing is trained again
    assert "features" not in capsys.readouterr().out


def test_stored_features_give_the_detections_of_the_whole_network(monkeypatch, balloons):
    folds = load(monkeypatch, "balloon_folds")
    options = argparse.Namespace(**balloons)
    examples = folds.load_examples(options)
    assert [pair[0].target["image_id"] for pair in examples] == list(range(6))
    torch.manual_seed(0)
    network = folds.build(options, "frequency").eval()
    for plain, mirrored in examples[:2]:
        assert torch.equal(mirrored.image, plain.image.flip(-1))
        assert torch.equal(mirrored.target["masks"], plain.target["masks"].flip(-1))
    body = network.backbone.body
    for one in examples[0]:
        network.backbone.body = body
        (expected,) = network.detect([one.image])
        network.backbone.body = folds.StoredFeatures()
        (found,) = network.detect(folds.give(network, [one]))
        assert len(expected["scores"]) > 0
        torch.testing.assert_close(found["boxes"], expected["boxes"])
        torch.testing.assert_close(found["scores"], expected["scores"])
