"""`--help`: quick, because nothing heavy is imported, and complete, compared with the parsers."""

import json
import subprocess
import sys

import pytest

from fsanet.cli import main as cli
from fsanet.cli.help import FROM_DATA, help_page, options_of
from fsanet.cli.parsing import CommandParser
from fsanet.cli.recipe import KINDS, subclasses, train_parser

COMMANDS = ("demo", "train", "eval", "predict", "convert", "sweep", "bench", "export", "explain")
COMMANDS += ("serve", "data")
STEPS = """
import contextlib, io, json, sys
from fsanet.cli.main import main
pages = {}
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as page:
        assert main(arguments) == 0, arguments
    pages[" ".join(arguments)] = page.getvalue()
heavy = "torch", "numpy", "lightning", "transformers", "torchmetrics", "timm", "jsonargparse"
print(json.dumps([pages, [name for name in heavy if name in sys.modules]]))
"""


def test_no_help_imports_anything_heavy():
    asked = [[command, "--help"] for command in COMMANDS]
    asked += [["train", "--model.help"], ["train", "--task.help"], ["eval", "--data.help"]]
    asked += [["train", "--data.help", "CamVidData"], ["train", "--model.help=SegformerFsa"]]
    command = [sys.executable, "-c", STEPS, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pages, heavy = json.loads(done.stdout)
    assert heavy == []
    for command in COMMANDS:
        assert pages[f"{command} --help"].startswith(f"usage: fsanet {command} ")
    assert "--data.root ROOT" in pages["train --data.help CamVidData"]
    assert "FolderData" in pages["eval --data.help"]
    assert "--task.lr X" in pages["train --task.help"]


def where(one):
    return f"{one.__module__}:{one.__name__}"


def data_classes(kind):
    return [one for one in subclasses([kind.data]) if one.__module__.startswith("fsanet.")]


def names(sections):
    return {option.name for one in sections for option in options_of(one.where, one.skip)}


@pytest.mark.parametrize(
    "command",
    ["predict", "export", "explain", "serve", "demo", "data", "bench", "sweep", "eval"],
)
def test_help_shows_the_options_that_the_parser_takes(command, monkeypatch):
    """jsonargparse finds them by importing and inspecting, the help by reading the source."""
    parsers = []

    def parse(self, *_):
        parsers.append(self)
        raise SystemExit

    monkeypatch.setattr(CommandParser, "parse", parse)
    module = __import__(f"fsanet.cli.{command}", fromlist=["run"])
    with pytest.raises(SystemExit):
        module.run([])
    (parser,) = parsers
    taken = {action.dest for action in parser._actions} - {"help", "data", "data.help"}
    assert names(module.HELP) == taken


def test_help_of_classes_shows_the_options_that_recipes_take():
    for kind in KINDS:
        parser = train_parser(kind)
        taken = {name.strip("-+") for name in parser.option_names()}
        task = {option.name for option in options_of(where(kind.task), FROM_DATA)}
        assert {f"task.{name}" for name in task} == {n for n in taken if n.startswith("task.")}
        for section, classes in (("model", kind.networks), ("data", data_classes(kind))):
            skip = FROM_DATA if section == "model" else set()
            for one in classes:
                parser = CommandParser()
                facts = set(kind.network_facts) if section == "model" else set()
                found = parser.add_class_arguments(one, section, skip=facts)
                shown = {option.name for option in options_of(where(one), skip)}
                assert {f"{section}.{name}" for name in shown} == set(found), one


def test_page_is_written_from_signature_and_docstring(monkeypatch):
    from fsanet.cli.predict import HELP

    monkeypatch.setenv("COLUMNS", "80")
    page = help_page("predict", HELP)
    assert page.startswith("usage: fsanet predict IMAGES ... --model MODEL [options]\n\nSegment ")
    assert "\n  --batch-size N          windows" in page
    assert "\n  --dtype {auto,bfloat16,float16}\n" in page
    assert "\n  --[no-]overlay          write overlays\n" in page
    assert max(map(len, page.splitlines())) <= 80


def test_unknown_class(capsys):
    assert cli.main(["train", "--data.help", "Camvid"]) == 2
    assert "no class 'Camvid' in fsanet: FsaNet, " in capsys.readouterr().err
