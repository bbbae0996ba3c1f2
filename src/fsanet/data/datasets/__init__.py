"""One file per data set: its classes, colours, layout, origin, reader and Lightning data module."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from fsanet.data.masks import Colour
from fsanet.errors import InputError


class LabelSet(NamedTuple):
    """Names of the classes, and an (r, g, b) in 0..255 for each."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]


#: Data sets that published checkpoints are trained on.
LABEL_SETS = ("cityscapes", "ade20k", "voc")


def label_set(name: str) -> LabelSet:
    """Names and colours of the classes of one of `LABEL_SETS`.

    Raises:
        InputError: the name is unknown.

    >>> label_set("voc").classes[:2]
    ('background', 'aeroplane')
    """
    if name not in LABEL_SETS:
        raise InputError(f"classes {name!r}: use one of {', '.join(LABEL_SETS)}")
    module = import_module(f"fsanet.data.datasets.{name}")
    return LabelSet(module.CLASSES, module.PALETTE)
