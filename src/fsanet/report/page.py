"""One self-contained HTML page about a run: pictures are embedded, nothing is loaded."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from fsanet.files import write_text

__all__ = ["ClassResult", "Example", "Report", "Section", "html_page", "write_report"]

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassResult:
    """A row of the table of classes; fractions in 0..1, None where nothing was measured.

    ``compared`` is the IoU of the network that the report compares with.
    """

    name: str
    colour: Colour
    iou: float | None
    accuracy: float | None
    pixels: int
    compared: float | None = None


@dataclass(frozen=True)
class Example:
    """Pictures of one image side by side, each with its name, and a caption."""

    pictures: Sequence[tuple[str, Image.Image]]
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, a legend, pictures with a line below each, a table.

    Attributes:
        title: heading.
        text: paragraphs.
        pictures: (line below it, picture).
        header: of the table.
        rows: of the table; the first column is aligned left.
        legend: names and colours of the classes in the pictures.
    """

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[tuple[str, Image.Image]] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    legend: Sequence[tuple[str, Colour]] = ()


@dataclass(frozen=True)
class Report:
    """The content of the page. All text is escaped, so class names may hold anything.

    Attributes:
        title: heading and window title.
        lead: paragraphs below the heading.
        figures: headline numbers, as (value, description).
        classes: rows of the table of classes.
        compared_with: name of the network that the table compares with, if there is one.
        curves: training curves as pairs of PNG files, for the light and the dark colour scheme.
        examples: images with labels and predictions side by side.
        sections: further parts.
        settings: what was run, by name.
        environment: machine and versions, by name.
        next_steps: suggested commands, as (description, command line).
    """

    title: str
    lead: Sequence[str]
    figures: Sequence[tuple[str, str]]
    classes: Sequence[ClassResult]
    compared_with: str = ""
    curves: Sequence[tuple[bytes, bytes]] = ()
    examples: Sequence[Example] = ()
    sections: Sequence[Section] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    next_steps: Sequence[tuple[str, str]] = ()


def write_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write the page as one file, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    return write_text(path, html_page(report))


def html_page(report: Report) -> str:
    """The page as HTML5 text with light and dark colours, without scripts or outside resources."""
    environment = Environment(
        loader=PackageLoader("fsanet.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": _percent, "data_uri": _data_uri}
    return environment.get_template("page.html").render(vars(report))


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def _data_uri(picture: Image.Image | bytes) -> str:
    if isinstance(picture, Image.Image):
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True)
        picture = stream.getvalue()
    return "data:image/png;base64," + base64.b64encode(picture).decode()
