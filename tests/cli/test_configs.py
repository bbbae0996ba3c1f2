"""Every recipe, and every row of docs/recipes.md, on a miniature of its data set."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support.miniature import write_ade20k, write_camvid, write_cityscapes, write_coco, write_voc

from fsanet import FrequencySelfAttention, models
from fsanet.cli import main as cli
from fsanet.cli.recipe import Recipe, read_yaml, recipe_file
from fsanet.errors import InputError
from fsanet.models.meta import without_values

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "src/fsanet/recipes"
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
    "FsaNet": ["--model.encoder=test_resnet"],
    "SegformerFsa": ["--model.init_args.variant=b0"],
    "MaskRcnnFsa": ["--model.backbone=test_resnet", "--model.positions=[p4]"],
}
B5 = "--model.variant b5 --data.crop 640 640 --data.resize 2560 640 --test.resize 2560 640"
R101 = "--model.backbone resnet101 --model.backbone_weights ResNet101_Weights.IMAGENET1K_V1"
# The rows of docs/recipes.md that are no file of their own.
ROWS = [
    *(
        ("cityscapes", f"--model.similarity {similarity} --model.recurrence {rounds} --model.k {k}")
        for similarity in ("dot", "linear_softmax")
        for rounds in (1, 2)
        for k in (5, 8)
    ),
    *(("segformer_ade20k", f"--model.variant b{size}") for size in range(5)),
    ("segformer_ade20k", B5),
    *(("segformer_cityscapes", f"--model.variant b{size}") for size in range(6)),
    ("coco_mask_rcnn", R101),
]
# One recipe of each kind of network; the others are slow tests.
QUICK = ("camvid_best", "balloon_mask_rcnn", "segformer_ade20k")
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
    [
        pytest.param(
            file,
            file not in LARGE,
            id=file.stem,
            marks=() if file.stem in QUICK else pytest.mark.slow,
        )
        for file in FILES
    ]
    + [pytest.param(f, True, id=f"{f.stem}-whole", marks=pytest.mark.slow) for f in LARGE],
)
def test_two_steps_and_an_evaluation(file, whole, trees, tmp_path, capsys):
    content = read_yaml(file)
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
        assert cli.main(["train", "--config", file.stem, *options, "--out", str(out)]) == 0
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
    if data == "CocoData":
        assert found["images"] > 0
    else:
        assert sum(row["pixels"] for row in found["classes"].values()) > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [(file.stem, "") for file in LARGE[:2]]
    + [pytest.param(file.stem, "", marks=pytest.mark.slow) for file in LARGE[2:]]
    + ROWS[::40]
    + [pytest.param(*r, marks=pytest.mark.slow) for i, r in enumerate(ROWS) if i % 40],
    ids=lambda value: value.replace("--model.", "").replace(" ", "-")[:60],
)
def test_whole_network_of_a_row(name, options):
    recipe = Recipe(["--config", name, *options.split()])
    network = recipe.options.model.class_path.rpartition(".")[2]
    if network == "SegformerFsa":
        pytest.importorskip("transformers")
    given = recipe.options.model.init_args.as_dict()
    for option in ("pretrained", "backbone_weights"):
        given.pop(option, None)
    with without_values():
        model = getattr(models, network)(**given, num_classes=19)
        if network != "MaskRcnnFsa":  # its boxes have no place without values
            logits, auxiliary = model.forward_with_auxiliary(torch.zeros(2, 3, 65, 129))
            assert logits.shape == (2, 19, 65, 129)
            assert network == "SegformerFsa" or auxiliary.shape == (2, 19, 65, 129)
    (attention,) = (m for m in model.modules() if isinstance(m, FrequencySelfAttention))
    wanted = dict(re.findall(r"--model\.(\w+) (\S+)", options))
    assert attention.similarity == wanted.get("similarity", given["similarity"])
    assert attention.recurrence == int(wanted.get("recurrence", given["recurrence"]))
    assert attention.band == (0, int(wanted.get("k", given["k"]))) * 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_is_readable_alone(file):
    lines = file.read_text().splitlines()
    assert len(lines) <= 60
    assert any(line.startswith(f"#   fsanet train --config {file.stem}") for line in lines)


def test_the_table_of_recipes_names_every_file():
    text = (ROOT / "docs/recipes.md").read_text()
    for file in FILES:
        assert f"`--config {file.stem}" in text, file


def test_batches_and_rates_agree():
    for file in FILES:
        content = read_yaml(file)
        if "global_batch" in content:
            assert content["data"]["init_args"]["batch_size"] == content["global_batch"], file


def test_missing_data_are_reported_before_weights_are_downloaded(monkeypatch, tmp_path, capsys):
    def asked(*args, **kwargs):
        raise OSError("the hub was asked")

    monkeypatch.setattr("fsanet.models.encoder.timm.create_model", asked)
    command = ["train", "--config", "cityscapes_best"]
    root = ["--data.init_args.root", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    assert cli.main([*command, *root]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give the data set's folder as --data.root, or download leftImg8bit_trainvalte" in line
    assert not (tmp_path / "run").exists()


def test_recipes_are_found_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("camvid") == CONFIGS / "camvid.yaml"
    (tmp_path / "camvid").mkdir()  # a folder of data is no recipe
    assert recipe_file("camvid") == CONFIGS / "camvid.yaml"
    assert Recipe(["--config", "demo"]).name == "demo"
    (tmp_path / "demo").write_text("steps: 1")
    assert recipe_file("demo") == Path("demo")  # a file of the user's comes first
    with pytest.raises(InputError, match=r"nothing: no such file, .*; those are ade20k, balloon_"):
        recipe_file("nothing")
    with pytest.raises(InputError, match=r"found by its name: --config voc12aug"):
        recipe_file("configs/voc12aug.yaml")
    assert recipe_file("own/mine.yaml") == Path("own/mine.yaml")


@pytest.mark.parametrize("name", ["camvid", "balloon"])
def test_files_of_the_experiments_replace_data_and_weights(name):
    """What docs/results.md was measured with: the recipe and these options, nothing else."""
    base, *_ = (file.stem for file in FILES if file.stem.startswith(name))
    given = ["--config", base]
    plain = Recipe(given).options.as_dict()
    local = Recipe([*given, "--config", str(ROOT / f"experiments/{name}_files.yaml")])
    found = local.options.as_dict()
    assert found["data"]["init_args"].pop("root") == f"../shared/data/{name}"
    assert plain["data"]["init_args"].pop("root") == f"data/{name}"
    assert found["data"] == plain["data"]
    changed = {
        n for n, v in found["model"]["init_args"].items() if plain["model"]["init_args"][n] != v
    }
    kind = "encoder" if name == "camvid" else "backbone"
    assert changed == {f"{kind}_weights", f"{kind}_options", "mean", "std"}
    assert found["task"] == plain["task"]
