"""The one exception that the command line reports as a single line with exit code 2."""

from __future__ import annotations

import numbers
from collections.abc import Mapping


class InputError(ValueError):
    """The user's input is wrong.

    The message is a single line that says what was given, what is expected and what to do. Control
    characters in it, from names of files and classes, are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(escaped(message))


def check_ranges(values: Mapping[str, tuple[float, float, float]]) -> None:
    """`check_range` of several numbers, given as ``name: (value, lowest, highest)``."""
    for name, (value, low, high) in values.items():
        check_range(name, value, low, high)


def check_range(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Check that ``low <= value <= high``, or ``low < value <= high`` with ``above``.

    A lower bound that is an int takes whole numbers only; nan is in no range.

    Raises:
        InputError: out of the range, or no number.

    >>> check_range("batch_size", 0, 1, 10000)
    Traceback (most recent call last):
    ...
    fsanet.errors.InputError: batch_size=0: must be at least 1
    """
    kind = numbers.Integral if isinstance(low, int) else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        whole = "a whole" if kind is numbers.Integral else "a"
        raise InputError(f"{name}={value!r}: must be {whole} number")
    if not (low < value if above else low <= value):  # also for nan
        raise InputError(f"{name}={value}: must be {'above' if above else 'at least'} {low}")
    if value > high:
        raise InputError(f"{name}={value}: must be at most {high}")


def one_line(error: object) -> str:
    """The message of another library's error on one line, without control characters.

    >>> one_line(ValueError("a\\n  b\\x1b[31m"))
    'a b\\\\x1b[31m'
    """
    return printable(" ".join(str(error).split()), 200) or type(error).__name__


def printable(text: str, length: int = 100) -> str:
    """A name from a file, of at most ``length`` characters, with control characters escaped.

    >>> printable("wall\\n")
    'wall\\\\n'
    """
    return escaped(text if len(text) <= length else text[: length - 3] + "...")


def escaped(text: str) -> str:
    """The text with control characters escaped.

    >>> escaped("a\\x1b[31m.png")
    'a\\\\x1b[31m.png'
    """
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a surrogate pair.

    >>> is_unicode("a\\U0001f642"), is_unicode("a\\ud800")
    (True, False)
    """
    return text == text.encode(errors="ignore").decode()
