"""A saved folder: where it is, and what it says about its network before anything is built.

A folder may come from anyone. Its JSON files are read here, and nothing in them is ever a path, a
URL or code: names, types and sizes are checked against the signature of what they are for.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from fsanet.attention.dct import Band
from fsanet.errors import InputError, one_line, printable
from fsanet.inputs import read_json

__all__ = ["check_limits", "check_values", "find_file", "find_folder", "read_object"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FILES = ["config.json", "fsanet_conversion.json", "model.safetensors", "pytorch_model.bin"]
_LARGEST_FILE = 1_000_000  # bytes of a JSON file; those of real networks have a few thousand
_LONGEST = 65_536  # entries of a list
_LONGEST_TEXT = 1_000
_LARGEST = 65_536  # channels, classes, frequencies, pixels of a side, ...
# What every image is enlarged to, and what is no size at all.
_LARGEST_OF = {"min_size": 2_048, "max_size": 4_096, "category_ids": 2**53}

_KINDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Any: "plain values",
}


def find_folder(source: str | Path, **hub: Any) -> Path:
    """Return the folder that ``source`` names; the network with that hub id is downloaded.

    Args:
        source: a folder, or ``owner/name`` on the hub. A folder comes first.
        **hub: further arguments of `huggingface_hub.snapshot_download`.

    Raises:
        InputError: there is neither.
    """
    folder = Path(source)
    if str(source) and folder.is_dir():
        return folder
    if str(source) and folder.exists():
        raise InputError(f"{folder}: a file, not a folder written by save_pretrained")
    if not _HUB_ID.fullmatch(str(source)):
        raise InputError(f"{str(source)!r}: no such folder, and not a hub id (owner/name)")
    return _download(str(source), hub)


def _download(name: str, hub: dict[str, Any]) -> Path:
    """The files of a network on the hub, or in the hub's cache if it cannot be reached."""
    reason = "no such folder, and it is not in the cache of the hub"
    if not (hub.get("local_files_only") or constants.is_offline_mode()):
        try:  # one request without repetitions tells whether the hub and the network exist
            api = HfApi(token=hub.get("token"))
            hub["revision"] = api.model_info(name, revision=hub.get("revision"), timeout=5).sha
        except HfHubHTTPError as error:
            reason = f"no such folder, and the hub refuses it ({one_line(error)})"
        except Exception as error:  # whatever the HTTP client in use raises
            reason = f"no such folder, and the hub cannot be reached ({one_line(error)})"
        else:
            reason = ""
    hub["local_files_only"] = bool(reason)
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, **hub))
    except Exception as error:
        raise InputError(f"{name}: {reason or one_line(error)}") from error


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder, or None if there is none.

    Raises:
        InputError: it is no regular file, or a link that leads out of the folder.
    """
    file = folder / name
    if not file.is_file():
        if file.exists() or file.is_symlink():
            raise InputError(f"{file}: not a regular file; give a folder written by fsanet")
        return None
    home, real = folder.resolve(), file.resolve()
    # The cache of the hub keeps the files of a snapshot in a folder beside all snapshots.
    if real.parent not in (home, home.parent.parent / "blobs"):
        raise InputError(f"{file}: a link to a file outside its folder; copy that file into it")
    return file


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object of at most 1 MB, without nan and infinity.

    Raises:
        InputError: anything else.
    """
    content = read_json(file, "configuration", _LARGEST_FILE)
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: holds nan, infinity or text that is no Unicode") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no JSON object")
    return content


def check_limits(values: Mapping[str, Any], where: object) -> None:
    """Raise `InputError` where an argument of a network is beyond all measure."""
    for name, value in values.items():
        largest = _LARGEST_OF.get(name, _LARGEST)
        if _size(value) > largest:
            raise InputError(f"{where}: {name} is {_shown(value)}; at most {largest} is possible")


def check_values(values: Mapping[str, Any], target: type, where: object) -> None:
    """Check names, types and sizes of values by the signature of the class they are passed to.

    Args:
        values: by name of the argument.
        target: class with annotations. Its arguments without a default are required.
        where: what to name in errors, such as a file.

    Raises:
        InputError: an unknown or missing name, or a value of another type or beyond all measure.
    """
    constructor: Any = target.__init__  # type: ignore[misc]
    hints, variadic = get_type_hints(constructor), False
    parameters = dict(inspect.signature(constructor).parameters)
    del parameters["self"]
    for name, parameter in list(parameters.items()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            variadic = True  # the class of a user, which takes what it passes on
            del parameters[name]
    for name, value in values.items():
        if name not in parameters and not variadic:
            near = difflib.get_close_matches(name, parameters, 1)
            advice = f"did you mean '{near[0]}'?" if near else "a newer fsanet may know it"
            raise InputError(f"{where}: unknown key '{printable(name)}'; {advice}")
        hint = hints.get(name, Any)
        try:
            fits = _matches(value, hint)
        except RecursionError as error:
            raise InputError(f"{where}: {name} is nested too deeply") from error
        if not fits:
            raise InputError(f"{where}: {name} is {_shown(value)}; expected {_kind(hint)}")
    check_limits(values, where)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            raise InputError(f"{where}: {name} is missing")


def _matches(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type. A bool is no int, and nan is no number."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        kinds = (NoneType, bool, int, float, str, Sequence[Any], dict[str, Any])
        return any(_matches(value, kind) for kind in kinds)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return _is_list(value) and len(value) == len(inner) and all(map(_matches, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(
            _matches(key, inner[0]) and _matches(entry, inner[1]) for key, entry in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _is_list(value) and all(_matches(entry, inner[0]) for entry in value)
    if inner:  # a union
        return any(_matches(value, kind) for kind in inner)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str) and len(value) <= _LONGEST_TEXT
    return type(value) is hint


def _kind(hint: Any) -> str:
    """An annotated type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(inner)
    if origin is tuple:
        return f"a list of {len(inner)} numbers"
    if origin is dict:
        return f"an object of {_kind(inner[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_kind(inner[0])}"
    if inner:
        return " or ".join(_kind(kind) for kind in inner if kind is not Band)
    return _KINDS.get(hint, str(hint))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | range) and len(value) <= _LONGEST


def _size(value: Any) -> int:
    """The largest absolute value of the whole numbers in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return max(map(_size, value), default=0)
    return abs(value) if isinstance(value, int) else 0


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
