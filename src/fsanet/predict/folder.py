"""Prediction of many images into a folder, by one process or by many that share the folder.

The folder is the only state. The list of images is cut into batches once; process r of n predicts
the batches r, r + n, r + 2n, ... so that the files do not depend on n. An image is done when its
JSON file is there, which is written after its pictures and names the model, the settings and the
image file that it was made from. The process that finds every image done writes ``summary.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fsanet.convert import load_model
from fsanet.data.images import locate_images
from fsanet.errors import InputError
from fsanet.files import environment, write_json
from fsanet.predict.draw import check_alpha
from fsanet.predict.launch import this_process
from fsanet.predict.predictor import ImagePredictor, make_predictor
from fsanet.progress import ConsoleProgress

__all__ = ["predict_folder", "remove_results", "result_stems"]

SUMMARY = "summary.json"
_PNG_END = b"IEND\xaeB`\x82"


def predict_folder(
    model: nn.Module | str | os.PathLike[str],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    recursive: bool = True,
    alpha: float = 0.5,
    legend: bool = True,
    overlay: bool = True,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any] | None:
    """Predict files and folders, and write masks, overlays and summaries.

    Writes for each image a PNG of class ids (or numbers of instances), an overlay and a JSON file,
    and for all of them ``summary.json`` (and ``results.json`` in COCO's format for instances).
    Sub-folders are kept, so that files of the same name do not collide. An unreadable image is
    reported in the summary, and the others are still predicted.

    Processes started by torchrun or SLURM share the images; each has to be given the same
    arguments, apart from the device.

    Args:
        model: a network, or whatever `fsanet.load_model` opens.
        paths: image files, and folders of images.
        out: folder to write to, created if it does not exist; not one of the input folders.
        resume: keep what an earlier run with the same model and settings has finished.
        recursive: search sub-folders too.
        alpha: opacity of the classes in the overlay, 0 to 1.
        legend: name classes (or instances and their scores) in the overlay.
        overlay: write overlays.
        progress: show progress, as a bar on a terminal, else as a line every half minute.
        options: of `fsanet.predict.predictor.Predictor`, or of `Detector` for instances.

    Returns:
        The content of ``summary.json``; None if other processes are still working.

    Raises:
        InputError: no image, no model, a setting out of range or for another kind of network, a
            folder that is not writable, or, with ``resume``, results of another model or other
            settings.
    """
    check_alpha(alpha)
    predictor = make_predictor(load_model(model), **options)
    process, out = this_process(), Path(out)
    drawing = {"alpha": alpha, predictor.captions: legend} | ({} if overlay else {"overlay": False})
    settings, about = predictor.settings | drawing, predictor.describe_model()
    made = hashlib.sha256(json.dumps([settings, about], sort_keys=True).encode()).hexdigest()[:16]
    items = _list_items(paths, out, predictor.reserved, recursive=recursive)
    if resume:
        _check_same(out, settings, about)
    # Before the work: shows that the folder is writable, and what --resume has to compare with.
    running = {"images": 0, "state": "running", "settings": settings, "model": about}
    write_json(out / SUMMARY, running)

    # Batches are those of the whole list, because the last bits of a result depend on the images
    # that it is predicted together with. So a batch is done only as a whole.
    size = predictor.batch_size
    batches = [items[first : first + size] for first in range(0, len(items), size)]
    done = [resume and all(_is_done(item, out, made) for item in batch) for batch in batches]
    done_before = sum(len(batch) for batch, is_done in zip(batches, done, strict=True) if is_done)
    start = time.perf_counter()
    mine = range(process.rank, len(batches), process.world_size)
    todo = [batches[index] for index in mine if not done[index]]
    total = sum(len(batches[index]) for index in mine)
    with ConsoleProgress("images", shown=progress and process.rank == 0) as bar:
        task = bar.add_task("predict", total=total, completed=total - sum(map(len, todo)))
        for batch in todo:
            extra = {"model": about, "made": made}
            _predict_batch(predictor, batch, out, drawing, extra, bar)
            bar.update(task, advance=len(batch))
    seconds = time.perf_counter() - start

    failed: list[dict[str, str]] = []
    try:
        content = predictor.summarise(_records(items, out, made, failed), out)
    except _StillRunning:
        return None
    images = len(items) - len(failed)
    summary = {
        "images": images,
        **content,
        "failed": failed,
        "done_before": done_before,
        "seconds": round(seconds, 3),
        "images_per_second": round((images - done_before) / max(seconds, 1e-9), 3),
        "processes": process.world_size,
        "settings": settings | {"device": predictor.device.type},
        "model": about,
        "versions": environment(predictor.device),
    }
    write_json(out / SUMMARY, summary)
    return summary


def remove_results(out: Path) -> None:
    """Remove what `predict_folder` wrote, and folders that are empty then."""
    for path in [*out.rglob("*.json")]:
        for name in json.loads(path.read_text(encoding="utf-8")).get("files", {}).values():
            (path.parent / name).unlink(missing_ok=True)
        path.unlink()
    folders = [path for path in out.rglob("*") if path.is_dir()]
    for folder in [*sorted(folders, reverse=True), out]:  # inner ones first
        with contextlib.suppress(OSError):
            folder.rmdir()


class _Item(NamedTuple):
    """An image file, and the path of its results, without suffix, relative to the folder."""

    file: Path
    stem: Path


class _StillRunning(Exception):
    """Another process has not finished its images."""


def _predict_batch(
    predictor: ImagePredictor[Any],
    batch: Sequence[_Item],
    out: Path,
    drawing: dict[str, Any],
    extra: dict[str, Any],
    bar: ConsoleProgress,
) -> None:
    """Predict images together and write their results; the JSON file of each comes last."""
    stems = {item.file: item.stem for item in batch}
    # Before the files are read, so that a later change is noticed.
    inputs = {file: _input_state(file) for file in stems}

    def write_error(file: Path, error: InputError) -> None:
        record = {"image": str(file), "error": str(error), **extra, "files": {}}
        write_json(out / f"{stems[file]}.json", record)
        if not bar.disable:
            bar.console.print(f"skipped: {error}", markup=False, highlight=False)

    for result in predictor.predict_batch(list(stems), write_error):
        stem = stems[result.source]
        about = {
            "model": extra["model"],
            "input": inputs[result.source],
            "made": extra["made"],
            **predictor.record(result),
        }
        result.save(out / stem.parent, stem.name, **drawing, extra=about)


def _records(
    items: list[_Item], out: Path, made: str, failed: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """Yield the JSON content of every image; adds unreadable ones to ``failed`` instead."""
    for item in items:
        record = _read_record(item, out, made)
        if record is None:
            raise _StillRunning
        if "error" in record:
            failed.append({"image": record["image"], "error": record["error"]})
        else:
            yield record


def _is_done(item: _Item, out: Path, made: str) -> bool:
    record = _read_record(item, out, made)
    if record is None or "error" in record:
        return False  # what was unreadable is tried again
    return record.get("input") == _input_state(item.file)


def _read_record(item: _Item, out: Path, made: str) -> dict[str, Any] | None:
    """The JSON content of an image, if it belongs to this model and these settings and is whole."""
    folder = out / item.stem.parent
    try:
        record = json.loads((folder / f"{item.stem.name}.json").read_text(encoding="utf-8"))
        same = record["made"] == made and record["image"] == str(item.file)
        whole = same and all(_is_whole(folder / name) for name in record["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole else None


def _is_whole(picture: Path) -> bool:
    """Whether a PNG file has its end, which may be missing after a power failure."""
    with picture.open("rb") as stream:
        stream.seek(-len(_PNG_END), os.SEEK_END)
        return stream.read() == _PNG_END


def _input_state(file: Path) -> dict[str, int] | None:
    """What changes when a file does, as far as its folder's entry shows; None without a file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _check_same(out: Path, settings: dict[str, Any], model: dict[str, Any]) -> None:
    """Raise `InputError` unless the results in ``out`` come from this model and these settings."""
    file = out / SUMMARY
    advice = "leave out --resume to predict everything again, or give another --out"
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        old_settings, old_model = there["settings"], there["model"]
        old = f"{old_model.get('name')} {old_model['fingerprint']}"
    except FileNotFoundError:
        return  # nothing is done
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: does not say how its results were made; {advice}") from error
    for name, new in json.loads(json.dumps(settings)).items():
        if old_settings.get(name) != new:
            before = json.dumps(old_settings.get(name))
            raise InputError(
                f"{out}: holds results with {name} {before}, not {json.dumps(new)}; "
                f"give the same settings, or {advice}"
            )
    if old_model != json.loads(json.dumps(model)):
        raise InputError(
            f"{out}: holds results of another model ({old}, now {model['name']} "
            f"{model['fingerprint']}); {advice}"
        )


def _list_items(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: Path,
    reserved: tuple[str, ...],
    *,
    recursive: bool,
) -> list[_Item]:
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    target = out.resolve()
    if any(Path(path).is_dir() and Path(path).resolve() == target for path in paths):
        raise InputError(f"{out}: is an input folder as well; write to another one")
    # Results of an earlier run below an input folder are no input.
    located = [
        (file, relative)
        for file, relative in locate_images(paths, recursive=recursive)
        if target not in file.resolve().parents
    ]
    if not located:
        raise InputError(f"{out}: all given images are in the output folder; write to another one")
    stems = result_stems([relative for _, relative in located], reserved)
    return [_Item(file, stem) for (file, _), stem in zip(located, stems, strict=True)]


def result_stems(relatives: list[Path], reserved: tuple[str, ...] = ("summary",)) -> list[Path]:
    """A distinct path for the results of each image, even where case is ignored.

    Args:
        relatives: paths of the images.
        reserved: paths that are taken.

    >>> [str(stem) for stem in result_stems([Path("a.png"), Path("b.png"), Path("b.jpg")])]
    ['a', 'b.png', 'b.jpg']
    """

    def key(stem: Path) -> str:
        return stem.as_posix().casefold()

    counts = Counter(key(relative.with_suffix("")) for relative in relatives)
    taken = set(reserved)
    stems = []
    for relative in relatives:
        stem = relative.with_suffix("")
        if counts[key(stem)] > 1 or key(stem) in taken:
            stem = relative  # a.png and a.jpg become a.png_mask.png and a.jpg_mask.png
        number = 2
        while key(stem) in taken:
            stem = relative.with_name(f"{relative.name}-{number}")
            number += 1
        taken.add(key(stem))
        stems.append(stem)
    return stems
