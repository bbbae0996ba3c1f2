"""Files of options that build on others."""

import pytest
import yaml

from fsanet.cli import options
from fsanet.cli.recipes import merged, read_recipe, resolved
from fsanet.errors import InputError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_later_bases_and_the_file_itself_win(tmp_path):
    write(tmp_path / "base/one.yaml", "a: 1\nb: 1\nc: {x: 1, y: [1, 2]}\n")
    write(tmp_path / "base/two.yaml", "base: one.yaml\nb: 2\nc: {x: 2}\n")
    write(tmp_path / "base/three.yaml", "d: 3\nc: {y: [3]}\n")
    file = write(tmp_path / "recipe.yaml", "base: [base/two.yaml, base/three.yaml]\nd: 4\n")
    assert read_recipe(file) == {"a": 1, "b": 2, "c": {"x": 2, "y": [3]}, "d": 4}


def test_another_class_takes_none_of_the_options():
    base = {"data": {"class_path": "A", "init_args": {"x": 1}}, "steps": 1}
    other = {"data": {"class_path": "B", "init_args": {"y": 2}}}
    assert merged(base, other)["data"] == {"class_path": "B", "init_args": {"y": 2}}
    same = {"data": {"class_path": "A", "init_args": {"y": 2}}}
    assert merged(base, same)["data"] == {"class_path": "A", "init_args": {"x": 1, "y": 2}}
    assert base["data"]["init_args"] == {"x": 1}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("base: none.yaml", r"none.yaml: no such file \(a base of .*recipe.yaml\)"),
        ("base: 3", "'base' is 3; give a file"),
        ("base: recipe.yaml", "builds on itself"),
        ("base: bad.yaml", "bad.yaml: not readable as YAML"),
        ("base: list.yaml", "list.yaml: holds no options"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, match):
    write(tmp_path / "bad.yaml", "a: [1")
    write(tmp_path / "list.yaml", "- 1")
    file = write(tmp_path / "recipe.yaml", content)
    with pytest.raises(InputError, match=match):
        read_recipe(file)


@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_options_of_a_recipe_and_the_command_line(tmp_path, form):
    data = {"class_path": "FolderData", "init_args": {"root": "nowhere", "num_classes": 3}}
    write(tmp_path / "base.yaml", yaml.safe_dump({"data": data, "steps": 7, "task": {"lr": 0.5}}))
    file = write(tmp_path / "mine.yaml", "base: base.yaml\nsteps: 8\ntask: {momentum: 5e-1}\n")
    given = [*form.format(file).split(" "), "--task.lr=0.25"]
    found = options.parse(options.train_parser(), given)
    assert (found.steps, found.task.lr, found.task.momentum) == (8, 0.25, 0.5)
    assert found.data.init_args.num_classes == 3
    assert options.run_folder(found, given).name == "mine"


def test_plain_files_stay_as_they_are(tmp_path):
    file = write(tmp_path / "plain.yaml", "steps: 3\n")
    given = ["--config", str(file), "--config=missing.yaml", "--steps", "4", "base"]
    assert resolved(given) == given


def test_second_file_can_change_the_data_set(tmp_path):
    write(tmp_path / "folder.yaml", "data: {class_path: FolderData, init_args: {root: a}}\n")
    first = write(tmp_path / "first.yaml", "base: folder.yaml\nsteps: 3\n")
    write(tmp_path / "camvid.yaml", "data: {class_path: CamVidData}\n")
    second = write(
        tmp_path / "second.yaml", "base: camvid.yaml\ndata: {init_args: {root: b, batch_size: 3}}\n"
    )
    found = options.parse(options.train_parser(), ["--config", str(first), "--config", str(second)])
    assert found.data.class_path.endswith("CamVidData")
    assert (found.data.init_args.root, found.data.init_args.batch_size) == ("b", 3)
    assert found.steps == 3
