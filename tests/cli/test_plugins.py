"""Classes of the user's own are named on the command line; no file makes the program import one."""

import gc
import re
import sys
from pathlib import Path

import pytest
import yaml

from fsanet.cli import main as cli
from fsanet.cli.recipe import Recipe
from fsanet.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, and the modules that are imported from it forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    gc.collect()  # classes are found as long as they live


@pytest.fixture
def canary(folder):
    """A module that leaves a file when it is imported."""
    (folder / "canary.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(folder / 'sung')!r}).touch()\n"
        "from fsanet.data import FolderData\n"
        "class Data(FolderData): pass\n"
    )
    sys.path.append(str(folder))
    return folder / "sung"


def line(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown
    return shown


MODEL = {"encoder": "test_resnet", "head_channels": 8, "aux_channels": 0, "k": 2}
SCENES = {"class_path": "SceneData", "init_args": {"size": [32, 64], "workers": 0}}


@pytest.mark.parametrize(
    "content",
    [
        {"data": {"class_path": "canary.Data", "init_args": {"root": "."}}},
        {"data": "canary.Data"},
        {"data": {"class_path": "canary.Data", "dict_kwargs": {"root": "."}}},
        {"model": "canary.Data"},
        {"model": {"class_path": "canary.FsaNet"}},
        {"callbacks": [{"class_path": "canary.Data"}]},
        {"callbacks": "canary.Data"},
        {"model": {**MODEL, "encoder_options": {"class_path": "canary.Data"}}},
        {"model": {**MODEL, "encoder_options": "{class_path: canary.Data}"}},
        {"data": {**SCENES, "dict_kwargs": {"x": {"class_path": "canary.Data"}}}},
        {"task": {"optimizer": {"class_path": "canary.Data"}}},
        {"task": "canary.Data"},
        {"plugin": ["canary"], "data": "Data"},
        {"steps": {"class_path": "canary.Data"}},
    ],
)
def test_no_recipe_imports_a_module(content, canary, folder, capsys):
    (folder / "bad.yaml").write_text(yaml.safe_dump({"data": SCENES, "steps": 1} | content))
    shown = line(capsys, "train", "--config", "bad.yaml")
    assert "bad.yaml: " in shown
    assert not canary.exists()
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text((folder / "bad.yaml").read_text())
    line(capsys, "eval", "run")
    assert not canary.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "canary.Data"],
        ["--data.class_path", "canary.Data"],
        ["--data", "{class_path: canary.Data}"],
        ["--data", "{class_path: SceneData, init_args: {size: {class_path: canary.Data}}}"],
        ["--model", "canary.Data"],
        ["--model.encoder_options", "{class_path: canary.Data}"],
        ["--model.encoder_options.class_path", "canary.Data"],
        ["--model.init_args.encoder_options.class_path=canary.Data"],
        ["--task.optimizer.class_path=canary.Data"],
        ["--task", "canary.Data"],
        ["--test", "{split: {class_path: canary.Data}}"],
        ["--callbacks", "canary.Data"],
        ["--model", "os.system"],
    ],
)
def test_no_option_imports_a_module(arguments, canary, capsys):
    line(capsys, "train", "--data", "SceneData", "--steps", "1", *arguments)
    assert not canary.exists()


def test_run_made_with_a_plugin_asks_for_it_again(canary, folder, capsys):
    options = ["--data", "Data", "--data.root", ".", "--data.num_classes=3", "--steps=1"]
    recipe = Recipe(["--plugin", "canary.py", *options])
    assert canary.exists()
    assert type(recipe.data()).__name__ == "Data"
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(recipe.text(folder / "run"))
    assert yaml.safe_load(recipe.text(folder))["plugin"] == ["canary.py"]
    assert Recipe(["--config", "run/config.yaml", "--plugin", "canary"]).options.data.class_path


def test_unknown_class_of_a_run_names_the_plugin(folder, capsys):
    (folder / "run").mkdir()
    content = {"data": {"class_path": "away.AwayData"}, "plugin": ["away.py"], "steps": 1}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(content))
    for command in (["eval", "run"], ["train", "--resume", "--out", "run"]):
        shown = line(capsys, *command)
        assert "run/config.yaml: data: no class 'away.AwayData'" in shown
        assert "it was written with --plugin away.py: give it again" in shown


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("none.py", None, "--plugin none.py: no such file"),
        ("none", None, "--plugin none: cannot be imported (ModuleNotFoundError: No module"),
        ("broken.py", "1 +", "cannot be imported (SyntaxError"),
        ("raises.py", "raise ValueError('two\\nlines')", "(ValueError: two lines)"),
        ("leaves.py", "import sys; sys.exit(3)", "(SystemExit: 3)"),
        ("json.py", "", "another module has the name json; rename the file"),
    ],
)
def test_plugin_that_cannot_be_imported(name, source, message, folder, capsys):
    if source is not None:
        (folder / name).write_text(source)
    shown = line(capsys, "train", "--plugin", name, "--data", "SceneData", "--steps", "1")
    assert message in shown


def test_example_of_the_docs(folder, capsys):
    (example,) = re.findall(r"```python\n(# mydata\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert example.count("\n") <= 30
    (folder / "mydata.py").write_text(example)
    arguments = ["--plugin", "mydata.py", "--accelerator", "cpu"]
    options = ["--data", "StripeData", "--data.count", "4", "--data.crop", "64", "64"]
    options += ["--data.steps_per_epoch=1", "--data.batch_size=2", "--data.workers=0"]
    options += [f"--model.{name}={value}" for name, value in MODEL.items()]
    command = ["train", *arguments, *options, "--steps", "1", "--out", "run"]
    assert cli.main([*command, "--model.output_stride=16"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["plugin"] == ["mydata.py"]
    assert cli.main(["eval", "run", *arguments]) == 0
    assert "dark" in capsys.readouterr().out


def test_class_with_another_package_is_not_taken_for_one_of_fsanet():
    with pytest.raises(InputError, match=r"no class 'other\.SceneData'"):
        Recipe(["--data", "other.SceneData", "--steps", "1"])
