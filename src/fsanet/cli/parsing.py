"""What the commands share: a parser whose mistakes are one line, and a quiet console."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fsanet.errors import InputError

if TYPE_CHECKING:
    from fsanet.attention.dct import BandLike

__all__ = ["Parser", "available_device", "band_of", "has", "quiet", "side", "switches", "value_of"]

_PACKAGE = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    """Raises :class:`InputError` instead of ending the process."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(message)


def band_of(text: str) -> BandLike:
    """A band as written after ``--k``: ``8``, ``8,6``, ``0:8,0:6`` or ``all``.

    >>> band_of("8"), band_of("8,6"), band_of("0:8,2:6"), band_of("all")
    (8, (8, 6), ((0, 8), (2, 6)), None)
    """
    if text == "all":
        return None
    try:
        sides = [tuple(int(number) for number in part.split(":")) for part in text.split(",")]
    except ValueError:
        sides = []
    shape = [len(numbers) for numbers in sides]
    if shape == [1]:
        return sides[0][0]
    if shape == [1, 1]:
        return sides[0][0], sides[1][0]
    if shape == [2, 2]:
        return tuple(sides)
    raise InputError(f"--k {text}: give a side (8), two sides (8,6), ranges (0:8,0:6), or all")


def side(name: str, values: list[int] | None) -> int | tuple[int, int] | None:
    if values is None:
        return None
    if len(values) > 2:
        raise InputError(f"--{name} takes a side, or height and width; got {len(values)} numbers")
    return values[0] if len(values) == 1 else (values[0], values[1])


def has(given: list[str], option: str) -> bool:
    return any(text == option or text.startswith(option + "=") for text in given)


def value_of(given: list[str], option: str) -> str | None:
    for index, text in enumerate(given):
        if text.startswith(option + "="):
            return text.split("=", 1)[1]
        if text == option and index + 1 < len(given):
            return given[index + 1]
    return None


def switches(given: list[str], names: tuple[str, ...]) -> list[str]:
    result = []
    for index, text in enumerate(given):
        follows = given[index + 1].lower() if index + 1 < len(given) else ""
        result.append(
            f"{text}=true" if text in names and follows not in ("true", "false") else text
        )
    return result


def quiet() -> None:
    """Nothing on the console that the user neither asked for nor can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        r".*does not have many workers.*",
        r".*LeafSpec.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*GPU available but not used.*",
        r".*when logging on epoch level in distributed setting.*",  # they are equal already
    ):
        warnings.filterwarnings("ignore", message=pattern)
    warnings.formatwarning = _one_line


_FORMAT = warnings.formatwarning  # Python's own, for what is not ours


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning of this library without the place in its code, which is nothing to a user."""
    if Path(filename).is_relative_to(_PACKAGE):
        return f"fsanet: warning: {' '.join(str(message).split())}\n"
    return _FORMAT(message, category, filename, lineno, line)


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
