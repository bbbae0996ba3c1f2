"""Saved networks in transformers: masks equal to `Predictor`'s, offline, and no code of theirs."""

import json
import logging
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import small_fsanet

from fsanet import Predictor, load_model
from fsanet.errors import InputError

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("fsanet.hf")

NAMES = ["sky", "road", "tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    options = {"output_stride": 16, "k": 2, "zero_init": False, "classes": NAMES, "bgr": True}
    small_fsanet(**options, encoder_options={"channels": [8] * 4}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("no network in these tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_pipeline(folder, photo, caplog):
    caplog.set_level(logging.WARNING)
    transformers.utils.logging.enable_propagation()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}
    found = transformers.pipeline("image-segmentation", model=str(folder))(str(photo))
    mask = Predictor(load_model(folder))(photo).mask.numpy()
    assert {one["label"] for one in found} == {NAMES[index] for index in np.unique(mask)}
    for one in found:
        expected = mask == NAMES.index(one["label"])
        np.testing.assert_array_equal(np.asarray(one["mask"]) > 0, expected)
    assert "is not supported" not in caplog.text


def test_auto_classes(folder, photo):
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert model.config.id2label == dict(enumerate(NAMES))
    inputs = processor(Image.open(photo), return_tensors="pt")
    labels = torch.zeros(1, 61, 90, dtype=torch.int64)
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
    assert outputs["logits"].shape == (1, 3, 61, 90)
    expected = torch.nn.functional.cross_entropy(outputs.logits, labels)
    torch.testing.assert_close(outputs.loss, expected)
    (mask,) = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(mask.to(torch.uint8), Predictor(load_model(folder))(photo).mask)
    (large,) = processor.post_process_semantic_segmentation(outputs, [(122, 180)])
    assert large.shape == (122, 180)


def test_saved_again(folder, tmp_path):
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_config_saved_alone(folder, tmp_path):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = shutil.copytree(folder, tmp_path / "model")
    config.save_pretrained(model)  # over the one of the network
    load_model(model)
    assert json.loads((model / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    config.save_pretrained(tmp_path / "alone")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "alone")
    assert again.id2label == config.id2label == dict(enumerate(NAMES))
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "alone")


def test_options_of_transformers(folder, tmp_path):
    open_folder = transformers.AutoModelForSemanticSegmentation.from_pretrained
    model = open_folder(folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype='bf16': give one of torch"):
        open_folder(folder, dtype="bf16")
    with pytest.raises(InputError, match="does not upload"):
        model.save_pretrained(tmp_path / "model", push_to_hub=True)
    model.save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model").exists()


def test_folders_of_earlier_versions_still_open(folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["model_type"]
    (old / "config.json").write_text(json.dumps(config))
    (old / "preprocessor_config.json").unlink()
    load_model(old).save_pretrained(tmp_path / "new")
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, "classes is no list of names"),
        ({"encoder": 3}, "encoder is 3; expected text"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_a_config_that_is_wrong(folder, tmp_path, change, message):
    bad = shutil.copytree(folder, tmp_path / "bad")
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        transformers.AutoModelForSemanticSegmentation.from_pretrained(bad)


@pytest.mark.parametrize(
    "change",
    [
        *({"image_mean": "abc"}, {"image_mean": [None] * 3}, {"image_std": [0, 0, 0]}),
        *({"image_mean": 3}, {"image_std": [1, 1]}, {"image_std": [1e999] * 3}, {"bgr": "false"}),
    ],
)
def test_a_preprocessor_config_that_is_wrong(folder, tmp_path, change):
    bad = shutil.copytree(folder, tmp_path / "bad")
    file = bad / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=f"{next(iter(change))}"):
        transformers.AutoImageProcessor.from_pretrained(bad)


@pytest.mark.parametrize("name", ["preprocess", "__class__", "__call__"])
def test_a_preprocessor_config_replaces_no_attribute(folder, photo, tmp_path, name):
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: [1]}))
    given, expected = (
        transformers.AutoImageProcessor.from_pretrained(one)(str(photo))["pixel_values"]
        for one in (other, folder)
    )
    assert torch.equal(given, expected)


def test_code_in_the_folder_does_not_run(folder, photo, tmp_path):
    trap = shutil.copytree(folder, tmp_path / "trap")
    (trap / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((trap / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.Evil",
        "AutoModelForSemanticSegmentation": "evil.Evil",
    }
    (trap / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="unknown key 'auto_map'"):
        transformers.AutoModelForSemanticSegmentation.from_pretrained(trap)
    assert not (tmp_path / "canary").exists()


def test_images_of_several_sizes(folder):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    images = [Image.new("RGB", (40, 40)), Image.new("RGB", (50, 40))]
    with pytest.raises(InputError, match="give them one by one"):
        processor(images)
