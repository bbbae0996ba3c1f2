"""The commands of pages in docs/ run as they stand, in their order."""

import re
import shlex
import signal
from pathlib import Path

import pytest

from fsanet.cli import main as cli
from fsanet.cost import Outcome
from fsanet.report import demo, demo_recipe

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page, language):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def short_demo(monkeypatch):
    """`fsanet demo` with two steps on small scenes; all other commands are as they stand."""
    monkeypatch.setattr(demo_recipe, "LENGTHS", {"train": 4, "val": 2, "test": 3})
    monkeypatch.setattr(demo_recipe, "SIZE", (48, 128))
    monkeypatch.setattr(demo_recipe, "BATCH", 2)
    monkeypatch.setattr(demo, "EXAMPLES", 1)
    run = demo.run_demo
    monkeypatch.setattr(demo, "run_demo", lambda *a, **options: run(*a, **options | {"steps": 2}))


@pytest.fixture
def ended_at_once(monkeypatch):
    """`fsanet serve` on any free port, ended as with Ctrl-C as soon as it serves."""
    from fsanet.report.serve import Page

    def interrupt(page):
        raise KeyboardInterrupt

    start = Page.start
    monkeypatch.setattr(Page, "start", lambda page, port: start(page, None))
    monkeypatch.setattr(Page, "wait", interrupt)


def run_commands(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = []
    for line in "".join(blocks(page, "sh")).splitlines():
        if line not in done:
            run_command(line)
        done.append(line)
    return done


def run_command(line):
    program, *arguments = shlex.split(line)
    assert program == "fsanet"
    expected = 128 + signal.SIGINT if arguments[0] == "serve" else 0  # see ended_at_once
    assert cli.main(arguments) == expected, line


@pytest.mark.slow
def test_explanation(tmp_path, monkeypatch, short_demo):
    pytest.importorskip("captum")
    done = run_commands("explanation.md", tmp_path, monkeypatch)
    assert any(line.startswith("fsanet explain") for line in done)
    assert (tmp_path / "why/report.html").is_file()
    for code in blocks("explanation.md", "python"):
        exec(compile(code, "explanation.md", "exec"), {})


@pytest.mark.slow
def test_serving(tmp_path, monkeypatch, capsys, short_demo, ended_at_once):
    pytest.importorskip("gradio")
    done = run_commands("serving.md", tmp_path, monkeypatch)
    assert sum(line.startswith("fsanet serve") for line in done) == 2
    assert capsys.readouterr().out.count("open http://127.0.0.1:") == 2


@pytest.mark.slow
def test_first_steps(tmp_path, monkeypatch, short_demo):
    done = run_commands("getting_started.md", tmp_path, monkeypatch)
    assert len(done) == 5
    assert list((tmp_path / "out").glob("*_overlay.png"))


def test_the_layer_in_a_network_of_ones_own(capsys):
    (code,) = blocks("getting_started.md", "python")
    exec(compile(code, "getting_started.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([2, 5, 24, 40])\n"


def test_the_site_has_every_page():
    text = (DOCS / "index.md").read_text(encoding="utf-8") + (DOCS / "api/index.md").read_text()
    pages = {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md")}
    pages |= {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.ipynb")}
    listed = {Path(line) for line in text.splitlines()}
    listed |= {Path("api", line) for line in text.splitlines()} | {Path("index")}
    assert {str(page) for page in pages - listed} == set()


def test_links_between_pages_lead_somewhere():
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"""\]\(([^)#:\s]+)[)#]|src="([^":]+)\"""", text):
            link = "".join(link)
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def run_page(page, folder, monkeypatch):
    """Commands and code of a page, in their order."""
    monkeypatch.chdir(folder)
    text = (DOCS / page).read_text(encoding="utf-8")
    for language, block in re.findall(
        r"^```(sh|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            exec(compile(block, page, "exec"), {})
            continue
        for line in block.splitlines():
            run_command(line)


@pytest.mark.slow
def test_huggingface(tmp_path, monkeypatch, capsys, short_demo):
    pytest.importorskip("transformers")
    run_page("huggingface.md", tmp_path, monkeypatch)
    assert "(128, 48)" in capsys.readouterr().out  # size of a mask
    assert "license: cc-by-nc-4.0" in (tmp_path / "mine/README.md").read_text()


@pytest.mark.slow
def test_deployment(tmp_path, monkeypatch, capsys, short_demo):
    pytest.importorskip("onnxscript")
    pytest.importorskip("av")
    from fsanet.predict import compare

    # The measurement takes minutes: tests/predict/test_compare.py.
    monkeypatch.setattr(compare, "run_isolated", lambda *a, **k: Outcome({}, "start", "skipped"))
    run_page("deployment.md", tmp_path, monkeypatch)
    assert {file.name for file in tmp_path.glob("*.mp4")} == {"clip.mp4", "out.mp4"}
    assert len(list(tmp_path.glob("frames/*_mask.png"))) == 12
    assert "OpenVINO" in capsys.readouterr().out
