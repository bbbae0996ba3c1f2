from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

import fsanet.provenance
from fsanet.provenance import environment


def test_names_device_and_versions() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["device"].startswith("CPU (")
    assert re.search(r"\d+ cores", found["device"])
    assert all(isinstance(value, str) and value for value in found.values())


def test_commit_of_the_repository_it_is_tracked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    here = tmp_path / "provenance.py"
    here.write_text("1")
    monkeypatch.setattr(fsanet.provenance, "__file__", str(here))
    assert "commit" not in environment()
    git("init", "-q")
    assert "commit" not in environment()  # inside a repository that is not its own
    git("add", "provenance.py")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert environment()["commit"] == head[:12]
    here.write_text("2")
    assert environment()["commit"] == head[:12] + "+changes"
    monkeypatch.setenv("PATH", "")
    assert "commit" not in environment()
