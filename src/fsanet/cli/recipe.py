"""Recipes: YAML files and options that describe a network, its data, training and evaluation.

A recipe has the keys ``model``, ``data`` and ``task``; at the top level the arguments of
`fsanet.train.train`; and under ``test`` those of `fsanet.train.evaluate`, for `fsanet eval`.
``model`` and ``data`` name a class (``class_path``) and its arguments (``init_args``). ``model``
may also list the arguments of the default network directly. A class is found by its name,
whichever module it was in when the file was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from jsonargparse import ArgumentError, Namespace
from torch import nn

from fsanet.cli.parsing import CommandParser, one_line
from fsanet.data.modules import InstanceData, SegmentationData
from fsanet.errors import InputError
from fsanet.models import FsaNet, MaskRcnnFsa, SegformerFsa
from fsanet.train import InstanceSegmentation, SemanticSegmentation, evaluate, train

__all__ = ["Recipe", "Test", "call_with_data", "read_yaml", "run_config"]


@dataclass(frozen=True)
class Kind:
    """What semantic and instance segmentation differ in.

    Attributes:
        networks: classes that ``model`` may name, the default first.
        data: base class of the data modules.
        task: the Lightning module.
        network_facts, task_facts: arguments of network and task that are taken from the data.
        split: evaluated by default; instance data have no test split with labels.
        no_test: arguments of `fsanet.train.evaluate` that do not apply.
    """

    networks: tuple[type[nn.Module], ...]
    data: type
    task: type
    network_facts: tuple[str, ...]
    task_facts: tuple[str, ...]
    split: str
    no_test: tuple[str, ...] = ()

    def data_classes(self) -> dict[str, type]:
        """Names and classes of all data modules of this kind."""
        found, left = {}, [self.data]
        while left:
            class_ = left.pop()
            found[class_.__name__] = class_
            left += type.__subclasses__(class_)
        return found


SEMANTIC = Kind(
    networks=(FsaNet, SegformerFsa),
    data=SegmentationData,
    task=SemanticSegmentation,
    network_facts=("num_classes", "classes", "palette"),
    task_facts=("classes", "ignore_index"),
    split="test",
)
INSTANCES = Kind(
    networks=(MaskRcnnFsa,),
    data=InstanceData,
    task=InstanceSegmentation,
    network_facts=("num_classes", "classes", "category_ids"),
    task_facts=("classes",),
    split="val",
    no_test=(
        *("resize", "window", "stride", "window_batch", "scales", "flip"),
        *("boundary", "boundary_ratio", "trimap"),
    ),
)
KINDS = (SEMANTIC, INSTANCES)


class Recipe:
    """Options of a training: those of YAML files, overridden by those of the command line.

    Args:
        arguments: of the command line; ``--config FILE`` may be given several times, the later
            file overrides the earlier one.

    Attributes:
        options: all of them, with their defaults.
        kind: semantic or instance segmentation, as the data class says.
        name: of the last file without its ending, "run" without a file.

    Raises:
        InputError: a file that cannot be read, an unknown option, a wrong value.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        tokens = CommandParser().translate(arguments)
        files = [token.partition("=")[2] for token in tokens if token.startswith("--config=")]
        options = dict(token.partition("=")[::2] for token in tokens)
        if "--resume" in options and not files and options.get("--out"):
            files = [str(Path(options["--out"], "config.yaml"))]  # a run knows its own options
        contents = [read_yaml(file) for file in files]
        classes = [options.get("--data"), options.get("--data.class_path")]
        classes += [_class_name(content.get("data")) for content in reversed(contents)]
        self.kind = kind_of(next(filter(None, classes), None))
        self.name = Path(files[-1]).stem if files else "run"
        self.parser = train_parser(self.kind)
        given, where = None, ""
        network = self.kind.networks[0].__name__
        try:
            for file, content in zip(files, contents, strict=True):
                where = f"{file}: "
                self._check_keys(content, where)
                network = _class_name(content.get("model")) or network
                data = _class_name(content.get("data"))
                if data is not None and kind_of(data) is not self.kind:
                    content.pop("data")  # a later file or option has data of the other kind
                # Validated below: what a file leaves out may be given on the command line.
                given = self.parser.parse_object(
                    with_classes(content, network), given, _skip_validation=True
                )
        except (ArgumentError, TypeError, ValueError) as error:
            raise InputError(where + one_line(error)) from error
        rest = [token for token in tokens if not token.startswith("--config=")]
        self.options = self.parser.parse([_short(token) for token in rest], given)

    def _check_keys(self, content: dict[str, Any], where: str) -> None:
        known = {name.lstrip("-").partition(".")[0] for name in self.parser.option_names()}
        for key in content:
            if key not in known:
                raise InputError(f"{where}unknown option {key!r}{self.parser.suggest(key)}")

    def data(self) -> Any:
        """The data module, a new one at each call."""
        return instantiate_data(self.parser, self.options)

    def task(self, data: Any) -> Any:
        """The network for the classes of ``data``, and its task."""
        kind, given = self.kind, self.options.model.as_dict()
        path = given["class_path"].rpartition(".")
        network: Any = getattr(import_module(path[0]), path[2])
        try:
            model = network(
                **given.get("init_args", {}),
                **{name: getattr(data, name) for name in kind.network_facts},
            )
        except InputError:
            raise
        except (ValueError, RuntimeError) as error:  # of timm, torchvision or transformers
            raise InputError(f"model: {one_line(error)}") from error
        facts = {name: getattr(data, name) for name in kind.task_facts}
        return kind.task(model, **facts, **self.options.task.as_dict())

    def train_options(self) -> dict[str, Any]:
        """The arguments of `fsanet.train.train` besides task, data, out and config."""
        others = {"config", "model", "data", "task", "out", "test"}
        return {name: value for name, value in self.options.as_dict().items() if name not in others}

    def text(self, out: Path) -> str:
        """The content of a run's config.yaml: every option, so that it is a recipe by itself."""
        kept = self.options.clone()
        kept.out, kept.resume, kept.overwrite = str(out), False, False
        text = self.parser.dump(kept, skip_unset=False, skip_link_targets=True)
        content = yaml.safe_load(text)
        if _class_name(content["model"]) == self.kind.networks[0].__name__:
            content["model"] = content["model"]["init_args"]  # the short form
        return yaml.safe_dump(content, sort_keys=False)


def train_parser(kind: Kind) -> CommandParser:
    """The options of `fsanet train` for one kind of data."""
    parser = CommandParser(
        "train", "Train a network. Every option can also be a key of a YAML file (--config)."
    )
    parser.add_argument("--config", action="config", help="YAML file of options; repeatable")
    parser.add_argument(
        "--out", type=str, default=None, help="run folder (default: runs/<name of the config>)"
    )
    parser.add_subclass_arguments(
        kind.networks, "model", skip=set(kind.network_facts), instantiate=False
    )
    default = kind.networks[0]
    parser.set_defaults({"model": {"class_path": f"{default.__module__}.{default.__name__}"}})
    parser.add_subclass_arguments(kind.data, "data", required=True)
    parser.add_class_arguments(
        kind.task, "task", skip={"model", *kind.task_facts}, instantiate=False
    )
    others: set[str | int] = {"task", "data", "out", "config", "callbacks"}
    parser.add_function_arguments(train, as_group=False, skip=others)
    # Kept with the run for `fsanet eval`; training itself does not use them.
    others = {"model", "data", "accelerator", "devices", "num_nodes", "strategy", "progress"}
    others |= {"deterministic", *kind.no_test}
    parser.add_function_arguments(evaluate, "test", skip=others)
    parser.set_defaults({"test.split": kind.split})
    # One seed for weights, order, augmentation and dropout.
    parser.link_arguments("seed", "data.init_args.seed")
    return parser


@dataclass(frozen=True)
class Test:
    """How a network is tested.

    Attributes:
        data: the data module, or None where none is known.
        data_options: its class_path and init_args.
        options: arguments of `fsanet.train.evaluate`, "split" among them.
    """

    data: Any
    data_options: dict[str, Any] | None
    options: dict[str, Any]

    def evaluate(self, model: Any) -> Any:
        """Scores of a network or of a saved one."""
        return evaluate(model, self.data, **self.options)


def call_with_data(
    command: str,
    function: Callable[..., int],
    arguments: Sequence[str],
    *,
    need_data: bool = True,
    tested_as_recipe: bool = False,
) -> int:
    """Call a function that evaluates: its own options, and those of `fsanet.train.evaluate`.

    A run folder given as ``model`` provides the data by default.

    Args:
        command: its name on the command line.
        function: called with its own options, the first of them ``model``, and ``test``, a `Test`.
        arguments: of the command line, without the command.
        need_data: whether missing data are an error.
        tested_as_recipe: take the defaults of `evaluate` from the ``test`` part of the run.

    Raises:
        InputError: wrong options, in one line.
    """
    parser, testing = evaluation_parser(command, function)
    tokens = [_short(token) for token in parser.translate(arguments)]
    model = next((token for token in tokens if not token.startswith("-")), "")
    run = run_config(Path(model)) if model else {}
    options = dict(token.partition("=")[::2] for token in tokens)
    data = options.get("--data") or options.get("--data.class_path") or _class_name(run.get("data"))
    parser.set_defaults({"split": kind_of(data).split})
    said = run.get("test", {}) if tested_as_recipe else {}
    known = {name: value for name, value in said.items() if name in testing}
    if isinstance(run.get("data"), dict):
        known["data"] = with_classes(run, "")["data"]
    try:
        parser.set_defaults(known)
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"{model}/config.yaml: {one_line(error)}") from error
    parsed = parser.parse(tokens)
    if parsed.data is None and need_data:
        raise InputError(
            f"{model}: not a run folder, so its data are not known; give --data, as in "
            "--data FolderData --data.root DIR"
        )
    module = None if parsed.data is None else instantiate_data(parser, parsed)
    values = parsed.as_dict()
    how = {name: values.pop(name) for name in testing}
    return function(test=Test(module, values.pop("data"), how), **values)


def evaluation_parser(
    command: str, function: Callable[..., int]
) -> tuple[CommandParser, list[str]]:
    """A parser for `call_with_data`, and the names of the options of `evaluate`."""
    documentation = docstring_parser.parse(function.__doc__ or "")
    parser = CommandParser(command, documentation.description or "")
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip={"test"})
    parser.add_subclass_arguments(tuple(kind.data for kind in KINDS), "data")
    names = parser.add_function_arguments(evaluate, as_group=False, skip={"model", "data"})
    return parser, names


def run_config(folder: Path) -> dict[str, Any]:
    """The recipe of a run folder, or of the run that a model folder belongs to; else empty."""
    for file in (folder / "config.yaml", folder.parent / "config.yaml"):
        if file.is_file() and (file.parent == folder or folder.name == "model"):
            return read_yaml(file)
    return {}


def instantiate_data(parser: CommandParser, options: Namespace) -> Any:
    """The data module that parsed options describe."""
    try:
        return parser.instantiate(options).data
    except (ValueError, TypeError) as error:
        line = one_line(error)
        raise InputError(line if isinstance(error, InputError) else f"data: {line}") from error


def kind_of(data: str | None) -> Kind:
    """The kind of the data class with this name; semantic for one that is not known."""
    name = (data or "").rpartition(".")[2]
    return next((kind for kind in KINDS if name in kind.data_classes()), SEMANTIC)


def with_classes(content: dict[str, Any], network: str) -> dict[str, Any]:
    """A recipe whose ``model`` names its class, and whose classes go by their names alone."""
    result = dict(content)
    model, data = result.get("model"), result.get("data")
    if isinstance(model, dict) and "class_path" not in model:
        model = model if set(model) == {"init_args"} else {"init_args": model}
        result["model"] = {"class_path": network, **model}
    for key, value in (("model", model), ("data", data)):
        if isinstance(value, dict) and str(value.get("class_path")).startswith("fsanet."):
            result[key] = {**value, "class_path": _class_name(value)}
    return result


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The content of a YAML file of options.

    Raises:
        InputError: no such file, not YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not readable as YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no options; write 'option: value' lines")
    return content


def _short(token: str) -> str:
    """``--data=fsanet.data.module.CamVidData`` of another version as ``--data=CamVidData``."""
    name, _, value = token.partition("=")
    names_class = name in ("--data", "--model", "--data.class_path", "--model.class_path")
    return (
        f"{name}={value.rpartition('.')[2]}"
        if names_class and value.startswith("fsanet.")
        else token
    )


def _class_name(part: Any) -> str | None:
    """The name of the class that ``model`` or ``data`` of a recipe gives."""
    path = part.get("class_path") if isinstance(part, dict) else None
    return str(path).rpartition(".")[2] if path else None
