"""The network's class as an option: a file or the command line may name it, or leave it out."""

import pytest
import yaml

from fsanet.cli import options
from fsanet.errors import InputError
from fsanet.models import FsaNet, SegformerFsa

DATA = {"class_path": "FolderData", "init_args": {"root": "nowhere", "num_classes": 3}}


@pytest.fixture
def named(tmp_path):
    """A file that names SegFormer."""
    model = {"class_path": "SegformerFsa", "init_args": {"k": 4, "recurrence": 2}}
    path = tmp_path / "named.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": DATA, "steps": 3}))
    return str(path)


@pytest.fixture
def flat(tmp_path):
    """A file with the options of FsaNet, directly."""
    model = {"encoder": "resnet10t", "k": 4, "head_channels": 8, "aux_channels": 0}
    path = tmp_path / "flat.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": DATA, "steps": 3}))
    return str(path)


class Data:
    num_classes, classes, ignore_index = 3, ("a", "b", "c"), 255
    palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))


def parsed(*arguments):
    parser = options.train_parser(named_model=options.names_model(arguments))
    return parser, options.parse(parser, arguments)


def test_flat_options_are_those_of_fsanet(flat):
    _, found = parsed("--config", flat, "--model.k=3")
    assert (found.model.encoder, found.model.k) == ("resnet10t", 3)
    model = options.make_task(found, Data).model
    assert type(model) is FsaNet
    assert model.head.attention.band == (0, 3, 0, 3)


def test_named_network(named):
    pytest.importorskip("transformers")
    _, found = parsed("--config", named, "--model.k=3", "--model.init_args.dropout=0.25")
    model = options.make_task(found, Data).model
    assert type(model) is SegformerFsa
    assert model.attention.band == (0, 3, 0, 3)
    assert model.attention.recurrence == 2  # of the file
    assert model.decode_head.dropout.p == 0.25
    assert model.classes == Data.classes


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "SegformerFsa"],
        ["--model=SegformerFsa"],
        ["--model.class_path", "fsanet.models.SegformerFsa"],
    ],
)
def test_network_named_on_the_command_line(flat, arguments):
    _, found = parsed(f"--config={flat}", *arguments, "--model.init_args.variant=b1")
    assert found.model.class_path.endswith("SegformerFsa")
    assert found.model.init_args.variant == "b1"
    assert found.model.init_args.k == 4


def test_named_fsanet(flat):
    _, found = parsed("--model=FsaNet", "--config", flat)
    assert type(options.make_task(found, Data).model) is FsaNet


def test_recorded_options_make_the_network_again(named, tmp_path):
    parser, found = parsed("--config", named, "--model.k=[[1,3],[0,null]]")
    again = tmp_path / "again.yaml"
    again.write_text(options.record(parser, found, tmp_path))
    _, second = parsed("--config", str(again))
    assert second.model == found.model
    assert yaml.safe_load(again.read_text())["model"]["init_args"]["k"] == [[1, 3], [0, None]]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--model.init_args.kk=3", "'model.init_args.kk'; did you mean 'model.init_args.k'"),
        ("--model.kk=3", "did you mean 'model.init_args.k'"),
        ("--model.encoder=resnet18", "not one of the class that model.class_path names"),
        ("--model.variant=b9", "'b0', 'b1', 'b2', 'b3', 'b4', 'b5'.*b9"),
        ("--model=Segformer", "model: no class Segformer; give one of FsaNet, SegformerFsa"),
        ("--data.init_args.bath_size=3", "did you mean 'data.init_args.batch_size'"),
    ],
)
def test_mistakes_in_the_options_of_a_named_network(named, argument, line):
    with pytest.raises(InputError, match=line) as caught:
        parsed("--config", named, argument)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "run", "kind"),
    [
        ([], None, options.SEMANTIC),
        (["--data", "CocoData"], None, options.INSTANCES),
        (["--data.class_path=fsanet.data.CocoData"], None, options.INSTANCES),
        (["--data", "SceneData"], "fsanet.data.CocoData", options.SEMANTIC),
        ([], "fsanet.data.InstanceSceneData", options.INSTANCES),
        (["--config", "recipe.yaml"], None, options.INSTANCES),
        (["--config", "recipe.yaml", "--config", "other.yaml"], None, options.INSTANCES),
        (["--config", "recipe.yaml", "--config", "camvid.yaml"], None, options.SEMANTIC),
    ],
)
def test_kind_of_segmentation(given, run, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco.yaml").write_text("data: {class_path: CocoData}\n")
    (tmp_path / "recipe.yaml").write_text("base: coco.yaml\nsteps: 2\n")
    (tmp_path / "other.yaml").write_text("data: {init_args: {batch_size: 2}}\n")
    (tmp_path / "camvid.yaml").write_text("data: {class_path: CamVidData}\n")
    data = None if run is None else {"class_path": run}
    assert options.kind_of(given, data) is kind
