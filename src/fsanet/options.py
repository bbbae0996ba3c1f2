"""Options of the command line and of YAML files, as typed arguments; mistakes told in one line."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

import fsanet.data.published  # noqa: F401  so that short names such as CityscapesData are known
from fsanet.data.module import SegmentationData
from fsanet.errors import InputError
from fsanet.models import FsaNet, SegformerFsa
from fsanet.recipes import config_files, given_values, read_recipe, resolved
from fsanet.tasks.segmentation import SemanticSegmentation
from fsanet.tasks.training import evaluate, train

# Networks that a file may name; without a name it is the first.
_MODELS = (FsaNet, SegformerFsa)
# Arguments that come from the data set, or that have no place in a file.
_FROM_DATA = {"num_classes", "classes", "palette"}
_OF_TASK = {"model", "classes", "ignore_index"}
_OF_TRAIN = {"task", "data", "out", "config", "callbacks"}
# What a test of the finished network is told besides how it is tested.
_OF_TEST = {"model", "data", "accelerator", "devices", "num_nodes", "strategy", "progress"}


def names_model(arguments: Sequence[str]) -> bool:
    """Whether options or the files among them say which class the network is of.

    They do with `--model CLASS`, `--model.class_path CLASS`, or `model: {class_path: ...}`.
    """
    if given_values(arguments, "--model") or given_values(arguments, "--model.class_path"):
        return True
    for file in config_files(arguments):
        try:
            model = read_recipe(file).get("model")
        except InputError:
            continue  # the parser says what is wrong with it
        if isinstance(model, dict) and "class_path" in model:
            return True
    return False


def train_parser(*, named_model: bool = False) -> ArgumentParser:
    """Options of `fsanet train`.

    Args:
        named_model: the network is given as class_path and init_args; else its options are those
            of `FsaNet`, directly.
    """
    parser = _parser("train", "Train a network. Every option can stand in the YAML file, too.")
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_argument(
        "--out", type=str, default=None, help="run folder (default: runs/<name of the config>)"
    )
    if named_model:
        parser.add_subclass_arguments(_MODELS, "model", skip=set(_FROM_DATA), instantiate=False)
    else:
        parser.add_class_arguments(_MODELS[0], "model", skip=set(_FROM_DATA), instantiate=False)
    parser.add_subclass_arguments(SegmentationData, "data", required=True)
    parser.add_class_arguments(SemanticSegmentation, "task", skip=set(_OF_TASK), instantiate=False)
    parser.add_function_arguments(train, skip=set(_OF_TRAIN))
    # Not used in training: kept with the run, for `fsanet eval`.
    parser.add_function_arguments(evaluate, "test", skip=set(_OF_TEST))
    # One seed for the weights, the order, the augmentation and the dropout.
    parser.link_arguments("seed", "data.init_args.seed")
    return parser


def eval_parser(
    data: dict[str, Any] | None, testing: dict[str, Any] | None = None
) -> ArgumentParser:
    """Options of `fsanet eval`.

    Args:
        data: those of the run, as default where they are known.
        testing: how the run is to be tested, as defaults of the other options.
    """
    parser = _parser("eval", "Print the mIoU of a trained network on a split, class by class.")
    parser.add_argument("model", type=str, help="run folder, or folder with config.json")
    parser.add_subclass_arguments(SegmentationData, "data", required=data is None)
    parser.add_function_arguments(evaluate, skip={"model", "data"})
    parser.add_argument("--json", type=str, default=None, help="write the scores to this file")
    if data is not None:
        parser.set_defaults({"data": data})
    known = {action.dest for action in parser._actions}
    parser.set_defaults({name: value for name, value in (testing or {}).items() if name in known})
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parsed arguments.

    Raises:
        InputError: one line that names the option, and the nearest one where there is none such.
    """
    try:
        return parser.parse_args(resolved(arguments))
    except ArgumentError as error:
        raise InputError(explain(str(error), known_keys(parser))) from error


def make_data(parser: ArgumentParser, options: Namespace) -> SegmentationData:
    """The data module that the options describe."""
    try:
        return parser.instantiate(options).data
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"data: {own_line(error)}") from error


def make_task(options: Namespace, data: SegmentationData) -> SemanticSegmentation:
    """The network that the options describe, made for the classes of the data, and its task."""
    given = _plain(options.model)
    network = _class(given["class_path"]) if "class_path" in given else _MODELS[0]
    try:
        model = network(
            **given.get("init_args", {} if "class_path" in given else given),
            num_classes=data.num_classes,
            classes=data.classes,
            palette=data.palette,
        )
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:  # of the encoder's or the attention's own
        raise InputError(f"model: {' '.join(str(error).split())}") from error
    return SemanticSegmentation(
        model, classes=data.classes, ignore_index=data.ignore_index, **_plain(options.task)
    )


def train_arguments(options: Namespace) -> dict[str, Any]:
    """The options that `fsanet.tasks.train` takes, without those of data, model and task."""
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


def known_keys(parser: ArgumentParser) -> list[str]:
    """Every option's name with its group, those of a class that is named as in YAML."""
    keys = {action.dest for action in parser._actions if action.dest != "help"}
    keys.add("model.class_path")
    if "model" in keys:
        for network in _MODELS:
            names = set(inspect.signature(network).parameters) - _FROM_DATA
            keys |= {f"model.init_args.{name}" for name in names}
        keys.add("model.init_args")
    for kind in _subclasses(SegmentationData):
        names = set()
        for base in kind.__mro__[:-1]:
            if issubclass(base, SegmentationData):
                names |= set(inspect.signature(base).parameters) - {"options"}
        keys |= {f"data.init_args.{name}" for name in names}
    return sorted(keys | {"data.class_path", "data.init_args"})


def own_line(error: BaseException) -> str:
    """The line of the `InputError` that jsonargparse has wrapped, or else all it says."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error if cause is None else cause).split())


def explain(message: str, keys: Iterable[str]) -> str:
    """One line from what jsonargparse says in many, with the nearest key for an unknown one."""
    keys = list(keys)
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("typing.", "")
    missing = re.search(r"File does not exist: '?([^'\n]+)'?", message)
    if missing:
        return f"{missing[1]}: no such file"
    unknown = _unknown_key(message)
    if unknown is not None:
        if unknown in keys and unknown.startswith("model."):
            return f"option '{unknown}' is not one of the class that model.class_path names"
        if unknown in keys:  # only a class that is chosen has options
            return f"option '{unknown}' needs data.class_path"
        return f"unknown option '{unknown}'{_suggestion(unknown, keys)}"
    key = re.search(r'Parser key "([^"]+)"', message)
    if key is None:
        return " ".join(message.split())
    # Of the attempts at every type of a union, only those at something are of interest.
    reasons = re.findall(r"^\s*- (.+(?:\n {6,}.+)*)", message, re.MULTILINE)
    reasons = [
        " ".join(reason.split())
        for reason in reasons
        if "NoneType" not in reason and "not correspond to a subclass" not in reason
    ]
    given = re.search(r"Given value: (.+)", message)
    if key[1] in ("data", "model") and "import path" in message:
        kinds = _subclasses(SegmentationData)[1:] if key[1] == "data" else _MODELS
        names = ", ".join(kind.__name__ for kind in kinds)
        value = re.search(r"import path string: (\S+)", message)
        return f"{key[1]}: no class {value[1] if value else ''}; give one of {names}"
    if key[1] in ("data", "model") and reasons:
        return f"{key[1]}: {'; '.join(reasons)}"
    if given is None:
        first = message.split(":", 1)[-1]
        return f"{key[1]}: {' '.join(first.split())}"
    text = "; ".join(reasons) or " ".join(message.split(":", 1)[-1].split("Given value")[0].split())
    return f"{key[1]}: {given[1].strip()!r} does not fit ({text.rstrip('.')})"


def _unknown_key(message: str) -> str | None:
    group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if group:
        return f"{group[1]}.{group[2]}"
    for pattern in (
        r"[Uu]nrecognized arguments: --([\w.-]+)",
        r"Option '([\w.]+)' is not accepted",
        r"Key '([\w.]+)' is not expected",
    ):
        found = re.search(pattern, message)
        if found:
            inner = "Problem with given class_path" in message and "." not in found[1]
            part = "model" if 'Parser key "model' in message else "data"
            return f"{part}.init_args.{found[1]}" if inner else found[1]
    return None


def _class(path: str) -> type[FsaNet] | type[SegformerFsa]:
    """The class of a path that the parser has found to be one of `_MODELS`, or of their kind."""
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


def _suggestion(unknown: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(unknown, keys, 1, 0.7)
    if not near:  # the right name in the wrong group, or a group spelt wrong
        leaf = unknown.rsplit(".", 1)[-1]
        leaves = {key.rsplit(".", 1)[-1]: key for key in keys}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, list(leaves), 1, 0.7)]
    return f"; did you mean '{near[0]}'?" if near else "; see --help"


def _subclasses(kind: type) -> list[type]:
    found = [kind]
    children: list[type] = type.__subclasses__(kind)
    for child in children:
        found += _subclasses(child)
    return found


def _parser(command: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=f"fsanet {command}", description=description, exit_on_error=False)


def _plain(options: Namespace) -> dict[str, Any]:
    return {key: _value(value) for key, value in vars(options).items()}


def _value(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value
