"""Prediction of many images into a folder, by one process or by many that share the folder.

The folder is the only state. The list of images is cut into batches once; process r of n predicts
the batches r, r + n, r + 2n, ... so that the files do not depend on n. An image is done when its
JSON file is there, which is written after its pictures and names the model, the settings and the
image file that it was made from. The process that finds every image done writes ``summary.json``.

Threads read, predict and write images beside each other. Small images of one size share the cores
of a CPU, which costs less than having all cores wait for each other in every layer. On others, and
on a GPU, the network runs by itself, while other threads read and write.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fsanet.convert import load_model
from fsanet.data.images import image_size, locate_images, read_image
from fsanet.errors import InputError
from fsanet.files import check_writable, disk_error, environment, lock_folder, write_json
from fsanet.inputs import read_json
from fsanet.predict.draw import check_alpha
from fsanet.predict.launch import is_launched, this_process
from fsanet.predict.predictor import ImagePredictor, check_options, make_predictor
from fsanet.predict.workers import Workers
from fsanet.progress import ConsoleProgress

__all__ = ["predict_folder", "remove_results", "result_stems"]

SUMMARY = "summary.json"
_PNG_END = b"IEND\xaeB`\x82"
_KINDS = ("mask", "instances", "confidence", "overlay")  # of pictures
_LONGEST_NAME = 255  # bytes; of most file systems
_LARGEST_JSON = 10**9  # bytes

_MOST_PIXELS = 2**25  # of images that are read or not written yet; a larger image is alone
_MOST_COMPUTED = 2**21  # pixels in the network at once, if there is more than one batch

# Errors of the system that concern one file of results; others would meet the next file as well.
_FILE_ERRORS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ELOOP}


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
            folder that is not writable or holds files of these names that are no results, or, with
            ``resume``, results of another model or other settings.
    """
    check_alpha(alpha)
    check_options(options)
    out = Path(out)
    located = _locate(paths, out, recursive=recursive)
    check_writable(out)
    predictor = make_predictor(load_model(model), **options)
    drawing = {"alpha": alpha, predictor.captions: legend} | ({} if overlay else {"overlay": False})
    settings, about = predictor.settings | drawing, predictor.describe_model()
    made = hashlib.sha256(json.dumps([settings, about], sort_keys=True).encode()).hexdigest()[:16]
    stems = result_stems([relative for _, relative in located], predictor.reserved)
    items = [_Item(file, stem) for (file, _), stem in zip(located, stems, strict=True)]
    process = this_process()
    run = _Run(predictor, items, out, made, about, drawing)
    out.mkdir(parents=True, exist_ok=True)
    # The processes of one command share the folder; the one that has started them, or else the
    # first of them, keeps other commands out.
    shared = is_launched()
    lock = contextlib.nullcontext() if shared else lock_folder(out, "is being written")
    with lock, ConsoleProgress("images", shown=progress and process.rank == 0) as bar:
        if resume:
            _check_same(out, settings, about)
        elif process.world_size == 1:  # others may have begun to write
            _check_own(out, items)
        if process.rank == 0:  # what --resume has to compare with
            running = {"images": 0, "state": "running", "settings": settings, "model": about}
            write_json(out / SUMMARY, running)
        start = time.perf_counter()
        done_before = run.predict(bar, process.rank, process.world_size, resume=resume)
        seconds = time.perf_counter() - start
        found = run.collect()
        if found is None:
            if process.world_size > 1:
                return None
            raise InputError(
                f"{out}: results were changed meanwhile by another program; the same command with "
                "--resume goes on"
            )
        contents, failed = found
        summary = {
            "images": len(contents),
            **predictor.summarise(contents, out),
            "failed": failed,
            "done_before": done_before,
            "seconds": round(seconds, 3),
            "images_per_second": round((len(contents) - done_before) / max(seconds, 1e-9), 3),
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
        record = _read_json(path)
        if isinstance(record, dict) and "made" in record:
            for picture in _pictures(path, record):
                picture.unlink(missing_ok=True)
            path.unlink()
    for name in (SUMMARY, "results.json"):
        (out / name).unlink(missing_ok=True)
    folders = [path for path in out.rglob("*") if path.is_dir()]
    for folder in [*sorted(folders, reverse=True), out]:  # inner ones first
        with contextlib.suppress(OSError):
            folder.rmdir()


class _Item(NamedTuple):
    """An image file, and the path of its results, without suffix, relative to the folder."""

    file: Path
    stem: Path

    @property
    def record(self) -> Path:
        """Its JSON file, relative to the folder."""
        record = self.stem.with_name(f"{self.stem.name}.json")
        if len(os.fsencode(record.name)) <= _LONGEST_NAME:
            return record
        # Its pictures cannot be written, but what happened can.
        return Path(hashlib.sha256(os.fsencode(self.stem)).hexdigest()[:32] + ".json")


class _Read(NamedTuple):
    state: dict[str, int] | None
    image: Tensor | InputError


class _Run:
    """A list of images on its way into a folder."""

    def __init__(
        self,
        predictor: ImagePredictor[Any],
        items: list[_Item],
        out: Path,
        made: str,
        model: dict[str, Any],
        drawing: dict[str, Any],
    ) -> None:
        self.predictor = predictor
        self.items = items
        self.out = out
        self.made = made  # hash of model and settings
        self.model = model
        self.drawing = drawing

    def predict(self, bar: ConsoleProgress, rank: int, world_size: int, *, resume: bool) -> int:
        """Predict the batches of this process; returns how many images were done before."""
        # Batches are those of the whole list, because the last bits of a result depend on the
        # images that it is predicted together with. So a batch is done only as a whole.
        size = self.predictor.batch_size
        batches = [self.items[i : i + size] for i in range(0, len(self.items), size)]
        done = [resume and all(map(self._is_done, batch)) for batch in batches]
        mine = range(rank, len(batches), world_size)
        todo = [batches[index] for index in mine if not done[index]]
        total = sum(len(batches[index]) for index in mine)
        task = bar.add_task("predict", total=total, completed=total - sum(map(len, todo)))
        # By the number of all batches, so that the last bits of a result do not depend on what is
        # left to do.
        with self.predictor.prepared(), Workers(len(batches)) as workers:
            for count in self._predict_batches(todo, workers, bar):
                bar.update(task, advance=count)
        return sum(len(batch) for batch, is_done in zip(batches, done, strict=True) if is_done)

    def collect(self) -> tuple[list[Any], list[dict[str, str]]] | None:
        """What the summary needs of each image, and the failed ones; None if one is missing."""
        contents, failed = [], []
        for item in self.items:
            found = self._read(item)
            if found is None:
                return None
            record, content = found
            if content is None:
                failed.append({"image": record["image"], "error": record["error"]})
            else:
                contents.append(content)
        return contents, failed

    def _predict_batches(
        self, todo: Sequence[Sequence[_Item]], workers: Workers, bar: ConsoleProgress
    ) -> Iterator[int]:
        """Predict batches beside each other.

        Yields the number of images done since the last time.
        """
        coming = deque(todo)
        pixels = 0  # of the first batch that is coming, if it is known
        running: dict[Future[None], tuple[int, int]] = {}  # with the images and pixels of the batch
        try:
            while coming or running:
                if coming:
                    pixels = pixels or sum(map(_pixels, coming[0]))
                    held = sum(size for _, size in running.values())
                    fits = len(running) <= workers.count and held + pixels <= _MOST_PIXELS
                    if fits or not running:
                        batch, large = coming.popleft(), pixels > _MOST_PIXELS
                        done = workers.do(self._predict_batch, batch, workers, bar, here=large)
                        running[done] = len(batch), pixels
                        pixels = 0
                        continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    count, _ = running.pop(future)
                    future.result()  # raises what the worker did
                    yield count
        finally:
            for future in running:
                future.cancel()

    def _predict_batch(
        self, batch: Sequence[_Item], workers: Workers, bar: ConsoleProgress
    ) -> None:
        """Read images, predict them together, and write their files."""
        items = {item.file: item for item in batch}

        def write_error(file: Path, error: InputError) -> None:
            record = {"image": str(file), "error": str(error), "model": self.model}
            record |= {"made": self.made, "files": {}}
            write_json(self.out / items[file].record, record)
            if not bar.disable:
                bar.console.print(f"skipped: {error}", markup=False, highlight=False)

        def write(result: Any, state: dict[str, int] | None) -> None:
            """Write the files of an image, of which the JSON file comes last."""
            stem = items[result.source].stem
            about = {"model": self.model, "input": state, "made": self.made}
            about |= self.predictor.record(result)
            try:
                result.save(self.out / stem.parent, stem.name, **self.drawing, extra=about)
            except InputError as error:
                cause = disk_error(error.__cause__)
                if cause is not None and cause.errno not in _FILE_ERRORS:
                    raise
                write_error(result.source, error)

        found = {file: _read(file) for file in items}
        states = {file: one.state for file, one in found.items()}

        def take(file: Path) -> Tensor:
            image = found.pop(file).image
            if isinstance(image, InputError):
                raise image
            return image

        # A network may remember the size of its input while it runs, so that all that it runs on
        # at once have one size. An exported network, without parameters, has threads of its own.
        shapes = [one.image.shape for one in found.values() if isinstance(one.image, Tensor)]
        parameter = next(self.predictor.model.parameters(), None)
        most = 1
        if parameter is not None and parameter.device.type == "cpu" and len(set(shapes)) == 1:
            most = _MOST_COMPUTED // sum(height * width for _, height, width in shapes)
        with workers.computing(tuple(shapes), most):
            results = self.predictor.predict_batch(list(items), write_error, take)
        while results:
            result = results.pop(0)
            write(result, states[result.source])

    def _is_done(self, item: _Item) -> bool:
        found = self._read(item)
        if found is None or found[1] is None:
            return False  # what was unreadable is tried again
        return found[0].get("input") == _input_state(item.file)

    def _read(self, item: _Item) -> tuple[dict[str, Any], Any] | None:
        """The JSON content of an image that is whole and belongs to this model and these settings.

        With what the summary needs of it, which is None for an image that could not be read.
        """
        file = self.out / item.record
        record = _read_json(file)
        try:
            if record["made"] != self.made or record["image"] != str(item.file):
                return None
            if isinstance(record.get("error"), str):
                return record, None
            content = self.predictor.content(record)
            whole = all(map(_is_whole, _pictures(file, record)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return (record, content) if whole else None


def _read_json(file: Path) -> Any:
    """The content of a JSON file; None if there is no such file, or none that makes sense."""
    try:
        return read_json(file, "result", _LARGEST_JSON)
    except InputError:
        return None


def _pictures(file: Path, record: dict[str, Any]) -> Iterator[Path]:
    """The pictures that the JSON file of an image names; only names that it would give itself."""
    for kind, name in record["files"].items():
        if name != f"{file.stem}_{kind}.png":
            raise ValueError(name)
        yield file.with_name(name)


def _is_whole(picture: Path) -> bool:
    """Whether a PNG file has its end, which may be missing after a power failure."""
    if not picture.is_file():
        return False
    with picture.open("rb") as stream:
        stream.seek(-len(_PNG_END), os.SEEK_END)
        return stream.read() == _PNG_END


def _pixels(item: _Item) -> int:
    height, width = image_size(item.file) or (0, 0)
    return height * width


def _read(file: Path) -> _Read:
    state = _input_state(file)  # before the file is read, so that a later change is noticed
    try:
        return _Read(state, read_image(file))
    except InputError as error:
        return _Read(state, error)


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
    if not os.path.lexists(file):
        return  # nothing is done
    advice = "leave out --resume to predict everything again, or give another --out"
    there = _read_json(file)
    old_settings, old_model = (
        there.get(name) if isinstance(there, dict) else None for name in ("settings", "model")
    )
    if not isinstance(old_settings, dict) or not isinstance(old_model, dict):
        raise InputError(f"{file}: does not say how its results were made; {advice}")
    for name, new in json.loads(json.dumps(settings)).items():
        if old_settings.get(name) != new:
            before = json.dumps(old_settings.get(name))[:100]
            raise InputError(
                f"{out}: holds results with {name} {before}, not {json.dumps(new)}; "
                f"give the same settings, or {advice}"
            )
    if old_model != json.loads(json.dumps(model)):
        old = f"{old_model.get('name')} {old_model.get('fingerprint')}"[:100]
        raise InputError(
            f"{out}: holds results of another model ({old}, now {model['name']} "
            f"{model['fingerprint']}); {advice}"
        )


def _check_own(out: Path, items: Iterable[_Item]) -> None:
    """Raise `InputError` if results would replace files that are none, such as masks to train on.

    A prediction writes ``summary.json`` first, so all results lie beside one.
    """
    found = {file.name for file in out.iterdir()} - {".lock"}
    if not found or SUMMARY in found:
        return
    for item in items:
        pictures = (out / item.stem.with_name(f"{item.stem.name}_{kind}.png") for kind in _KINDS)
        for file in (out / item.record, *pictures):
            if os.path.lexists(file):
                raise InputError(
                    f"{file}: is there already, and is no result of fsanet predict, which has not "
                    "written to this folder; give another --out"
                )


def _locate(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], out: Path, *, recursive: bool
) -> list[tuple[Path, Path]]:
    """The image files, each with its path relative to the given folder."""
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    target = Path(os.path.realpath(out))
    if any(Path(path).is_dir() and Path(os.path.realpath(path)) == target for path in paths):
        raise InputError(f"{out}: is an input folder as well; write to another one")
    # Results of an earlier run below an input folder are no input.
    located = [
        (file, relative)
        for file, relative in locate_images(paths, recursive=recursive)
        if target not in Path(os.path.realpath(file)).parents
    ]
    if not located:
        raise InputError(f"{out}: all given images are in the output folder; write to another one")
    return located


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
