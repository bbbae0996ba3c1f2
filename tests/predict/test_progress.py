from __future__ import annotations

import pytest

from fsanet.predict.progress import image_progress


def test_lines_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with image_progress(100, before=20, clock=lambda: now) as (advance, say):
        for seconds, done in ((0.0, 0), (10.0, 5), (31.0, 31), (40.0, 35), (61.0, 61)):
            now = seconds
            advance(done)
        say("not a picture")
    captured = capfd.readouterr()
    assert captured.out == ""
    # 31 in 31 s: the 20 of before are no part of the rate; 49 more take 49 s.
    assert captured.err.splitlines() == [
        "51/100 images · 1 images/s · 0.8 min left",
        "81/100 images · 1 images/s · 0.3 min left",
    ]


def test_bar_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with image_progress(100, before=20) as (advance, say):
        advance(30)
        say("[bold]no markup")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "50/100" in captured.err
    assert "skipped: [bold]no markup" in captured.err


def test_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with image_progress(100, shown=False) as (advance, say):
        advance(30)
        say("nothing")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
