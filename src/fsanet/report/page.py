"""One self-contained HTML page about a run: pictures inside, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from fsanet.files import write_text
from fsanet.report.style import STYLE

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassResult:
    """A row of the table; fractions in 0..1, None where there was nothing to measure."""

    name: str
    colour: Colour
    iou: float | None
    accuracy: float | None
    pixels: int


@dataclass(frozen=True)
class Example:
    """Three pictures of one size, and a line about them."""

    image: Image.Image
    truth: Image.Image
    prediction: Image.Image
    caption: str


@dataclass(frozen=True)
class Report:
    """All that is on the page; every text is escaped, so class names may hold anything.

    Attributes:
        title: heading and window title.
        lead: paragraphs below the heading.
        figures: the numbers to see first, (value, what it is).
        classes: rows of the table.
        curves: PNG file of the training curves for light pages.
        curves_dark: the same for dark pages.
        examples: image, truth and prediction.
        settings: what was run, by name.
        environment: what it ran on, by name.
        next_steps: (what it does, command line).
    """

    title: str
    lead: Sequence[str]
    figures: Sequence[tuple[str, str]]
    classes: Sequence[ClassResult]
    curves: bytes | None = None
    curves_dark: bytes | None = None
    examples: Sequence[Example] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    next_steps: Sequence[tuple[str, str]] = ()


def write_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write the page as one file, whole or not at all.

    Raises:
        InputError: the place cannot be written to.
    """
    return write_text(path, html_page(report))


def html_page(report: Report) -> str:
    """The page as text: HTML5, light and dark, no script, no outside resource."""
    sections = [
        _figures(report.figures),
        _section("Scores of each class", _class_table(report.classes)),
        _section("Training", _curves(report)) if report.curves else "",
        _section("Examples", _examples(report)) if report.examples else "",
        _section("What was run", _pairs(report.settings)) if report.settings else "",
        _section("What it ran on", _pairs(report.environment)) if report.environment else "",
        _section("Next", _next_steps(report.next_steps)) if report.next_steps else "",
    ]
    lead = "\n".join(f"<p>{escape(text)}</p>" for text in report.lead)
    body = "\n".join(section for section in sections if section)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(report.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{escape(report.title)}</h1>
{lead}
</header>
{body}
</main>
</body>
</html>
"""


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    if not figures:
        return ""
    tiles = "\n".join(
        f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for value, name in figures
    )
    return f'<dl class="figures">\n{tiles}\n</dl>'


def _class_table(classes: Sequence[ClassResult]) -> str:
    total = sum(row.pixels for row in classes)
    rows = []
    for row in classes:
        share = row.pixels / total if total else None
        rows.append(
            f'<tr><th scope="row">{_swatch(row.colour)}{escape(row.name)}</th>'
            f'<td class="bar"><i style="width:{100 * (row.iou or 0):.1f}%"></i></td>'
            f"<td>{_percent(row.iou)}</td><td>{_percent(row.accuracy)}</td>"
            f"<td>{_percent(share)}</td></tr>"
        )
    return (
        '<div class="scroll"><table>\n<thead><tr><th scope="col">class</th>'
        '<th scope="col" colspan="2">IoU</th><th scope="col">accuracy</th>'
        '<th scope="col">share of pixels</th></tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _curves(report: Report) -> str:
    if report.curves is None:
        return ""
    source = ""
    if report.curves_dark is not None:
        uri = _data_uri(report.curves_dark)
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{uri}">'
    return (
        f'<picture>{source}<img class="wide" src="{_data_uri(report.curves)}" '
        'alt="Training loss and validation mIoU against optimiser steps"></picture>'
    )


def _examples(report: Report) -> str:
    legend = "".join(f"<li>{_swatch(row.colour)}{escape(row.name)}</li>" for row in report.classes)
    parts = [f'<ul class="legend">{legend}</ul>']
    for example in report.examples:
        cells = "".join(
            f'<div><img src="{_data_uri(_png(picture))}" alt="{name}" '
            f'width="{picture.width}" height="{picture.height}"><span>{name}</span></div>'
            for name, picture in (
                ("image", example.image),
                ("truth", example.truth),
                ("prediction", example.prediction),
            )
        )
        caption = f"<figcaption>{escape(example.caption)}</figcaption>"
        parts.append(f'<figure><div class="triplet">{cells}</div>{caption}</figure>')
    return "\n".join(parts)


def _pairs(values: Mapping[str, object]) -> str:
    rows = "\n".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in values.items()
    )
    return f'<dl class="pairs">\n{rows}\n</dl>'


def _next_steps(steps: Sequence[tuple[str, str]]) -> str:
    items = "\n".join(
        f"<li>{escape(text)}<pre><code>{escape(command)}</code></pre></li>"
        for text, command in steps
    )
    return f'<ul class="next">\n{items}\n</ul>'


def _swatch(colour: Colour) -> str:
    red, green, blue = (int(value) for value in colour)
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
