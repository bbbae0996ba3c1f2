"""`fsanet serve`: what surrounds the page, which tests/report/test_serve.py opens."""

import signal

import pytest
from support.tiny import small_fsanet

from fsanet.cli.main import main
from fsanet.signals import Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page(monkeypatch, tmp_path, capsys, number):
    class Page:
        ended = False

        def __init__(self, models, **options):
            pass

        def start(self, port):
            return f"http://127.0.0.1:{port}/"

        def wait(self):
            raise Interrupted(number)

        def stop(self):
            Page.ended = True

    monkeypatch.setattr("fsanet.report.serve.Page", Page)
    small_fsanet().save_pretrained(tmp_path / "net")
    arguments = ["serve", "--model", str(tmp_path / "net"), "--device", "cpu"]
    assert main(arguments) == 128 + number
    assert Page.ended
    said = capsys.readouterr()
    assert said.out == "open http://127.0.0.1:7860/ in a browser; Ctrl-C ends it\n"
    assert said.err == "fsanet: interrupted\n"
