"""Every file in configs/: two steps and an evaluation on a miniature of its data set."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support.miniature import write_ade20k, write_camvid, write_cityscapes, write_coco, write_voc

from fsanet import FrequencySelfAttention, models
from fsanet.cli import main as cli
from fsanet.cli.recipes import merged, read_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
SMALL = {
    "CityscapesData": (write_cityscapes, ["--data.init_args.crop", "[65, 65]"]),
    "Ade20kData": (write_ade20k, ["--data.init_args.crop", "[65, 65]"]),
    "VocAugData": (write_voc, ["--data.init_args.crop", "[65, 65]", "--data.init_args.sbd=null"]),
    "CamVidData": (write_camvid, ["--data.init_args.crop", "[65, 65]"]),
    "CocoData": (
        write_coco,
        [
            *(f"--data.init_args.{split}_images={split}2017" for split in ("train", "val")),
            *(
                f"--data.init_args.{split}_annotations=annotations/instances_{split}2017.json"
                for split in ("train", "val")
            ),
            *("--model.min_size", "64", "--model.max_size", "80"),
        ],
    ),
    "SceneData": (None, ["--data.init_args.train_length=4", "--data.init_args.val_length=2"]),
}
# Weights are downloads, or files that are not part of the project.
WITHOUT_WEIGHTS = {
    "FsaNet": ["--model.pretrained=false", "--model.encoder_weights=null"],
    "SegformerFsa": ["--model.init_args.pretrained=null"],
    "MaskRcnnFsa": ["--model.backbone_weights=null"],
}
# In place of the network of a row where that takes long: the whole one is `-m slow`, and built
# without memory in any case.
SMALLER = {
    "FsaNet": ["--model.encoder=resnet10t"],
    "SegformerFsa": ["--model.init_args.variant=b0"],
    "MaskRcnnFsa": ["--model.backbone=resnet10t", "--model.positions=[p4]"],
}
LARGE = [file for file in FILES if file.stem.startswith(("city", "ade", "voc", "coco", "segf"))]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Each layout, written when it is first asked for."""
    made = {}

    def tree(name):
        write = SMALL[name][0]
        if name not in made and write is not None:
            made[name] = str(write(tmp_path_factory.mktemp(name)))
        return made.get(name)

    return tree


def data_and_network(content):
    data = content["data"]["class_path"].rsplit(".", 1)[-1]
    named = content["model"].get("class_path", "FsaNet")
    return data, "MaskRcnnFsa" if data == "CocoData" else named.rsplit(".", 1)[-1]


@pytest.mark.parametrize(
    ("file", "whole"),
    [pytest.param(file, file not in LARGE, id=file.stem) for file in FILES]
    + [pytest.param(f, True, id=f"{f.stem}-whole", marks=pytest.mark.slow) for f in LARGE],
)
def test_two_steps_and_an_evaluation(file, whole, trees, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    content = read_recipe(file)
    data, network = data_and_network(content)
    if network == "SegformerFsa":
        pytest.importorskip("transformers")
    if data == "CocoData":
        pytest.importorskip("faster_coco_eval")
    if data == "VocAugData":
        pytest.importorskip("scipy")
    root = trees(data)
    out = tmp_path / "run"
    options = [
        *([f"--data.init_args.root={root}"] if root else []),
        *SMALL[data][1],
        *WITHOUT_WEIGHTS[network],
        *("--data.init_args.batch_size=2", "--data.init_args.steps_per_epoch=2"),
        *("--data.init_args.workers=0", "--steps=2", "--val_every=1", "--task.warmup_steps=1"),
        *("--global_batch=2", "--accelerator=cpu"),
    ]
    if not whole:
        options += SMALLER[network]
    try:
        assert cli.main(["train", "--config", str(file), *options, "--out", str(out)]) == 0
        config = yaml.safe_load((out / "config.yaml").read_text())
        scores = tmp_path / "scores.json"
        small = [] if data == "CocoData" else ["--split", "val"]
        if content.get("test", {}).get("window"):
            small += ["--window", "64", "--stride", "32", "--scales", "0.5", "1.0"]
        if content.get("test", {}).get("resize"):
            small += ["--resize", "64", "48"]
        command = ["eval", str(out), "--accelerator=cpu", "--json", str(scores), *small]
        assert cli.main(command) == 0, capsys.readouterr().err
    finally:
        shutil.rmtree(out, ignore_errors=True)  # up to a gigabyte each
    assert config["steps"] == 2
    # What no option above changed is as the recipe says.
    task = {key: value for key, value in content["task"].items() if key != "warmup_steps"}
    assert task.items() <= config["task"].items()
    assert {k: v for k, v in content.get("test", {}).items() if config["test"][k] != v} == {}
    found = json.loads(scores.read_text())
    value = found["mask"]["AP"] if data == "CocoData" else found["miou"]
    assert -1 <= value <= 1


@pytest.mark.parametrize("file", LARGE, ids=lambda file: file.stem)
def test_whole_network_of_a_row(file):
    content = read_recipe(file)
    _, network = data_and_network(content)
    if network == "SegformerFsa":
        pytest.importorskip("transformers")
    options = dict(content["model"].get("init_args", content["model"]))
    for name in ("pretrained", "backbone_weights"):
        options.pop(name, None)
    with torch.device("meta"):
        model = getattr(models, network)(**options, num_classes=19)
        if network != "MaskRcnnFsa":  # its boxes have no place without values
            logits, auxiliary = model.forward_with_auxiliary(torch.zeros(2, 3, 65, 129))
            assert logits.shape == (2, 19, 65, 129)
            assert network == "SegformerFsa" or auxiliary.shape == (2, 19, 65, 129)
    (attention,) = (m for m in model.modules() if isinstance(m, FrequencySelfAttention))
    assert (attention.similarity, attention.recurrence) == (
        options["similarity"],
        options["recurrence"],
    )
    assert attention.band == (0, options["k"], 0, options["k"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_value_is_said_twice(file):
    def leaves(content, above=()):
        for key, value in content.items():
            if isinstance(value, dict):
                yield from leaves(value, (*above, key))
            else:
                yield (*above, key), value

    own = yaml.safe_load(file.read_text())
    names = own.pop("base", [])
    below: dict = {}
    for name in [names] if isinstance(names, str) else names:
        more = read_recipe(file.parent / name)
        assert not {key for key, _ in leaves(below)} & {key for key, _ in leaves(more)}
        below = merged(below, more)
    known = dict(leaves(below))
    missing = object()
    assert [key for key, value in leaves(own) if known.get(key, missing) == value] == []


def test_a_recipe_of_every_row():
    names = {file.stem for file in FILES}
    assert {"cityscapes_best", "ade20k", "voc12aug"} <= names
    for similarity in ("dot", "linear_softmax"):
        for rounds in (1, 2):
            for k in (5, 8):
                content = read_recipe(CONFIGS / f"cityscapes_{similarity}_r{rounds}_k{k}.yaml")
                model = content["model"]
                assert (model["similarity"], model["recurrence"], model["k"]) == (
                    similarity,
                    rounds,
                    k,
                )
                assert content["steps"] == 80000
    for depth in (50, 101):
        content = read_recipe(CONFIGS / f"coco_mask_rcnn_r{depth}.yaml")
        assert content["model"]["backbone"] == f"resnet{depth}"
    for size in range(6):
        content = read_recipe(CONFIGS / f"segformer_b{size}.yaml")
        assert content["model"]["init_args"]["variant"] == f"b{size}"


def test_batches_and_rates_agree():
    for file in FILES:
        content = read_recipe(file)
        if "global_batch" in content:
            assert content["data"]["init_args"]["batch_size"] == content["global_batch"], file


def test_missing_data_is_told_before_weights_are_downloaded(monkeypatch, tmp_path, capsys):
    def asked(*args, **kwargs):
        raise OSError("the hub was asked")

    monkeypatch.setattr("fsanet.models.encoder.timm.create_model", asked)
    command = ["train", "--config", str(CONFIGS / "cityscapes_best.yaml")]
    root = ["--data.init_args.root", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    assert cli.main([*command, *root]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "download leftImg8bit_trainvaltest.zip" in line
    assert not (tmp_path / "run").exists()
