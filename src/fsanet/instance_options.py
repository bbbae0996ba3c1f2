"""Options of the commands where the data is of instances: the counterpart of `fsanet.options`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fsanet.commands.parsing import value_of
from fsanet.data.instance_scenes import InstanceSceneData
from fsanet.data.instances import CocoData, InstanceData
from fsanet.errors import InputError
from fsanet.models.mask_rcnn import MaskRcnnFsa
from fsanet.options import _parser, _plain, explain, own_line
from fsanet.recipes import config_files, read_recipe, resolved
from fsanet.tasks.instance_training import evaluate_instances, train_instances
from fsanet.tasks.instances import InstanceSegmentation

_DATA: tuple[type[InstanceData], ...] = (CocoData, InstanceSceneData)
_FROM_DATA = {"num_classes", "classes", "category_ids"}
_OF_TASK = {"model", "classes"}
_OF_TRAIN = {"task", "data", "out", "config", "callbacks"}


def train_parser() -> ArgumentParser:
    """Options of `fsanet train`."""
    parser = _parser("train", "Train a network. Every option can stand in the YAML file, too.")
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_argument(
        "--out", type=str, default=None, help="run folder (default: runs/<name of the config>)"
    )
    parser.add_class_arguments(MaskRcnnFsa, "model", skip=set(_FROM_DATA), instantiate=False)
    parser.add_subclass_arguments(InstanceData, "data", required=True)
    parser.add_class_arguments(InstanceSegmentation, "task", skip=set(_OF_TASK), instantiate=False)
    parser.add_function_arguments(train_instances, skip=set(_OF_TRAIN))
    # One seed for the weights, the order and the augmentation.
    parser.link_arguments("seed", "data.init_args.seed")
    return parser


def eval_parser(data: dict[str, Any] | None) -> ArgumentParser:
    """Options of `fsanet eval`, with the data of the run as default where that is known."""
    parser = _parser("eval", "Print box and mask AP of a trained network on a split.")
    parser.add_argument("model", type=str, help="run folder, or folder with config.json")
    parser.add_subclass_arguments(InstanceData, "data", required=data is None)
    parser.add_function_arguments(evaluate_instances, skip={"model", "data"})
    parser.add_argument("--json", type=str, default=None, help="write the scores to this file")
    if data is not None:
        parser.set_defaults({"data": data})
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parsed arguments.

    Raises:
        InputError: one line that names the option, and the nearest one where there is none such.
    """
    try:
        return parser.parse_args(resolved(arguments))
    except ArgumentError as error:
        keys = {action.dest for action in parser._actions if action.dest != "help"}
        keys |= {"data.class_path", "data.init_args"}
        for kind in _DATA:
            names = {
                *inspect.signature(kind).parameters,
                *inspect.signature(InstanceData).parameters,
            }
            keys |= {f"data.init_args.{name}" for name in names - {"options"}}
        raise InputError(explain(str(error), sorted(keys))) from error


def make_data(parser: ArgumentParser, options: Namespace) -> InstanceData:
    """The data module that the options describe."""
    try:
        return parser.instantiate(options).data
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"data: {own_line(error)}") from error


def make_task(options: Namespace, data: InstanceData) -> InstanceSegmentation:
    """The network that the options describe, made for the classes of the data, and its task."""
    try:
        model = MaskRcnnFsa(
            **_plain(options.model),
            num_classes=data.num_classes,
            classes=data.classes,
            category_ids=data.category_ids,
        )
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"model: {' '.join(str(error).split())}") from error
    return InstanceSegmentation(model, classes=data.classes, **_plain(options.task))


def names_instances(given: Sequence[str]) -> bool:
    """Whether a command line, or the file it gives, names data of instances."""
    name = value_of(list(given), "--data") or value_of(list(given), "--data.class_path")
    for config in config_files(given) if name is None else ():
        name = _data_class(config) or name
    return is_instance_data(name)


def is_instance_data(name: str | None) -> bool:
    """Whether a class path, or a class name alone, is one of the data modules here."""
    if name is None:
        return False
    names = {kind.__name__ for kind in _DATA}
    return name.rsplit(".", 1)[-1] in names


def _data_class(config: str) -> str | None:
    try:
        return str(read_recipe(config)["data"]["class_path"])
    except (InputError, KeyError, TypeError):
        return None  # whoever reads the file next says what is wrong with it
