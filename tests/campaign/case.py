"""One input of the campaign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def anything(folder: Path) -> None:
    """Nothing is expected besides files that are whole."""


@dataclass
class Case:
    """A command line, the folder it works in, and what may come of it.

    Attributes:
        folder: everything the command may read.
        command: arguments of fsanet; paths are relative to the folder.
        what: the input in words.
        names: of which an error line has to have one; none if there is nothing to name.
        check: raises if the output of an accepted input is wrong.
        outputs: what the command may make or change in the folder.
        area: what kind of input it is.
        number: with area and seed it makes the same input again.
    """

    folder: Path
    command: list[str]
    what: str
    names: tuple[str, ...] = ()
    check: Callable[[Path], None] = anything
    outputs: tuple[str, ...] = ("out",)
    area: str = ""
    number: int = 0
