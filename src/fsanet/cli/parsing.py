"""The dialect that all commands share, on top of jsonargparse: options come from signatures.

* Long options with hyphens; underscores are accepted too: ``--batch-size``, ``--batch_size``.
* Flags with and without a value, and negated: ``--flip``, ``--flip false``, ``--no-legend``.
* Several values after an option: ``--window 512 1024`` or ``--window [512,1024]``.
* Bands of frequencies: ``--k 8``, ``--k 8,6``, ``--k 4:8``, ``--k 0:8,2:6``, ``--k all``.

Wrong options raise `InputError` with jsonargparse's own message on one line.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from fsanet.errors import InputError

__all__ = ["CommandParser", "available_device", "call", "one_line", "parse", "read_band"]


def call(command: str, function: Callable[..., int], arguments: Sequence[str]) -> int:
    """Call a function with the options that `parse` finds."""
    return function(**parse(command, function, arguments))


def parse(command: str, function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Parse options by the signature of a function, whose docstring is the help.

    Parameters before the ``*`` become positional arguments, those annotated ``list[...]`` take
    one value or more.

    Args:
        command: its name on the command line.
        function: what the command does; returns the exit code.
        arguments: of the command line, without the command.

    Returns:
        the arguments for the function.

    Raises:
        InputError: wrong options, in one line.
    """
    documentation = docstring_parser.parse(function.__doc__ or "")
    parser = CommandParser(command, documentation.description or "")
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    lists: set[str | int] = set()
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        is_positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if is_positional and get_origin(parameter.annotation) is list:
            (item,) = get_args(parameter.annotation)
            parser.add_argument(name, nargs="+", type=item, help=helps.get(name))
            lists.add(name)
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=lists)
    return parser.parse(arguments).as_dict()


class CommandParser(ArgumentParser):
    """A jsonargparse parser for the dialect of this module.

    Args:
        command: name of the command.
        description: shown by ``--help``.
    """

    def __init__(self, command: str = "", description: str = "", **options: Any) -> None:
        own: dict[str, Any] = {
            "prog": f"fsanet {command}".strip(),
            "description": " ".join(description.split()),
        }
        own |= {"exit_on_error": False, "formatter_class": _HyphenFormatter}
        super().__init__(**(own | options))  # jsonargparse makes parsers of this class, too

    def parse(self, arguments: Sequence[str], base: Namespace | None = None) -> Namespace:
        """Parse a command line.

        Args:
            arguments: without the name of the command.
            base: values parsed before, from a recipe for instance; ``arguments`` override them.

        Raises:
            InputError: wrong options, in one line.
        """
        try:
            return self.parse_args(self.translate(arguments), namespace=base)
        except ArgumentError as error:
            _, _, unknown = str(error).partition("nrecognized arguments: --")
            hint = self.suggest(unknown.split("=")[0].strip()) if unknown else ""
            raise InputError(one_line(error) + hint) from error

    def option_names(self) -> list[str]:
        """All options as declared: ``--batch_size``, ``--model.k``."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def suggest(self, name: str) -> str:
        """The nearest option to a wrong one, as the end of a message."""
        names = self.option_names()
        leaves = {option.lstrip("-").rpartition(".")[2]: option for option in names}
        near = difflib.get_close_matches(f"--{name}", names, 1, 0.7)
        near = near or [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, 1, 0.7)]
        return f"; did you mean {near[0].replace('_', '-')}?" if near else ""

    def translate(self, arguments: Sequence[str]) -> list[str]:
        """The same arguments as jsonargparse takes them: ``--name=value``, lists as JSON.

        Positional arguments come first.
        """
        left, positionals, options = list(arguments), list[str](), list[str]()
        while left:
            text = left.pop(0)
            if not text.startswith("--") or text == "--":
                (options if text.startswith("-") else positionals).append(text)
                continue
            name, equals, value = text.partition("=")
            name = "--" + name[2:].replace("-", "_")
            if f"{name}_" in self._option_string_actions:  # a keyword of Python, such as from
                name += "_"
            positive = name.replace("--no_", "--", 1)
            if positive != name and _takes(self._option_string_actions.get(positive)) == "flag":
                name, equals, value = positive, "=", "false"
            values = [value] if equals else []
            takes = _takes(self._option_string_actions.get(name))
            while left and not equals and _continues(takes, values, left[0]):
                values.append(left.pop(0))
            if takes == "flag" and not values:
                values = ["true"]
            if takes == "one" and name.rpartition(".")[2].lstrip("-") == "k" and values:
                values = [json.dumps(read_band(values[0]))]
            if takes == "texts" and values and values[0][:1] != "[":
                values = [json.dumps(values)]
            if len(values) > 1 or (takes == "numbers" and values and values[0][:1] != "["):
                values = [f"[{','.join(values)}]"]
            options.append(f"{name}={values[0]}" if values else name)
        return positionals + options


def read_band(text: str) -> Any:
    """A band of frequencies as written on the command line, as `Band.of` takes it.

    >>> read_band("8"), read_band("8,6"), read_band("4:8"), read_band("0:8,2:"), read_band("all")
    (8, [8, 6], [[4, 8], [4, 8]], [[0, 8], [2, None]], None)
    """
    if text in ("all", "null"):
        return None
    try:
        if text[:1] in "[(":
            return json.loads(text.replace("(", "[").replace(")", "]"))
        sides = [
            [int(number) if number else None for number in side.split(":")]
            for side in text.split(",")
        ]
    except ValueError:
        sides = []
    shape = [len(side) for side in sides]
    if shape == [2]:
        return sides * 2
    if shape == [2, 2]:
        return sides
    if shape in ([1], [1, 1]) and None not in (sides[0][0], sides[-1][0]):
        return sides[0][0] if len(sides) == 1 else [sides[0][0], sides[1][0]]
    raise InputError(
        f"k={text}: give a number (8), two (8,6), a range (4:8), two ranges (0:8,0:6), or all"
    )


def one_line(error: BaseException) -> str:
    """The message of the `InputError` that jsonargparse has wrapped, or its own on one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip().removeprefix("- ") for line in str(cause or error).splitlines()]
    # jsonargparse lists every type that a value was tried as; most say nothing about the mistake.
    told = [line for line in lines if not any(part in line for part in _UNINFORMATIVE)]
    return " ".join(" ".join(dict.fromkeys(told or lines)).split())


_UNINFORMATIVE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: [",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "does not correspond to a subclass of",
    "Given value type:",
    "NestedArg(",
)


class _HyphenFormatter(DefaultHelpFormatter):
    """Shows options with hyphens, without jsonargparse's ``--option+`` for appending."""

    def start_section(self, heading: str | None) -> None:
        """Names the group of options that only some of the possible classes take."""
        conditional = heading is not None and heading.startswith("Conditional arguments")
        super().start_section("options for some networks only" if conditional else heading)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        return re.sub(r"Conditional<ast-resolver> \{(.*), NOT_ACCEPTED\}", r"\1", text)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        needed = [
            f"--{action.dest.replace('_', '-').rstrip('-')} {action.dest.upper().rstrip('_')}"
            if action.option_strings
            else action.dest.upper() + (" ..." if action.nargs == "+" else "")
            for action in actions
            if action.required
        ]
        super().add_usage(usage or " ".join(["%(prog)s", *needed, "[options]"]), actions, groups)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = [name for name in action.option_strings if not name.endswith("+")]
        if not shown:
            return super()._format_action_invocation(action)
        names = [n if "." in n else n.replace("_", "-").rstrip("-") for n in shown]
        if action.nargs == 0 or _takes(action) == "flag":
            return ", ".join(names)
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(names)} {values}"


def _takes(action: argparse.Action | None) -> str:
    """What follows an option: "nothing", a "flag", "numbers", "texts", or "one" value."""
    if action is None:
        return "one"
    if action.nargs == 0:
        return "nothing"
    type_ = getattr(action, "_typehint", action.type)
    members = get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)
    if bool in members:
        return "flag"
    items = [get_args(member)[:1] for member in members if get_origin(member) in _SEQUENCES]
    if (str,) in items:
        return "texts"
    alone = any(member in (int, float) for member in members)
    return "numbers" if items and not alone else "one"


_SEQUENCES = (list, tuple, Sequence)


def _continues(takes: str, values: list[str], text: str) -> bool:
    """Whether ``text`` is the next value of an option that has ``values`` so far."""
    if takes == "nothing" or text.startswith("--"):
        return False
    if takes == "flag":
        return not values and text.lower() in ("true", "false")
    return not values or takes == "texts" or (_is_number(values[-1]) and _is_number(text))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def available_device(name: str | None) -> str:
    """``name``, or the device to use where none is given: a GPU if there is one.

    Raises:
        InputError: if this machine does not have it.
    """
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"--device {device}: not available ({line})") from error
    return device
