"""Recipes: files and options, the network's class as an option, and mistakes in them."""

import pytest
import yaml

from fsanet.cli.recipe import Recipe, run_config
from fsanet.errors import InputError
from fsanet.models import FsaNet, SegformerFsa

DATA = {"class_path": "FolderData", "init_args": {"root": "nowhere", "num_classes": 3}}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / f"{name}.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return f"--config={path}"

    return write


@pytest.fixture
def named(write):
    """A recipe that names SegFormer."""
    model = {"class_path": "SegformerFsa", "init_args": {"k": 4, "recurrence": 2}}
    return write("named", {"model": model, "data": DATA, "steps": 3})


@pytest.fixture
def flat(write):
    """A recipe that lists the options of FsaNet directly."""
    model = {"encoder": "test_resnet", "k": 4, "head_channels": 8, "aux_channels": 0}
    return write("flat", {"model": model, "data": DATA, "steps": 3})


class Data:
    num_classes, classes, ignore_index = 3, ("a", "b", "c"), 255
    palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))


def test_flat_options_are_those_of_fsanet(flat):
    recipe = Recipe([flat, "--model.k=3"])
    model = recipe.task(Data).model
    assert type(model) is FsaNet
    assert model.head.attention.band == (0, 3, 0, 3)
    assert recipe.name == "flat"


def test_decoder_on_the_command_line(flat):
    model = (
        Recipe([flat, "--model.decoder=multiscale", "--model.decoder-channels=16"]).task(Data).model
    )
    assert model.head.classify.weight.shape == (3, 16, 1, 1)
    assert Recipe([flat, "--model.decoder=null"]).options.model.init_args.decoder is None
    with pytest.raises(InputError, match="decoder"):
        Recipe([flat, "--model.decoder=unet"])


def test_options_that_take_numbers_or_a_word(flat):
    task = ["--task.class_weights", "balanced", "--task.freeze", "encoder", "--task.ema", "0.99"]
    options = Recipe([flat, *task, "--cache-features", "0.75", "1", "--data.crop", "null"]).options
    assert options.task.class_weights == "balanced"
    assert (options.task.freeze, options.task.ema) == ("encoder", 0.99)
    assert options.cache_features == [0.75, 1.0]
    assert options.data.init_args.crop is None
    options = Recipe([flat, "--task.class-weights", "1", "2", "--cache-features", "1"]).options
    assert (options.task.class_weights, options.cache_features) == ([1.0, 2.0], [1.0])
    assert Recipe([flat, "--task.freeze=3"]).options.task.freeze == 3


def test_named_network(named):
    pytest.importorskip("transformers")
    model = Recipe([named, "--model.k=3", "--model.init_args.dropout=0.25"]).task(Data).model
    assert type(model) is SegformerFsa
    assert model.attention.band == (0, 3, 0, 3)
    assert model.attention.recurrence == 2  # from the file
    assert model.decode_head.dropout.p == 0.25
    assert model.classes == Data.classes


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "SegformerFsa"],
        ["--model=SegformerFsa"],
        ["--model.class_path", "fsanet.models.SegformerFsa"],
        ["--model", "fsanet.elsewhere.SegformerFsa"],
    ],
)
def test_network_named_on_the_command_line(flat, arguments):
    found = Recipe([flat, *arguments, "--model.init_args.variant=b1"]).options.model
    assert found.class_path.endswith("SegformerFsa")
    assert found.init_args.variant == "b1"
    assert found.init_args.k == 4  # both networks have a k


def test_folder_data_is_the_default(write, tmp_path):
    given = "--data.root photos --data.images *.jpg --data.masks {stem}.png --data.num-classes 3"
    recipe = Recipe([*given.split(), "--steps=4", "--logger", "none"])
    assert recipe.options.data.class_path == "fsanet.data.modules.FolderData"
    assert recipe.options.data.init_args["images"] == "*.jpg"
    assert recipe.train_options()["logger"] == "none"
    recipe = Recipe([write("mine", {"data": {"root": "photos", "num_classes": 3}, "steps": 4})])
    assert recipe.options.data.init_args.root == "photos"
    recipe = Recipe(["--data.root=photos", "--model=MaskRcnnFsa", "--steps=4"])
    assert recipe.options.data.class_path == "fsanet.data.modules.InstanceFolderData"
    assert recipe.kind.task.__name__ == "InstanceSegmentation"
    with pytest.raises(InputError, match="data"):
        Recipe(["--steps=4"])
    with pytest.raises(InputError, match="logger"):
        Recipe([*given.split(), "--steps=4", "--logger", "{class_path: os.system}"])


def test_no_recipe_at_all():
    given = "--data SceneData --data.batch_size 3 --model.encoder test_resnet --steps 4 --seed 7"
    recipe = Recipe(given.split())
    assert recipe.options.model.init_args.encoder == "test_resnet"
    assert recipe.options.data.init_args.batch_size == 3
    assert recipe.options.data.init_args.seed == 7
    assert (recipe.options.steps, recipe.name) == (4, "run")


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("road car", ["road", "car"]),
        ("road", ["road"]),
        ("[road, car]", ["road", "car"]),
        ("null --data.num-classes 2", None),
    ],
)
def test_names_of_classes_are_given_as_words(text, classes):
    words = [text] if text[0] == "[" else text.split()
    recipe = Recipe(["--data.classes", *words, "--data.root", "photos", "--steps", "1"])
    assert recipe.options.data.init_args.classes == classes


@pytest.mark.parametrize("path", ["fsanet.data.module.FolderData", "fsanet.data.FolderData"])
def test_classes_are_found_by_name_wherever_they_were(write, path):
    recipe = Recipe([write("old", {"data": DATA | {"class_path": path}, "steps": 3})])
    assert recipe.options.data.class_path.endswith("FolderData")
    assert recipe.options.data.init_args.num_classes == 3


def test_later_files_and_the_command_line_win(flat, write):
    later = write("later", {"model": {"k": 5}, "data": {"init_args": {"batch_size": 2}}})
    recipe = Recipe(["--model.recurrence=3", flat, later, "--data.num_classes", "4"])
    model, data = recipe.options.model.init_args, recipe.options.data.init_args
    assert (model.encoder, model.k, model.recurrence) == ("test_resnet", 5, 3)
    assert (data.root, data.batch_size, data.num_classes) == ("nowhere", 2, 4)
    assert recipe.name == "later"


@pytest.mark.parametrize("which", ["flat", "named"])
def test_the_text_of_a_run_is_its_recipe(which, write, request, tmp_path):
    recipe = Recipe([request.getfixturevalue(which), "--model.k=[[1,3],[0,null]]"])
    (tmp_path / "config.yaml").write_text(recipe.text(tmp_path))
    again = Recipe(["--config", str(tmp_path / "config.yaml")])
    assert again.options.model == recipe.options.model
    assert again.options.data == recipe.options.data
    assert again.train_options() == recipe.train_options()
    model = run_config(tmp_path)["model"]
    assert ("class_path" in model) == (which == "named")  # the default network goes without
    assert model.get("init_args", model)["k"] == [[1, 3], [0, None]]
    assert run_config(tmp_path / "model") == run_config(tmp_path)
    assert run_config(tmp_path / "other") == {}


def test_a_run_knows_its_own_options(flat, tmp_path):
    (tmp_path / "config.yaml").write_text(Recipe([flat, "--seed=5"]).text(tmp_path))
    assert Recipe(["--resume", "--out", str(tmp_path)]).options.seed == 5
    assert Recipe(["--resume", "true", "--out", str(tmp_path)]).options.resume is True


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ([], "SemanticSegmentation"),
        (["--data", "InstanceSceneData"], "InstanceSegmentation"),
        (["--data.class_path=fsanet.data.instances.CocoData"], "InstanceSegmentation"),
        (["--config", "coco.yaml"], "InstanceSegmentation"),
        (["--config", "coco.yaml", "--config", "other.yaml"], "InstanceSegmentation"),
        (["--config", "coco.yaml", "--config", "camvid.yaml"], "SemanticSegmentation"),
        (["--config", "coco.yaml", "--data", "SceneData"], "SemanticSegmentation"),
    ],
)
def test_the_data_decide_the_task(arguments, kind, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write("coco", "data: {class_path: CocoData}\n")
    write("other", "task: {optimizer: adamw}\n")
    write("camvid", "data: {class_path: CamVidData}\n")
    needed = ["--data", "SceneData"] if not arguments else ["--data.root=x"]
    if "SceneData" in str(arguments):
        needed = []
    assert Recipe([*arguments, *needed, "--steps=2"]).kind.task.__name__ == kind


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--model.init_args.kk=3", "Option 'kk' is not accepted"),
        ("--model.encoder=resnet18", "SegformerFsa': Option 'encoder' is not accepted"),
        ("--model.variant=b9", "b9"),
        ("--model=Segformer", "Segformer"),
        ("--model.recurrence=null", "recurrence"),
        ("--model.recurrence", "--model.recurrence: give a value"),
        ("--task.lr=null", "lr"),
        ("--data.init_args.bath_size=3", "Option 'bath_size' is not accepted"),
        ("--data.batch_size=many", "batch_size.*many"),
        ("--task.lrr=3", "did you mean --task.lr?"),
        ("--stepss=3", "did you mean --steps?"),
        ("--steps=x", "steps.*x"),
        ("--test.scales=[0]", "test: scales"),
        ("--test.window=0", "test: window is 0"),
        ("--test.resize=[0,5]", "test: resize"),
        ("--test.boundary_ratio=2", "test: boundary_ratio=2"),
        ("--test.trimap=[3,3]", "test: trimap=.*: give each width once"),
        ("--data.seed=7", "data.seed=7: a training has one seed"),
        ("--data={init_args: {seed: 7}}", "data.seed=7: a training has one seed"),
        ("--config=none.yaml", "none.yaml: no such YAML file"),
    ],
)
def test_mistakes_are_one_line(named, argument, line):
    with pytest.raises(InputError, match=line.replace("?", r"\?")) as caught:
        Recipe([named, argument])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_empty_root_is_not_the_current_folder():
    recipe = Recipe(["--data=FolderData", "--data.root=", "--data.num_classes=3", "--steps=1"])
    with pytest.raises(InputError, match=r"data\.root is empty"):
        recipe.data()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "not readable as YAML"),
        ("- a", "holds no options"),
        ("", "holds no options"),
        ("base: other.yaml", "base"),
        ("steps: many", r"bad\.yaml: .*steps"),
        ("model: {kk: 3}", r"bad\.yaml: .*kk"),
        ("nothing: 3", r"bad\.yaml: .*nothing"),
    ],
)
def test_mistakes_in_a_file_name_the_file(write, text, line):
    with pytest.raises(InputError, match=line) as caught:
        Recipe([write("bad", text), "--data=SceneData"])
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seed_of_the_data_is_that_of_the_training(write):
    file = write("seeded", {"data": DATA | {"init_args": DATA["init_args"] | {"seed": 7}}})
    with pytest.raises(InputError, match=r"data.seed=7: .* it is 0; give --seed alone"):
        Recipe([file, "--steps=3"])
    recipe = Recipe([file, "--steps=3", "--seed=7", "--data.seed=7"])
    assert recipe.options.data.init_args.seed == 7


@pytest.mark.parametrize(
    ("option", "message"), [("lr=-1", "lr=-1"), ("class_weights=[1]", "1 numbers for 3 classes")]
)
def test_task_is_checked_before_a_network_is_built(flat, monkeypatch, option, message):
    recipe = Recipe([flat, f"--task.{option}"])
    monkeypatch.setattr(FsaNet, "__init__", lambda *_, **__: pytest.fail("a network is built"))
    with pytest.raises(InputError, match=message):
        recipe.task(Data)


def test_sizes_beyond_all_measure_are_refused_before_a_network_is_built(flat, monkeypatch):
    recipe = Recipe([flat, "--model.aux_channels=2147483648"])
    monkeypatch.setattr(FsaNet, "__init__", lambda *_, **__: pytest.fail("a network is built"))
    with pytest.raises(InputError, match="aux_channels is 2147483648; at most 65536"):
        recipe.task(Data)
