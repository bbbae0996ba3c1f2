from __future__ import annotations

import base64
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsanet.errors import InputError
from fsanet.report.figures import History, draw_curves
from fsanet.report.page import ClassResult, Example, Report, Section, html_page, write_report

EVIL = "<script>alert(\"1\")</script> & 'co'"


class Page(HTMLParser):
    """Tags in order with their attributes, and that they are closed."""

    VOID = frozenset({"meta", "img", "source", "link", "br", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8))


@pytest.fixture(scope="module")
def report() -> Report:
    history = {"a": History(loss=((0, 2.0), (5, 1.0)), miou=((5, 0.4),))}
    return Report(
        title=f"Title {EVIL}",
        lead=[f"lead {EVIL}"],
        figures=[("83.2 %", f"figure {EVIL}")],
        classes=[
            ClassResult(f"class {EVIL}", (1, 2, 3), 0.5, 0.75, 30, 0.25),
            ClassResult("absent", (4, 5, 6), float("nan"), None, 0),
            ClassResult("other", (7, 8, 9), 1.0, 1.0, 90),
        ],
        compared_with=f"compared {EVIL}",
        curves=[(draw_curves(history), draw_curves(history, dark=True))],
        examples=[Example([("one", picture(0)), (f"name {EVIL}", picture(1))], f"caption {EVIL}")],
        sections=[
            Section(
                f"heading {EVIL}",
                [f"paragraph {EVIL}"],
                [(f"below {EVIL}", picture(2))],
                ["first", f"header {EVIL}"],
                [["row", f"cell {EVIL}"]],
            )
        ],
        settings={f"setting {EVIL}": EVIL},
        environment={"device": f"device {EVIL}"},
        next_steps=[(f"text {EVIL}", f"command {EVIL}")],
    )


def test_nothing_is_loaded_from_anywhere(report: Report) -> None:
    text = html_page(report)
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base", "video", "audio"}
    )
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[\w+/=]+", "", text))


def test_every_text_is_escaped_and_shown(report: Report) -> None:
    page = Page(html_page(report))
    parts = ("Title", "lead", "figure", "class", "caption", "setting", "device", "text", "compared")
    for part in (*parts, "name", "heading", "paragraph", "below", "header", "cell"):
        assert f"{part} {EVIL}" in page.text
    assert f"command {EVIL}" in page.text


def test_pictures_are_embedded_as_they_are(report: Report) -> None:
    page = Page(html_page(report))
    sources = [
        a.get("src") or a.get("srcset") or "" for tag, a in page.tags if tag in ("img", "source")
    ]
    pngs = [base64.b64decode(source.split(",", 1)[1]) for source in sources]
    assert (pngs[1], pngs[0]) == report.curves[0]
    assert len(pngs) == 5
    for png, seed in zip(pngs[2:], range(3), strict=True):
        with Image.open(io.BytesIO(png)) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(seed)))
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")


def test_table_values(report: Report) -> None:
    text = html_page(report)
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", text, re.DOTALL)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    assert cells.pop() == [
        html.escape(f"cell {EVIL}").replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    ]
    assert cells == [
        ["50.0 %", "25.0 %", "75.0 %", "25.0 %"],
        ["–", "–", "–", "0.0 %"],
        ["100.0 %", "–", "100.0 %", "75.0 %"],
    ]
    assert "width:50.0%" in rows[0]
    assert "width:0.0%" in rows[1]
    assert "rgb(1,2,3)" in rows[0]


def test_light_and_dark(report: Report) -> None:
    text = html_page(report)
    assert '<meta name="color-scheme" content="light dark">' in text
    assert text.count("prefers-color-scheme: dark") == 2  # colours, and the other curves


def test_empty_parts_are_left_out() -> None:
    text = html_page(Report(title="t", lead=[], figures=[], classes=[]))
    Page(text)
    assert "<h2>" not in text


def test_written_whole(report: Report, tmp_path: Path) -> None:
    path = write_report(report, tmp_path / "deep/report.html")
    assert path.read_text(encoding="utf-8") == html_page(report)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_report(report, tmp_path / "file/report.html")
