"""Option files that build on others: a recipe says only what it changes.

A YAML file may name one or several files that it starts from, relative to itself:

    base: [base/cityscapes.yaml, base/resnet101.yaml]
    model:
      k: 5

Mappings are merged key by key; the later file wins, and the file itself is the last. A
``class_path`` other than the base's takes the base's ``init_args`` away: they are those of another
class. Lists and values are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fsanet.errors import InputError

__all__ = ["config_files", "given_values", "merged", "read_recipe", "resolved"]

_BASE = "base"


def read_recipe(path: str | Path) -> dict[str, Any]:
    """What a file says together with all it builds on.

    Raises:
        InputError: a file is missing or no mapping in YAML, or builds on itself.
    """
    return _read(Path(path), ())


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, both left as they are.

    >>> merged({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}})
    {'a': {'b': 1, 'c': [3]}}
    >>> merged({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B"})
    {'class_path': 'B'}
    """
    named = base.get("class_path")
    other_class = named is not None and changes.get("class_path", named) != named
    result = {key: value for key, value in base.items() if not (other_class and key == "init_args")}
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def resolved(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments in which files that build on others are replaced by what they say."""
    result = list(arguments)
    for index, (before, text) in enumerate(zip(["", *arguments], arguments, strict=False)):
        joined = "--config=" if text.startswith("--config=") else ""
        value = text.removeprefix(joined)
        if (joined or before == "--config") and _builds_on_others(value):
            result[index] = joined + yaml.safe_dump(read_recipe(value), sort_keys=False)
    return result


def config_files(arguments: Sequence[str]) -> list[str]:
    """Every value given to ``--config``."""
    return given_values(arguments, "--config")


def given_values(arguments: Sequence[str], option: str) -> list[str]:
    """Every value given to ``option``, as ``--option value`` or ``--option=value``.

    >>> given_values(["--k=3", "x", "--k", "4"], "--k")
    ['3', '4']
    """
    pairs = zip(arguments, [*arguments, ""][1:], strict=True)
    return [
        text.split("=", 1)[1] if text.startswith(option + "=") else following
        for text, following in pairs
        if text == option or text.startswith(option + "=")
    ]


def _builds_on_others(path: str) -> bool:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # the parser says what is wrong with it
    return isinstance(content, dict) and _BASE in content


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    place = path.resolve()
    if place in above:
        chain = " -> ".join(str(file) for file in (*above, place))
        raise InputError(f"{path}: builds on itself ({chain}); take one 'base' out")
    by = f" (a base of {above[-1]})" if above else ""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: no such file{by}; 'base' is relative to its file") from error
    except (ValueError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"{path}: not readable as YAML ({line})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no options; write 'option: value' lines")
    bases = content.pop(_BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise InputError(f"{path}: 'base' is {bases!r}; give a file, or a list of files")
    result: dict[str, Any] = {}
    for base in bases:
        result = merged(result, _read(path.parent / base, (*above, place)))
    return merged(result, content)
