from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from fsanet.errors import InputError
from fsanet.files import write_json, write_text, write_whole


def test_content_and_folders(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a/b/c.txt", "grüß\n")
    assert path.read_bytes() == "grüß\n".encode()
    assert json.loads(write_json(tmp_path / "v.json", {"x": [1, None]}).read_text()) == {
        "x": [1, None]
    }
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["c.txt"]


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_text(tmp_path / "kept.txt", "old")

    def fails(stream: BinaryIO) -> None:
        stream.write(b"half of the n")
        stream.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fails)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "new.txt", fails)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_a_full_disk_is_an_input_error(tmp_path: Path) -> None:
    def full(stream: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"new\.txt: cannot be written \(No space left"):
        write_whole(tmp_path / "new.txt", full)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/x\.txt: cannot be written"):
        write_text(tmp_path / "file/x.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
