from __future__ import annotations

import pytest

from fsanet.progress import ConsoleProgress


def test_lines_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with ConsoleProgress("images", clock=lambda: now) as progress:
        task = progress.add_task("predict", total=100, completed=20)
        for now in range(1, 64):  # noqa: B007  one image per second
            progress.update(task, advance=1)
    captured = capfd.readouterr()
    assert captured.out == ""
    # The 20 images of before are no part of the rate; 50 more take 50 s.
    assert captured.err.splitlines() == [
        "predict 50/100 images · 1 images/s · 0.8 min left",
        "predict 80/100 images · 1 images/s · 0.3 min left",
    ]


def test_one_phase_after_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with ConsoleProgress(clock=lambda: now) as progress:
        for title, count in [("warm-up", 3), ("rounds", 40)]:
            step = progress.watch(title, count)
            for _ in range(count):
                now += 1
                step("sdpa")
        assert len(progress.tasks) == 1
    assert capfd.readouterr().err.splitlines() == ["rounds 27/40 · 1/s · 0.2 min left"]


def test_bar_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ConsoleProgress("images") as progress:
        task = progress.add_task("predict", total=100, completed=20, current="a.png")
        progress.update(task, advance=30)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "50/100" in captured.err
    assert "a.png" in captured.err


@pytest.mark.parametrize("terminal", [False, True])
def test_silent(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    now = 0.0
    with ConsoleProgress(shown=False, clock=lambda: now) as progress:
        task = progress.add_task("predict", total=100)
        now = 100.0
        progress.update(task, advance=30)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
