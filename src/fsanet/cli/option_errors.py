"""What jsonargparse says of a wrong option, as one line that names the nearest right one."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence

from jsonargparse import ArgumentParser

from fsanet.errors import InputError

__all__ = ["explain", "known_keys", "own_line", "subclasses"]


def known_keys(
    parser: ArgumentParser, models: Sequence[type], from_data: Iterable[str], data: type
) -> list[str]:
    """Every option's name with its group, those of a class that is named as in YAML.

    Args:
        parser: has the other options.
        models: networks that may be named ...
        from_data: ... and those of their arguments that are no options.
        data: base of the data modules that may be named.
    """
    keys = {action.dest for action in parser._actions if action.dest != "help"}
    keys.add("model.class_path")
    if "model" in keys:
        for network in models:
            names = set(inspect.signature(network).parameters) - set(from_data)
            keys |= {f"model.init_args.{name}" for name in names}
        keys.add("model.init_args")
    package = __name__.split(".")[0]
    for kind in subclasses(data):
        for base in kind.__mro__:
            if base.__module__.split(".")[0] == package:
                names = set(inspect.signature(base).parameters) - {"options"}
                keys |= {f"data.init_args.{name}" for name in names}
    return sorted(keys | {"data.class_path", "data.init_args"})


def subclasses(kind: type) -> list[type]:
    """The class itself, and all that are derived from it."""
    found = [kind]
    children: list[type] = type.__subclasses__(kind)
    for child in children:
        found += subclasses(child)
    return found


def own_line(error: BaseException) -> str:
    """The line of the `InputError` that jsonargparse has wrapped, or else all it says."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error if cause is None else cause).split())


def explain(
    message: str, keys: Iterable[str], *, models: Sequence[type], data: Sequence[type]
) -> str:
    """One line from what jsonargparse says in many, with the nearest key for an unknown one.

    Args:
        message: what it says.
        keys: of `known_keys`.
        models, data: classes that may be named.
    """
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
        names = ", ".join(kind.__name__ for kind in (data if key[1] == "data" else models))
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


def _suggestion(unknown: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(unknown, keys, 1, 0.7)
    if not near:  # the right name in the wrong group, or a group spelt wrong
        leaf = unknown.rsplit(".", 1)[-1]
        leaves = {key.rsplit(".", 1)[-1]: key for key in keys}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, list(leaves), 1, 0.7)]
    return f"; did you mean '{near[0]}'?" if near else "; see --help"
