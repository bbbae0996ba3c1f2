"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fsanet.errors import InputError


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Create or replace ``path`` with what ``write(stream)`` puts out; folders are created.

    The content goes to a temporary file beside the target, which then takes its place: a reader
    sees the old file or the new one, and a failure leaves the old one alone.

    Raises:
        InputError: the place cannot be written to.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = partial.open("xb")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); check the path") from error
    try:
        with stream:
            write(stream)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """`write_whole` for UTF-8 text."""
    return write_whole(path, lambda stream: stream.write(text.encode()))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """`write_whole` for JSON; infinities and nan are an error, because JSON has none."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
