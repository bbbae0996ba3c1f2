"""The dialect that all commands share, on top of jsonargparse: options come from signatures.

* Long options with hyphens; underscores are accepted too: ``--batch-size``, ``--batch_size``.
* Flags with and without a value, and negated: ``--flip``, ``--flip false``, ``--no-legend``.
* Several values after an option: ``--window 512 1024`` or ``--window [512,1024]``.
* Bands of frequencies: ``--k 8``, ``--k 8,6``, ``--k 4:8``, ``--k 0:8,2:6``, ``--k all``.

Wrong options raise `InputError` with jsonargparse's own message on one line. Values are YAML, read
by `fsanet.cli.yaml`, so that an option can do no more harm than a recipe. The help is in `help`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Sequence, Set
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, set_loader

from fsanet.cli.safe_yaml import UnsafeYaml, load_yaml
from fsanet.errors import InputError, is_unicode, printable

__all__ = ["CommandParser", "available_device", "call", "parse", "parse_message", "read_band"]

set_loader("safe", load_yaml, (UnsafeYaml,))


def call(
    function: Callable[..., int], arguments: Sequence[str], skip: Set[str] = frozenset()
) -> int:
    """Call a function with the options that `parse` finds."""
    return function(**parse(function, arguments, skip))


def parse(
    function: Callable[..., Any], arguments: Sequence[str], skip: Set[str] = frozenset()
) -> dict[str, Any]:
    """Parse options by the signature of a function.

    Parameters before the ``*`` become positional arguments, those annotated ``list[...]`` take
    one value or more.

    Args:
        function: what the command does.
        arguments: of the command line, without the command.
        skip: parameters that are no options.

    Returns:
        the arguments for the function.

    Raises:
        InputError: wrong options, in one line.
    """
    parser = CommandParser()
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip={*skip})
    return parser.parse(arguments).as_dict()


class CommandParser(ArgumentParser):
    """A jsonargparse parser for the dialect of this module."""

    def __init__(self, **options: Any) -> None:
        # jsonargparse makes parsers of this class, too.
        own: dict[str, Any] = {"prog": "fsanet", "exit_on_error": False, "parser_mode": "safe"}
        super().__init__(**(own | options))

    def parse(self, arguments: Sequence[str], base: Namespace | None = None) -> Namespace:
        """Parse a command line.

        Args:
            arguments: without the name of the command.
            base: values parsed before, from a recipe for instance; ``arguments`` override them.

        Raises:
            InputError: wrong options, in one line.
        """
        try:
            options = self.parse_args(self.translate(arguments), namespace=base)
            self.validate(options, skip_unset=False)
            return options
        except Exception as error:  # whatever it is, the options have caused it
            _, _, unknown = str(error).partition("nrecognized arguments: --")
            hint = self.suggest(unknown.split("=")[0].strip()) if unknown else ""
            raise InputError(parse_message(error) + hint) from error

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

        Positional arguments come first; ``--model X`` is one where the command declares it as one.
        """
        left, positionals, options = list(arguments), list[str](), list[str]()
        declared = {f"--{action.dest}" for action in self._actions if not action.option_strings}
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
            if name == "--data.classes":  # declared by the class that another option may name
                takes = "texts"
            while left and not equals and _continues(takes, values, left[0]):
                values.append(left.pop(0))
            if name in declared and values:
                positionals[:0] = values
                continue
            if takes == "flag" and not values:
                values = ["true"]
            if takes == "one" and name.rpartition(".")[2].lstrip("-") == "k" and values:
                values = [json.dumps(read_band(values[0]))]
            if takes == "texts" and values and values[0][:1] != "[" and values != ["null"]:
                values = [json.dumps(values)]
            if len(values) > 1 or (takes == "numbers" and values and _is_number(values[0])):
                values = [f"[{','.join(values)}]"]
            known = self._option_string_actions
            if not values and name not in known and name.partition(".")[0] in known:
                # jsonargparse would name --model or --data alone.
                raise InputError(f"{text}: give a value")
            options.append(f"{name}={values[0]}" if values else name)
        takes_many = any(
            not action.option_strings and _takes(action) == "texts" for action in self._actions
        )
        if takes_many and positionals:
            for text in positionals:
                if not is_unicode(text):
                    raise InputError(
                        f"{text}: is not UTF-8 text; give the folder that it is in, or rename it"
                    )
            positionals = [json.dumps(positionals)]
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


def parse_message(error: BaseException) -> str:
    """The message of the `InputError` that jsonargparse has wrapped, or its own on one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    message = re.sub(r"Given value: (Namespace\(|\{).*", "", str(cause or error))  # all options
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    # jsonargparse lists every type that a value was tried as; most say nothing about the mistake.
    useful = [line for line in lines if not any(part in line for part in _UNINFORMATIVE)]
    return printable(" ".join(" ".join(dict.fromkeys(useful or lines)).split()), 500)


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
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"--device {device}: not available ({line})") from error
    return device
