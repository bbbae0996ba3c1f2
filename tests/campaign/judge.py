"""What may be said of a command that was given a hostile input, and of what it left behind."""

from __future__ import annotations

import json
import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from campaign.case import Case

SLOWEST = 20.0  # seconds of processor time of a refused input
TORCH_CACHES = ("home/torchinductor", "home/.cache")  # what torch.export leaves by design
LARGEST = 1500  # MiB more than an idle process


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """Kind, size and time of change of everything in a folder; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            entry = os.lstat(path)
            is_folder = stat.S_ISDIR(entry.st_mode)
            state = (entry.st_size, entry.st_mtime_ns) if not is_folder else ()
            found[os.path.relpath(path, folder)] = (stat.S_IFMT(entry.st_mode), *state)
    return found


def judge(
    case: Case, ended: dict[str, Any], log: Path, before: dict[str, tuple[int, ...]]
) -> tuple[str, str]:
    """The class of outcome, "accepted" or "refused" if all is well, and what is the matter."""
    if ended["why"]:
        return ended["why"], f"ended after {ended['seconds']} s at {ended['peak']} MiB"
    said = (log / "stderr").read_text(errors="replace") if (log / "stderr").exists() else ""
    printed = (log / "stdout").read_text(errors="replace") if (log / "stdout").exists() else ""
    lines = [line for line in said.split("\n") if not line.startswith("fsanet: warning: ")]
    lines = lines[:-1] if lines[-1:] == [""] else lines
    if "Traceback (most recent call last)" in said + printed:
        return "traceback", lines[-1] if lines else ""
    if ended["code"] not in (0, 2):
        return f"exit code {ended['code']}", " / ".join(lines[-2:])
    if ended["cpu"] > SLOWEST:
        return "slow", f"{ended['cpu']} s"
    if ended["peak"] > LARGEST:
        return "memory", f"{ended['peak']} MiB"
    notes = (log / "notes").read_text().splitlines()
    if notes:
        return ("network" if notes[0].startswith("network") else "outside"), notes[0]
    changed = _changed(case, before)
    if changed:
        return "files", changed
    if ended["code"] == 2:
        return _judge_refusal(case, lines)
    if lines:
        return "noise", f"{len(lines)} lines: {lines[0]}"
    try:
        check_files(case.folder, before)
        case.check(case.folder)
    except Exception as error:
        return "wrong output", f"{type(error).__name__}: {error}"
    return "accepted", ""


def _judge_refusal(case: Case, lines: list[str]) -> tuple[str, str]:
    if len(lines) != 1:
        return "not one line", f"{len(lines)} lines: {' / '.join(lines[:3])}"
    (line,) = lines
    if not line.startswith("fsanet: error: "):
        return "not one line", line
    if not line.isprintable():
        return "control characters", repr(line)
    if len(line) > 1500:
        return "long line", f"{len(line)} characters: {line[:200]}"
    if "out of memory" in line:
        return "out of memory", line
    if case.names and not any(name in line for name in case.names):
        return "unnamed", f"{line} (expected {' or '.join(case.names)})"
    return "refused", line


def _changed(case: Case, before: dict[str, tuple[int, ...]]) -> str:
    """A file that should not be there, or is not as it was."""
    after = snapshot(case.folder)
    for name, state in after.items():
        if ".partial" in name:
            return f"left {name}"
        if name.split(os.sep)[0] in case.outputs or name.startswith(TORCH_CACHES):
            continue
        if name not in before:
            return f"made {name}"
        if before[name] != state:
            return f"changed {name}"
    gone = [
        name for name in before if name not in after and name.split(os.sep)[0] not in case.outputs
    ]
    return f"removed {gone[0]}" if gone else ""


# --- files that have to be whole


def check_files(folder: Path, before: dict[str, tuple[int, ...]]) -> None:
    """Raise if a file that the command made or changed is not whole."""
    for name, state in snapshot(folder).items():
        if before.get(name) == state or not stat.S_ISREG(state[0]):
            continue
        file = folder / name
        if file.suffix == ".json":
            strict_json(file)
        elif file.suffix == ".png":
            with Image.open(file) as image:
                image.load()
        elif file.suffix in (".yaml", ".yml"):
            yaml.safe_load(file.read_text(encoding="utf-8"))
        elif file.suffix in (".ckpt", ".zip", ".pt2"):
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
                assert bad is None, f"{name}: {bad}"
        elif file.suffix == ".safetensors":
            check_safetensors(file)


def strict_json(file: Path) -> Any:
    """The content of a JSON file, which holds no nan or infinity."""

    def refuse(text: str) -> None:
        raise ValueError(f"{file}: {text} is not JSON")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


def check_safetensors(file: Path) -> None:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tensors = json.loads(content[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    assert max(ends, default=0) == len(content) - 8 - length, f"{file}: cut off"


def check_prediction(folder: Path, *, classes: int = 3) -> None:
    """A folder of predictions: every image is counted, every mask is of valid ids and its size."""
    summary = strict_json(folder / "out" / "summary.json")
    contents = [strict_json(file) for file in (folder / "out").rglob("*.json")]
    records = [content for content in contents if "image" in content]
    good = [record for record in records if "error" not in record]
    assert len(good) == summary["images"] > 0, (len(good), summary["images"])
    assert len(records) - len(good) == len(summary["failed"])
    masks = [*(folder / "out").rglob("*_mask.png")]
    assert len(masks) == len(good)
    for file in masks:
        with Image.open(file) as image:
            ids = np.asarray(image)
            assert image.mode == "P", image.mode
        record = strict_json(file.with_name(file.name.replace("_mask.png", ".json")))
        assert ids.max() < classes, f"{file.name}: {ids.max()}"
        assert [record["height"], record["width"]] == list(ids.shape), file.name
        for entry in record["classes"]:
            assert entry["pixels"] == (ids == entry["id"]).sum(), (file.name, entry)


def check_run(folder: Path) -> None:
    """A run folder: options, metrics, checkpoint and model."""
    check_resumed(folder)
    for name in ("config.json", "model.safetensors"):
        assert (folder / "out" / "model" / name).is_file(), name


def check_resumed(folder: Path) -> None:
    """A run folder whose model was better before: the damage done to that one stays."""
    for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt"):
        assert (folder / "out" / name).is_file(), name


def check_scores(folder: Path) -> None:
    """Scores of an evaluation as JSON, between 0 and 1 and consistent with the classes."""
    scores = strict_json(folder / "scores.json")
    ious = [row["iou"] for row in scores["classes"].values() if row["iou"] is not None]
    assert ious
    assert abs(scores["miou"] - sum(ious) / len(ious)) < 1e-6, (scores["miou"], ious)
