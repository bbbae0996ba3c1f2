"""Opening what the user names: regular files of a sensible size, or an error of one line.

A pipe or a device would block or never end, so nothing is opened before it is known to be a file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fsanet.errors import InputError, one_line

__all__ = ["file_errors", "open_file", "read_json", "read_text", "reason"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | os.PathLike[str], what: str, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: the file, or a link to it.
        what: kind of file, such as "image", for messages.
        limit: largest size in bytes.

    Raises:
        InputError: the file is missing, unreadable, too large, or something else than a file.
    """
    path = Path(path)
    try:
        found = os.stat(path)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is not None:
            raise InputError(f"{path}: is {kind}; give {_article(what)} {what} file")
        if limit is not None and found.st_size > limit:
            raise InputError(
                f"{path}: {found.st_size / 1e6:.0f} MB; {_article(what)} {what} file of at most "
                f"{limit / 1e6:.0f} MB is read"
            )
        return path.open("rb")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise InputError(f"{path}: is a link to a file that does not exist") from error
        raise InputError(f"{path}: no such {what} file; check the path") from error
    except PermissionError as error:
        raise InputError(
            f"{path}: may not be read ({reason(error)}); check its permissions"
        ) from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {what} file cannot be opened ({reason(error)})") from error


def read_text(path: str | os.PathLike[str], what: str, limit: int = 100_000_000) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        InputError: see `open_file`; or the file is not UTF-8.
    """
    with open_file(path, what, limit) as stream:
        try:
            return stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: {what} file is not UTF-8 text ({one_line(error)})"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: {what} file cannot be read ({reason(error)})") from error


def read_json(path: str | os.PathLike[str], what: str, limit: int = 100_000_000) -> Any:
    """Read a JSON file.

    Raises:
        InputError: see `read_text`; or the file is no JSON, or nested too deeply.
    """
    text = read_text(path, what, limit)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{path}: {what} file is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{path}: {what} file is not JSON ({one_line(error)})") from error


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn an error of the operating system into an `InputError`; also a decorator."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """What an error says, on one line; operating-system errors without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error).rstrip(".")


def _article(what: str) -> str:
    return "an" if what[0] in "aeiou" else "a"
