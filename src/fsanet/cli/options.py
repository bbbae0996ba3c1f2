"""Options of the command line and of YAML files, as typed arguments; mistakes told in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch import nn

from fsanet.cli.option_errors import explain, known_keys, own_line, subclasses
from fsanet.cli.recipes import config_files, given_values, read_recipe, resolved
from fsanet.data import data_modules
from fsanet.data.batches import InstanceData, SegmentationData
from fsanet.errors import InputError
from fsanet.models import FsaNet, MaskRcnnFsa, SegformerFsa
from fsanet.train import InstanceSegmentation, SemanticSegmentation, evaluate, train

data_modules()  # so that short names such as CityscapesData are known

# Arguments that have no place in a file.
_OF_TRAIN = {"task", "data", "out", "config", "callbacks"}
# Ways of testing that only semantic segmentation has.
_SEMANTIC = {
    *("resize", "window", "stride", "window_batch", "scales", "flip"),
    *("boundary", "boundary_ratio", "trimap"),
}
# What a test of the finished network is told besides how it is tested.
_OF_TEST = {
    *("model", "data", "accelerator", "devices", "num_nodes", "strategy", "deterministic"),
    "progress",
}


@dataclass(frozen=True)
class Kind:
    """What semantic and instance segmentation each have of their own.

    Attributes:
        models: networks that a file may name; without a name it is the first.
        data: base of the data modules.
        task: the Lightning module.
        not_tested: arguments of `evaluate` that are no options of this kind.
        split: tested by default.
        of_model, of_task: arguments that the data set gives to the network and to the task.
        scores: what `evaluate` gives.
    """

    models: tuple[type[nn.Module], ...]
    data: type
    task: type
    not_tested: frozenset[str]
    split: str
    of_model: tuple[str, ...]
    of_task: tuple[str, ...]
    scores: str

    def data_classes(self) -> list[type]:
        """The data modules that a file may name."""
        return [kind for kind in subclasses(self.data) if kind is not self.data]


SEMANTIC = Kind(
    models=(FsaNet, SegformerFsa),
    data=SegmentationData,
    task=SemanticSegmentation,
    not_tested=frozenset(),
    split="test",
    of_model=("num_classes", "classes", "palette"),
    of_task=("classes", "ignore_index"),
    scores="the mIoU of a trained network on a split, class by class",
)
INSTANCES = Kind(
    models=(MaskRcnnFsa,),
    data=InstanceData,
    task=InstanceSegmentation,
    not_tested=frozenset(_SEMANTIC),
    split="val",
    of_model=("num_classes", "classes", "category_ids"),
    of_task=("classes",),
    scores="box and mask AP of a trained network on a split",
)


def kind_of(arguments: Sequence[str], data: dict[str, Any] | None = None) -> Kind:
    """Which kind of segmentation a command line, or the files it gives, is about.

    Args:
        arguments: of the command.
        data: the data options of a run, for arguments that name no data.
    """
    named = [*given_values(arguments, "--data"), *given_values(arguments, "--data.class_path")]
    found = [content.get("class_path") for content in _parts(arguments, "data")]
    names = ["", (data or {}).get("class_path"), *found, *named]  # the last that says so counts
    known = {kind.__name__ for kind in INSTANCES.data_classes()}
    name = [str(name) for name in names if name is not None][-1]
    return INSTANCES if name.rsplit(".", 1)[-1] in known else SEMANTIC


def names_model(arguments: Sequence[str]) -> bool:
    """Whether options or the files among them say which class the network is of.

    They do with `--model CLASS`, `--model.class_path CLASS`, or `model: {class_path: ...}`.
    """
    if given_values(arguments, "--model") or given_values(arguments, "--model.class_path"):
        return True
    return any("class_path" in content for content in _parts(arguments, "model"))


def train_parser(*, named_model: bool = False, kind: Kind = SEMANTIC) -> ArgumentParser:
    """Options of `fsanet train`.

    Args:
        named_model: the network is given as class_path and init_args; else its options are those
            of the first network of the kind, directly.
        kind: what is trained.
    """
    parser = _parser("train", "Train a network. Every option can stand in the YAML file, too.")
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_argument(
        "--out", type=str, default=None, help="run folder (default: runs/<name of the config>)"
    )
    if named_model:
        parser.add_subclass_arguments(
            kind.models, "model", skip=set(kind.of_model), instantiate=False
        )
    else:
        parser.add_class_arguments(
            kind.models[0], "model", skip=set(kind.of_model), instantiate=False
        )
    parser.add_subclass_arguments(kind.data, "data", required=True)
    parser.add_class_arguments(kind.task, "task", skip={"model", *kind.of_task}, instantiate=False)
    parser.add_function_arguments(train, skip=set(_OF_TRAIN))
    # Not used in training: kept with the run, for `fsanet eval`.
    parser.add_function_arguments(evaluate, "test", skip=_OF_TEST | kind.not_tested)
    parser.set_defaults({"test.split": kind.split})
    # One seed for the weights, the order, the augmentation and the dropout.
    parser.link_arguments("seed", "data.init_args.seed")
    return parser


def eval_parser(
    data: dict[str, Any] | None,
    testing: dict[str, Any] | None = None,
    *,
    kind: Kind = SEMANTIC,
) -> ArgumentParser:
    """Options of `fsanet eval`.

    Args:
        data: those of the run, as default where they are known.
        testing: how the run is to be tested, as defaults of the other options.
        kind: what is tested.
    """
    parser = _parser("eval", f"Print {kind.scores}.")
    parser.add_argument("model", type=str, help="run folder, or folder with config.json")
    parser.add_subclass_arguments(kind.data, "data", required=data is None)
    parser.add_function_arguments(evaluate, skip={"model", "data", *kind.not_tested})
    parser.set_defaults({"split": kind.split})
    parser.add_argument("--json", type=str, default=None, help="write the scores to this file")
    if data is not None:
        parser.set_defaults({"data": data})
    known = {action.dest for action in parser._actions}
    parser.set_defaults({name: value for name, value in (testing or {}).items() if name in known})
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str], *, kind: Kind = SEMANTIC) -> Namespace:
    """Parsed arguments.

    Raises:
        InputError: one line that names the option, and the nearest one where there is none such.
    """
    try:
        return parser.parse_args(resolved(arguments))
    except ArgumentError as error:
        keys = known_keys(parser, kind.models, kind.of_model, kind.data)
        line = explain(str(error), keys, models=kind.models, data=kind.data_classes())
        raise InputError(line) from error


def make_data(parser: ArgumentParser, options: Namespace) -> Any:
    """The data module that the options describe."""
    try:
        return parser.instantiate(options).data
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"data: {own_line(error)}") from error


def make_task(options: Namespace, data: Any, *, kind: Kind = SEMANTIC) -> Any:
    """The network that the options describe, made for the classes of the data, and its task."""
    given = _plain(options.model)
    network: Any = _class(given["class_path"]) if "class_path" in given else kind.models[0]
    arguments = given.get("init_args", {}) if "class_path" in given else given
    try:
        model = network(**arguments, **{name: getattr(data, name) for name in kind.of_model})
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:  # of the encoder's or the attention's own
        raise InputError(f"model: {' '.join(str(error).split())}") from error
    of_data = {name: getattr(data, name) for name in kind.of_task}
    return kind.task(model, **of_data, **_plain(options.task))


def train_arguments(options: Namespace) -> dict[str, Any]:
    """The options that `fsanet.train.train` takes, without those of data, model and task."""
    others = {"config", "model", "data", "task", "out", "test"}
    return {key: value for key, value in _plain(options).items() if key not in others}


def run_folder(options: Namespace, arguments: Sequence[str]) -> Path:
    """The folder given as ``--out``, or one that is named after the last file of options."""
    files = config_files(arguments)
    return Path(options.out or Path("runs", Path(files[-1]).stem if files else "run"))


def record(parser: ArgumentParser, options: Namespace, out: Path) -> str:
    """What config.yaml of a run holds: every option, so that it alone makes the run again."""
    kept = options.clone()
    kept.out, kept.resume, kept.overwrite = str(out), False, False
    return parser.dump(kept, skip_unset=False, skip_link_targets=True)


def data_of_run(folder: Path) -> dict[str, Any] | None:
    """The data options in the config.yaml of a run folder, or of the one a model folder is in."""
    return _of_run(folder, "data")


def testing_of_run(folder: Path) -> dict[str, Any] | None:
    """How the run of a folder, as in `data_of_run`, is to be tested."""
    return _of_run(folder, "test")


def _of_run(folder: Path, part: str) -> dict[str, Any] | None:
    for file in (folder / "config.yaml", folder.parent / "config.yaml"):
        if file.is_file() and (file.parent == folder or folder.name == "model"):
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise InputError(f"{file}: not readable as YAML") from error
            found = content.get(part) if isinstance(content, dict) else None
            if isinstance(found, dict):
                return found
    return None


def _parts(arguments: Sequence[str], part: str) -> Iterator[dict[str, Any]]:
    """What each file of options says of ``model`` or ``data``."""
    for file in config_files(arguments):
        try:
            content = read_recipe(file).get(part)
        except InputError:
            continue  # the parser says what is wrong with it
        if isinstance(content, dict):
            yield content


def _class(path: str) -> type[nn.Module]:
    """The class of a path that the parser has found to be one of the kind's, or derived from it."""
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


def _parser(command: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=f"fsanet {command}", description=description, exit_on_error=False)


def _plain(options: Namespace) -> dict[str, Any]:
    return {key: _value(value) for key, value in vars(options).items()}


def _value(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value
