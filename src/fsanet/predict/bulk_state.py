"""Which results in a folder are complete, and whether they may be gone on with.

An image is done when its JSON file is there, which is written after its pictures, each whole or not
at all: it names the settings, the model and the image file it was made with. ``summary.json`` says
from the beginning what the settings are.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from fsanet.errors import InputError
from fsanet.files import write_json

__all__ = [
    "SUMMARY",
    "Item",
    "Writer",
    "begin",
    "check_same",
    "check_shared",
    "finished",
    "input_state",
    "mark_of",
]

SUMMARY = "summary.json"
_SEEN_WITHIN = 60.0  # seconds after which network file systems show what others have written
_PNG_END = b"IEND\xaeB`\x82"


class Item(NamedTuple):
    """An image, and the start of its results' names, relative to the output folder."""

    file: Path
    stem: Path


class Writer(Protocol):
    """One kind of prediction.

    Attributes:
        batch_size: images that are predicted together.
        settings: what the files depend on, besides the model; values for JSON.
        model: of the model, its "fingerprint" among it; values for JSON.
        device: where it computes.
        reserved: names of files for all images, that no image's own may take.
    """

    batch_size: int
    settings: dict[str, Any]
    model: dict[str, Any]

    @property
    def reserved(self) -> tuple[str, ...]: ...
    @property
    def device(self) -> torch.device: ...

    def predict(
        self, files: Sequence[Path], on_error: Callable[[Path, InputError], object]
    ) -> Iterator[Any]:
        """Results of a batch of files, with their ``source``; those not readable left out."""

    def save(self, result: Any, folder: Path, stem: str, extra: dict[str, Any]) -> Any:
        """Write the files of a result, ``stem.json`` with ``extra`` in it last; its digest."""

    def digest(self, record: dict[str, Any]) -> Any:
        """Of what ``stem.json`` holds, what the summary needs."""

    def summary(self, out: Path, digests: Sequence[tuple[Item, Any]]) -> dict[str, Any]:
        """Part of the summary, from files and digests in the order of the files."""


def mark_of(writer: Writer) -> str:
    """Sixteen digits that stand for settings and model in the file of each image."""
    text = json.dumps([writer.settings, writer.model], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def input_state(file: Path) -> dict[str, int]:
    """What changes with a file, for a look at its folder's entry alone."""
    found = file.stat()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def begin(out: Path, writer: Writer, run: str) -> None:
    """Write what is going to be done; notices a folder that cannot be written to."""
    running = {"images": 0, "state": "running", "run": run}
    write_json(out / SUMMARY, running | {"settings": writer.settings, "model": writer.model})


def check_same(out: Path, writer: Writer) -> None:
    """Raises `InputError` unless what is in ``out`` can be gone on with."""
    file = out / SUMMARY
    again = "leave out --resume to predict all anew, or give another --out"
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        settings, model = there["settings"], there["model"]
        finger = model["fingerprint"]
    except FileNotFoundError:
        return  # nothing is done
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: does not say how its results were made; {again}") from error
    for name, now in json.loads(json.dumps(writer.settings)).items():
        if settings.get(name) != now:
            before = json.dumps(settings.get(name))
            raise InputError(
                f"{out}: holds results with {name} {before}, not {json.dumps(now)}; "
                f"give the same settings, or {again}"
            )
    if model != json.loads(json.dumps(writer.model)):
        raise InputError(
            f"{out}: holds results of another model ({model.get('name')} {finger}, now "
            f"{writer.model['name']} {writer.model['fingerprint']}); {again}"
        )


def finished(item: Item, out: Path, writer: Writer, mark: str) -> Any:
    """The digest of an image that is done, or None."""
    folder = out / item.stem.parent
    try:
        record = json.loads((folder / f"{item.stem.name}.json").read_text(encoding="utf-8"))
        same = (
            record["made"] == mark
            and record["image"] == str(item.file)
            and record["input"] == input_state(item.file)
            and all(_is_whole(folder / name) for name in record["files"].values())
        )
        return writer.digest(record) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_whole(picture: Path) -> bool:
    """Whether a file ends as a PNG does: after a power failure its end may be missing."""
    with picture.open("rb") as stream:
        stream.seek(-len(_PNG_END), os.SEEK_END)
        return stream.read() == _PNG_END


def check_shared(out: Path, run: str) -> None:
    """Raises `InputError` where this process does not see what the first one has written."""
    until = time.monotonic() + _SEEN_WITHIN
    while True:
        try:
            if json.loads((out / SUMMARY).read_text(encoding="utf-8"))["run"] == run:
                return
        except (OSError, ValueError, KeyError):
            pass
        if time.monotonic() > until:
            raise InputError(
                f"{out}: not the same folder for all processes; give one on a file system that "
                "all machines share, and start one command at a time on it"
            )
        time.sleep(0.5)
