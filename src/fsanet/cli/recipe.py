"""Recipes: YAML files and options that describe a network, its data, training and evaluation.

A recipe has the keys ``model``, ``data`` and ``task``; at the top level the arguments of
`fsanet.train.train`; and under ``test`` those of `fsanet.train.evaluate`, for `fsanet eval`.
``model`` and ``data`` name a class (``class_path``) and its arguments (``init_args``). ``model``
may also list the arguments of the default network directly. A class is found by its name, whichever
module it was in when the file was written, among those of fsanet and of the modules that are given
as ``--plugin``. Nothing else is ever imported because a recipe names it.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from torch import nn

from fsanet.cli.help import FROM_DATA
from fsanet.cli.parsing import CommandParser, parse, parse_message
from fsanet.cli.plugins import load_plugin
from fsanet.cli.safe_yaml import load_yaml, read_yaml
from fsanet.data.modules import (
    FolderData,
    InstanceData,
    InstanceFolderData,
    SegmentationData,
)
from fsanet.errors import InputError, printable
from fsanet.models import FsaNet, MaskRcnnFsa, SegformerFsa
from fsanet.models.saved_folder import check_limits
from fsanet.train import (
    InstanceSegmentation,
    SemanticSegmentation,
    check_evaluation,
    evaluate,
    train,
)
from fsanet.train.logs import LoggerName

__all__ = ["KINDS", "Recipe", "Test", "call_with_data", "read_recipe", "recipe_file", "run_config"]


@dataclass(frozen=True)
class Kind:
    """What semantic and instance segmentation differ in.

    Attributes:
        networks: classes that ``model`` may name, the default first.
        data: base class of the data modules.
        folder: data module of the user's own files, where none is named.
        task: the Lightning module.
        network_facts, task_facts: arguments of network and task that are taken from the data.
        split: evaluated by default; instance data have no test split with labels.
        no_test: arguments of `fsanet.train.evaluate` that do not apply.
    """

    networks: tuple[type[nn.Module], ...]
    data: type
    folder: type
    task: type
    network_facts: tuple[str, ...]
    task_facts: tuple[str, ...]
    split: str
    no_test: tuple[str, ...] = ()


SEMANTIC = Kind(
    networks=(FsaNet, SegformerFsa),
    data=SegmentationData,
    folder=FolderData,
    task=SemanticSegmentation,
    network_facts=("num_classes", "classes", "palette"),
    task_facts=("classes", "ignore_index"),
    split="test",
)
INSTANCES = Kind(
    networks=(MaskRcnnFsa,),
    data=InstanceData,
    folder=InstanceFolderData,
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
_RECIPES = Path(__file__).parents[1] / "recipes"
SECTIONS = ("model", "data", "task", "test")
CLASSES: dict[str, tuple[type, ...]] = {
    "model": tuple(network for kind in KINDS for network in kind.networks),
    "data": tuple(kind.data for kind in KINDS),
}


class Recipe:
    """Options of a training: those of YAML files, overridden by those of the command line.

    Args:
        arguments: of the command line; ``--config``, see `recipe_file`, may be given several times,
            the later file overrides the earlier one.

    Attributes:
        options: all of them, with their defaults.
        kind: semantic or instance segmentation, as the data class says.
        name: of the last file without its ending, "run" without a file.

    Raises:
        InputError: a file that cannot be read, an unknown option, a wrong value.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        tokens, plugins = load_plugins(CommandParser().translate(arguments))
        files = [token.partition("=")[2] for token in tokens if token.startswith("--config=")]
        tokens = spell_out([token for token in tokens if not token.startswith("--config=")])
        options = dict(token.partition("=")[::2] for token in tokens)
        if "--resume" in options and not files and options.get("--out"):
            files = [str(Path(options["--out"], "config.yaml"))]  # a run knows its own options
        files = [str(recipe_file(file)) for file in files]
        contents = [read_recipe(file) for file in files]
        classes = [content.get("data", {}).get("class_path") for content in contents]
        classes += [options.get("--data.class_path")]
        named = next(filter(None, reversed(classes)), None)
        if named is None and ("data" in {*chain(*contents)} or any(map(of_data, tokens))):
            networks = [content.get("model", {}).get("class_path") for content in contents]
            networks += [options.get("--model.class_path")]
            named = class_path(_kind_of_network(networks).folder)
            tokens.insert(0, f"--data.class_path={named}")
        self.kind = kind_of(named)
        self.name = Path(files[-1]).stem if files else "run"
        self.parser = train_parser(self.kind)
        given, where = None, ""
        network = class_path(self.kind.networks[0])
        known = {name.lstrip("-").partition(".")[0] for name in self.parser.option_names()}
        try:
            for file, content, data in zip(files, contents, classes, strict=False):
                where = f"{file}: "
                for key in content.keys() - known:
                    hint = self.parser.suggest(key)
                    raise InputError(f"unknown option {printable(key)!r}{hint}")
                if content.get("overwrite"):
                    raise InputError("overwrite: deletes a run, so it is for the command line only")
                if data is None and "data" in content:
                    content["data"] = {"class_path": named} | content["data"]
                if "model" in content:
                    content["model"] = {"class_path": network} | content["model"]
                    network = content["model"]["class_path"]
                if data is not None and kind_of(data) is not self.kind:
                    content.pop("data")  # a later file or option has data of the other kind
                # Validated below: what a file leaves out may be given on the command line.
                given = self.parser.parse_object(content, given, _skip_validation=True)
        except Exception as error:  # whatever it is, the file has caused it
            raise InputError(where + parse_message(error)) from error
        self.options = self.parser.parse(tokens, given)
        check_nulls("model", self.options.model)
        seeds = [content.get("data", {}).get("init_args", {}).get("seed") for content in contents]
        check_seeds([*seeds, *map(options.get, SEEDS_OF_DATA)], self.options.seed)
        try:
            if not self.kind.no_test:
                check_evaluation(**self.options.test.as_dict())
        except InputError as error:  # not only when `fsanet eval` comes to it, after the training
            raise InputError(f"test: {error}") from error
        self.options.plugin = plugins or None

    def data(self) -> Any:
        """The data module, a new one at each call."""
        return instantiate_data(self.parser, self.options)

    def task(self, data: Any) -> Any:
        """The network for the classes of ``data``, and its task."""
        kind, given = self.kind, self.options.model.as_dict()
        facts = {name: getattr(data, name) for name in kind.task_facts}
        options = facts | self.options.task.as_dict()
        # Finds what is out of range before a network is built; only `freeze` asks for its stages.
        kind.task(nn.ModuleDict({"encoder": nn.Identity()}), **options | {"freeze": 0})
        network: Any = find_class("model", given["class_path"])
        check_limits(given.get("init_args", {}), "model")
        try:
            model = network(
                **given.get("init_args", {}),
                **{name: getattr(data, name) for name in kind.network_facts},
            )
        except InputError:
            raise
        except (ValueError, RuntimeError) as error:  # of timm, torchvision or transformers
            raise InputError(f"model: {parse_message(error)}") from error
        return kind.task(model, **options)

    def train_options(self) -> dict[str, Any]:
        """The arguments of `fsanet.train.train` besides task, data, out and config."""
        others = {*inspect.signature(recipe_options).parameters, *SECTIONS}
        return {name: value for name, value in self.options.as_dict().items() if name not in others}

    def text(self, out: Path) -> str:
        """The content of a run's config.yaml: every option, so that it is a recipe by itself."""
        kept = self.options.clone()
        kept.out, kept.resume, kept.overwrite = str(out), False, False
        text = self.parser.dump(kept, skip_unset=False, skip_link_targets=True)
        content = yaml.safe_load(text)
        if find_class("model", content["model"]["class_path"]) is self.kind.networks[0]:
            content["model"] = content["model"]["init_args"]  # the short form
        del content["config"], content["print_config"]
        if not content["plugin"]:
            del content["plugin"]
        return yaml.safe_dump(content, sort_keys=False)


def recipe_options(
    *,
    config: list[str] | None = None,
    plugin: list[str] | None = None,
    out: str | None = None,
    print_config: bool = False,
) -> None:
    """Train a network from a recipe (a YAML file) and options.

    Every option but --overwrite can be a key of the recipe: --task.lr 0.01 is the same as
    `task: {lr: 0.01}`.

    Args:
        config: recipe: a YAML file, or the name of one of fsanet's own, such as camvid or demo (a
            wrong name lists them); may be given several times, the later one overrides the earlier.
        plugin: Python file or module of your own, whose data modules and networks --data and
            --model may then name; may be given several times.
        out: run folder; by default runs/ and the name of the recipe.
        print_config: print all options as a recipe of your own to start from, and stop.
    """


def train_parser(kind: Kind) -> CommandParser:
    """The options of `fsanet train` for one kind of data."""
    parser = CommandParser()
    parser.add_function_arguments(recipe_options, as_group=False)
    parser.add_subclass_arguments(
        kind.networks, "model", skip=set(kind.network_facts), instantiate=False
    )
    parser.set_defaults({"model": {"class_path": class_path(kind.networks[0])}})
    parser.add_subclass_arguments(kind.data, "data", required=True)
    parser.add_class_arguments(
        kind.task, "task", skip={"model", *kind.task_facts}, instantiate=False
    )
    others: set[str | int] = {"task", "data", "out", "config", "command", "callbacks", "logger"}
    parser.add_function_arguments(train, as_group=False, skip=others)
    # By its name alone: a logger of Lightning would be a class that a recipe imports.
    parser.add_argument("--logger", type=LoggerName, default="tensorboard")
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
    function: Callable[..., int],
    arguments: Sequence[str],
    *,
    need_data: bool = True,
    tested_as_recipe: bool = False,
) -> int:
    """Call a function that evaluates: its own options, and those of `fsanet.train.evaluate`.

    A run folder given as ``model`` provides the data by default.

    Args:
        function: called with its own options, the first of them ``model``, and ``test``, a `Test`.
        arguments: of the command line, without the command.
        need_data: whether missing data are an error.
        tested_as_recipe: take the defaults of `evaluate` from the ``test`` part of the run.

    Raises:
        InputError: wrong options, in one line.
    """
    parser = CommandParser()
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip={"test"})
    parser.add_subclass_arguments(CLASSES["data"], "data")
    testing = parser.add_function_arguments(evaluate, as_group=False, skip={"model", "data"})
    tokens, _ = load_plugins(parser.translate(arguments))
    tokens = spell_out(tokens)
    model = next((token for token in tokens if not token.startswith("-")), "")
    options = dict(token.partition("=")[::2] for token in tokens)
    run = run_config(Path(model), data="--data.class_path" not in options) if model else {}
    data = run.get("data", {}).get("class_path")
    if data is None and "--data.class_path" not in options and any(map(of_data, tokens)):
        tokens.insert(0, f"--data.class_path={class_path(FolderData)}")
    parser.set_defaults({"split": kind_of(options.get("--data.class_path") or data).split})
    recorded = run.get("test", {}) if tested_as_recipe else {}
    known = {name: value for name, value in recorded.items() if name in testing}
    if data is not None:
        known["data"] = run["data"]
    try:
        parser.set_defaults(known)
    except Exception as error:  # whatever it is, the file has caused it
        raise InputError(f"{model}/config.yaml: {parse_message(error)}") from error
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


def call_with_module(
    function: Callable[..., int],
    arguments: Sequence[str],
    complete: Callable[[dict[str, Any], dict[str, str]], dict[str, str]],
) -> int:
    """Call a function with its own options, and the data module of ``--data`` as ``module``.

    Args:
        function: one of its options is ``root``, which the module reads.
        arguments: of the command line, without the command.
        complete: called with the options of the function, and those of the module that are given,
            ``class_path`` among them; returns the latter, completed.

    Raises:
        InputError: wrong options, in one line.
    """
    both = CommandParser()
    both.add_function_arguments(function, as_group=False, as_positional=True, skip={"module"})
    both.add_subclass_arguments(CLASSES["data"], "data")
    tokens = spell_out(load_plugins(both.translate(arguments))[0])
    own = parse(function, [token for token in tokens if not of_data(token)], {"module"})
    pairs = [token.partition("=")[::2] for token in tokens if of_data(token)]
    given = {name.removeprefix("--data.").removeprefix("init_args."): one for name, one in pairs}
    options = complete(own, given)
    found = find_class("data", options.pop("class_path"))
    if "root" in inspect.signature(found.__init__).parameters:  # type: ignore[misc]
        options.setdefault("root", own["root"])
    parser = CommandParser()
    parser.add_subclass_arguments(CLASSES["data"], "data")
    tokens = [f"--data.{name}={text}" for name, text in options.items()]
    parsed = parser.parse([f"--data.class_path={class_path(found)}", *tokens])
    return function(**own, module=instantiate_data(parser, parsed))


def of_data(token: str) -> bool:
    """Whether an option is one of the data module."""
    return token.startswith("--data.")


def load_plugins(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Import the modules of ``--plugin``; the other options, and the names of the modules."""
    rest = [token for token in tokens if not token.startswith("--plugin=")]
    plugins = [token.partition("=")[2] for token in tokens if token.startswith("--plugin=")]
    for plugin in plugins:
        load_plugin(plugin)
    return rest, plugins


def run_config(folder: Path, *, data: bool = True) -> dict[str, Any]:
    """The recipe of a run folder, or of the run that a model folder belongs to; else empty.

    Args:
        folder: of a run or a model.
        data: False leaves out its data, which are replaced.
    """
    for file in (folder / "config.yaml", folder.parent / "config.yaml"):
        if file.is_file() and (file.parent == folder or folder.name == "model"):
            return read_recipe(file, () if data else ("data",))
    return {}


def recipe_file(name: str | Path) -> Path:
    """The file of a recipe: a local file, or one of fsanet's own recipes by its name.

    Args:
        name: a path; without a suffix, a folder and such a local file, the name of a recipe in
            ``fsanet/recipes``, which comes with the package.

    Raises:
        InputError: there is no recipe of that name.
    """
    given = Path(name)
    if given.is_file():
        return given
    own = {file.stem: file for file in sorted(_RECIPES.glob("*.yaml"))}
    if given.suffix == ".yaml" and given.stem in own:
        raise InputError(
            f"{name}: no such recipe; that of fsanet is found by its name: --config {given.stem}"
        )
    present = os.path.lexists(given) and given.name not in own
    if given.suffix or str(name) != given.name or present:
        return given  # what is no file is an error where it is read
    if given.name not in own:
        raise InputError(
            f"{printable(str(name))}: no such file, and no recipe of fsanet; those are "
            f"{', '.join(own)}"
        )
    return own[given.name]


def read_recipe(file: str | Path, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe whose sections are mappings, and whose ``class_path`` are those of known classes.

    Raises:
        InputError: see `read_yaml`; or another section, or a class that is not known.
    """
    content = read_yaml(file)
    plugins = content.pop("plugin", None)  # information; a file never causes an import
    try:
        for section in SECTIONS:
            if section in leave_out:
                content.pop(section, None)
            elif section in content:
                content[section] = section_mapping(section, content[section])
    except UnknownClass as error:
        again = plugins if isinstance(plugins, list) else []
        hint = "".join(f" --plugin {printable(str(plugin))}" for plugin in again)
        hint = f"; it was written with{hint}: give it again" if hint else ""
        raise InputError(f"{file}: {error}{hint}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return content


def section_mapping(section: str, value: Any) -> dict[str, Any]:
    """A section of a recipe, its class named by the path that jsonargparse needs."""
    if section in CLASSES and isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, dict):
        raise InputError(f"{section}: give 'option: value' lines, not {printable(repr(value))}")
    if section == "data" and "class_path" not in value and not value.keys() <= {"init_args"}:
        value = {"init_args": value}
    if section == "model" and not value.keys() & {"class_path", "init_args"}:
        value = {"init_args": value}
    if not isinstance(value.get("init_args", {}), dict):
        given = printable(repr(value["init_args"]))
        raise InputError(f"{section}: init_args is {given}; give 'option: value' lines")
    if section in CLASSES and "class_path" in value:
        value = value | {"class_path": class_path(find_class(section, value["class_path"]))}
    return value


def spell_out(tokens: Sequence[str]) -> list[str]:
    """Options with one token for each entry of a section, and with classes that are known.

    Classes come first: jsonargparse needs them before their arguments.
    """
    result = []
    for token in tokens:
        name, equals, value = token.partition("=")
        section, _, rest = name.removeprefix("--").partition(".")
        if not name.startswith("--") or section not in SECTIONS or not equals:
            result.append(token)
        elif not rest or (rest == "class_path" and section in CLASSES):
            given = load_yaml(value, classes=[[]]) if value[:1] == "{" else value
            for key, entry in section_mapping(section, given).items():
                entries = entry if key == "init_args" and isinstance(entry, dict) else {"": entry}
                for last, one in entries.items():
                    path = ".".join(part for part in (section, key, last) if part)
                    result.append(f"--{path}={one if isinstance(one, str) else json.dumps(one)}")
        elif "class_path" in rest.split("."):
            raise InputError(f"{name}: only --model and --data name a class")
        else:
            result.append(token)
    return sorted(result, key=lambda token: ".class_path" not in token.partition("=")[0])


class UnknownClass(InputError):
    """A recipe or an option names a class of neither fsanet nor a plugin."""


def find_class(section: str, path: Any) -> type:
    """The network or data module of this name, without importing anything.

    Args:
        section: "model" or "data".
        path: name of the class, with or without its module.

    Raises:
        UnknownClass: there is no such class.
    """
    name = str(path).rpartition(".")[2]
    package = str(path).partition(".")[0]
    known = [one for one in subclasses(CLASSES[section]) if not _is_abstract(one)]
    found: dict[str, type] = {}
    for one in known:
        if package in (name, "fsanet", one.__module__.partition(".")[0]):
            found.setdefault(one.__name__, one)
    if name not in found:
        names = [one.__name__ for one in known]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"fsanet train --{section}.help lists them"
        raise UnknownClass(
            f"{section}: no class {printable(str(path))!r}; {hint}; a class of your own needs "
            "--plugin on the command line"
        )
    return found[name]


def _is_abstract(one: type) -> bool:
    return getattr(getattr(one, "make_dataset", None), "__isabstractmethod__", False)


def subclasses(classes: Sequence[type]) -> Iterator[type]:
    """Classes and all that inherit from them."""
    for one in classes:
        yield one
        yield from subclasses(type.__subclasses__(one))


def class_path(one: type) -> str:
    return f"{one.__module__}.{one.__qualname__}"


SEEDS_OF_DATA = ("--data.seed", "--data.init_args.seed")


def check_seeds(given: Sequence[Any], seed: int) -> None:
    """Raise `InputError` for a seed of the data other than that of the training."""
    for other in given:
        if other is not None and str(other) != str(seed):
            raise InputError(
                f"data.seed={printable(str(other))}: a training has one seed for everything "
                f"random, and it is {seed}; give --seed alone"
            )


def instantiate_data(parser: CommandParser, options: Namespace) -> Any:
    """The data module that parsed options describe."""
    check_nulls("data", options.data)
    if options.data.init_args.get("root") == "":  # would be the current folder
        raise InputError("data.root is empty; give the folder of the data set")
    try:
        return parser.instantiate(options).data
    except (ValueError, TypeError) as error:
        line = parse_message(error)
        raise InputError(line if isinstance(error, InputError) else f"data: {line}") from error


def check_nulls(section: str, options: Namespace) -> None:
    """Raise `InputError` for a null where the class takes none, which jsonargparse lets pass."""
    parser, one = CommandParser(), find_class(section, options.class_path)
    parser.add_class_arguments(one, section, skip=set(FROM_DATA) if section == "model" else None)
    try:
        parser.validate(Namespace({section: options.init_args}), skip_unset=False)
    except Exception as error:
        raise InputError(parse_message(error)) from error


def _kind_of_network(paths: Sequence[str | None]) -> Kind:
    """The kind of the last network that is named; semantic where none is."""
    path = next(filter(None, reversed(paths)), None)
    if path is None:
        return SEMANTIC
    network = find_class("model", path)
    return next(kind for kind in KINDS if issubclass(network, kind.networks))


def kind_of(data: str | None) -> Kind:
    """The kind of a data class; semantic where none is given."""
    if data is None:
        return SEMANTIC
    return next(kind for kind in KINDS if issubclass(find_class("data", data), kind.data))
