"""YAML as data: what a recipe or an option may hold, read quickly and with bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from fsanet.errors import InputError, one_line, printable
from fsanet.inputs import read_text

__all__ = ["UnsafeYaml", "load_yaml", "read_yaml"]

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?").fullmatch
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UnsafeYaml(InputError):
    """Text that is not YAML, or uses more of YAML than data need."""


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The content of a YAML file of options.

    Raises:
        InputError: no such file, above 1 MB, not YAML, more of YAML than data need, or no mapping.
    """
    text = read_text(file, "YAML", _MAX_BYTES)
    try:
        content = load_yaml(text, classes=(["model"], ["data"]))
    except UnsafeYaml as error:
        raise InputError(f"{file}: not readable as YAML ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no options; write 'option: value' lines")
    return content


def load_yaml(text: str, *, classes: Sequence[list[str]] = ()) -> Any:
    """Read YAML text, such as the value of an option.

    Args:
        text: of at most 1 MB.
        classes: the keys, from the top, whose mappings may have ``class_path``.

    Raises:
        UnsafeYaml: not YAML; or anchors, tags, deep nesting, a number in base 60, a key that is
            repeated or no text, or ``class_path`` where no class belongs.
    """
    if len(text) > _MAX_BYTES:
        raise UnsafeYaml("longer than 1 MB")
    try:
        for keys in _mappings(text):
            if keys[-1] == "class_path" and keys[:-1] not in classes:
                raise UnsafeYaml("class_path: only model and data name a class")
        content = get_loader("yaml")(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number out of range
        if isinstance(error, UnsafeYaml):
            raise
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UnsafeYaml(f"{line}{problem or one_line(error)}") from error
    _check_keys(content)
    return content


def _mappings(text: str) -> Iterator[list[str]]:
    """Yield each key with those above it, from YAML's events, which take no memory.

    Raises:
        UnsafeYaml: what only the events show: anchors, tags, nesting, repeated keys.
    """
    # For each open collection: its keys so far and the present one, or None for a sequence.
    stack: list[tuple[set[str], list[str]] | None] = []

    def begin_value() -> None:
        if stack and stack[-1] is not None and not stack[-1][1]:
            raise UnsafeYaml("a key is a list or a mapping; write text")

    def end_value() -> None:
        if stack and stack[-1] is not None:
            stack[-1][1].clear()

    for event in yaml.parse(text, Loader=_Loader):
        line = f"line {event.start_mark.line + 1}: "  # type: ignore[union-attr]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UnsafeYaml(f"{line}anchors and aliases (& and *) are not supported")
        tag = getattr(event, "tag", None)
        if tag:
            raise UnsafeYaml(f"{line}tags such as {printable(tag)} are not supported")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _BASE_60(event.value):
            raise UnsafeYaml(
                f"{line}{printable(event.value)} is a number in base 60 to YAML; write text in "
                "quotes, and bands of frequencies as lists: k: [[4, 8], [4, 8]]"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            begin_value()
            stack.append((set(), []) if isinstance(event, yaml.MappingStartEvent) else None)
            if len(stack) > _MAX_DEPTH:
                raise UnsafeYaml(f"{line}nested more than {_MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            end_value()
        elif isinstance(event, yaml.ScalarEvent) and stack and stack[-1] is not None:
            seen, key = stack[-1]
            if key:
                end_value()
                continue
            if event.value in seen:
                raise UnsafeYaml(f"{line}{printable(event.value)!r} is given twice")
            seen.add(event.value)
            key.append(event.value)
            yield [part for level in stack if level for part in level[1]]


def _check_keys(content: Any) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise UnsafeYaml(f"key {key!r} is not text; write it in quotes")
            _check_keys(value)
    elif isinstance(content, list):
        for value in content:
            _check_keys(value)
