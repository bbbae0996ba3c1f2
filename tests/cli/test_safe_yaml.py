"""Recipes are data: what is more than data is refused, quickly and in one line."""

import os
import time

import pytest

from fsanet.cli.safe_yaml import UnsafeYaml, load_yaml, read_yaml
from fsanet.errors import InputError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (LAUGHS, "anchors and aliases"),
        ("a: &a [*a]", "anchors and aliases"),
        ("a: &a 3", "line 1: anchors and aliases"),
        ("a: 1\nb: !!python/object/apply:os.system [true]", "line 2: tags such as .*os.system"),
        ("a: !!binary aGk=", "tags such as"),
        ("a: !own 3", "tags such as !own"),
        ("[" * 100_000, "nest"),
        ("a: " + "{a: " * 5000, "nested more than 20 deep"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "nested more than 20 deep"),
        ("steps: 3\0", "control characters|special characters"),
        ("steps: 3\nsteps: 4", "line 2: 'steps' is given twice"),
        ("model: {k: 3, 'k': 4}", "'k' is given twice"),
        ("3: 4", "key 3 is not text"),
        ("null: 4", "key None is not text"),
        ("a: {true: 4}", "key True is not text"),
        ("? [a]\n: 4", "a key is a list or a mapping"),
        ("? {a: 1}\n: 4", "a key is a list or a mapping"),
        ("a: 1\n---\nb: 2", "another document"),
        ("steps: " + "9" * 5000, "4300 digits"),
        ("a: [3", "line 2|expected"),
        ("model:\n  k: 4:8", r"line 2: 4:8 is a number in base 60.*\[\[4, 8\], \[4, 8\]\]"),
        ("steps: 1:30:00", "base 60"),
        ("resize: [190:20:30.15]", "base 60"),
        ("data: {init_args: {class_path: x}}", "class_path: only model and data name a class"),
        ("callbacks: [{class_path: x}]", "class_path"),
        ("class_path: x", "class_path"),
        ("model: {k: [class_path: x]}", "class_path"),
    ],
)
def test_more_than_data(text, line, tmp_path):
    began = time.process_time()
    with pytest.raises(UnsafeYaml, match=line):
        load_yaml(text, classes=[["model"], ["data"]])
    assert time.process_time() - began < 2
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml: not readable as YAML \(") as caught:
        read_yaml(tmp_path / "bad.yaml")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "holds no options"),
        (b"- a", "holds no options"),
        (b"# \xe9", "is not UTF-8"),
        ("steps: 3".encode("utf-16"), "is not UTF-8"),
        (b"steps: 3 #" + b" " * 1_000_000, "at most 1 MB"),
    ],
)
def test_files_that_are_no_recipe(content, line, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(InputError, match=line):
        read_yaml(tmp_path / "bad.yaml")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for file, line in (
        (tmp_path / "pipe.yaml", "is a pipe"),
        ("/dev/zero", "is a device"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.yaml", "no such YAML file"),
        ("a" * 5000, "cannot be opened"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(InputError, match=line):
            read_yaml(file)


def test_what_data_need(tmp_path):
    text = (
        "\ufeffmodel: {class_path: FsaNet, init_args: {k: [[0, 8], [2, null]], mean: [1e-3, .5]}}\n"
        "data:\n  class_path: FolderData  # a comment\n  init_args:\n"
        "    classes: ['a b', \"c\\n\"]\n"
        "    same: {k: 1, mean: 2}\nsteps: 1_000\nresume: false\n'3': x\n"
    )
    (tmp_path / "good.yaml").write_text(text, encoding="utf-8")
    model = {"k": [[0, 8], [2, None]], "mean": [0.001, 0.5]}
    assert read_yaml(tmp_path / "good.yaml") == {
        "model": {"class_path": "FsaNet", "init_args": model},
        "data": {
            "class_path": "FolderData",
            "init_args": {"classes": ["a b", "c\n"], "same": {"k": 1, "mean": 2}},
        },
        "steps": 1000,
        "resume": False,
        "3": "x",
    }
