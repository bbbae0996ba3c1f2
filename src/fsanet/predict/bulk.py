"""Prediction of many files into a folder: shared by processes, each image once, resumable.

The first process lists the images, decides what is to do, and tells the others; at the end it sums
up. What a network predicts, and which files come out, is a `Writer`'s; what counts as done is in
`fsanet.predict.bulk_state`.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fsanet.data.images import locate_images
from fsanet.errors import InputError
from fsanet.files import environment, write_json
from fsanet.predict.bulk_state import (
    SUMMARY,
    Item,
    Writer,
    begin,
    check_same,
    check_shared,
    finished,
    input_state,
    mark_of,
)
from fsanet.predict.processes import Processes, Pulse
from fsanet.predict.progress import image_progress

__all__ = ["predict_all", "result_stems"]


def predict_all(
    make_writer: Callable[[], Writer],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: Path,
    *,
    processes: Processes,
    recursive: bool,
    resume: bool,
    progress: bool,
) -> dict[str, Any]:
    """Predict ``paths`` and write to ``out``.

    Args:
        make_writer: makes the writer of a process, on its device.
        paths: images and folders of images.
        out: folder to write to, seen by all processes.
        processes: who shares the work.
        recursive: search sub-folders.
        resume: leave out what is done already, by the same model with the same settings.
        progress: show how far all processes are.

    Returns:
        what ``summary.json`` holds, in every process.

    Raises:
        InputError: no image, an unwritable folder, a process that failed, results of other settings
            with ``resume``.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    writer = processes.together(make_writer)
    if len(set(processes.collect(writer.model["fingerprint"]))) > 1:
        raise InputError("the processes have loaded different models; give all the same files")
    mark = mark_of(writer)
    digests: dict[int, Any] = {}  # by place in the list; in the first process alone

    def plan() -> tuple[list[Item], list[range], str]:
        items = _list(paths, out, writer.reserved, recursive=recursive)
        if resume:
            check_same(out, writer)
        run = uuid.uuid4().hex
        begin(out, writer, run)  # before the work, and what --resume will compare with
        if resume:
            found = ((i, finished(item, out, writer, mark)) for i, item in enumerate(items))
            digests.update((i, digest) for i, digest in found if digest is not None)
        # Batches are those of the whole list, whatever is done of it: what an image is predicted
        # together with is in the last bits of its result.
        size, count = writer.batch_size, len(items)
        batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
        todo = [batch for batch in batches if any(index not in digests for index in batch)]
        for index in itertools.chain(*todo):
            digests.pop(index, None)
        return items, todo, run

    items, todo, run = processes.by_first(plan)
    processes.together(lambda: check_shared(out, run))
    before = len(digests)
    start = time.perf_counter()
    made, failed = _work(
        writer, items, todo, out, mark, processes=processes, before=before, progress=progress
    )
    seconds = time.perf_counter() - start

    def finish() -> dict[str, Any]:
        for part in made:
            digests.update(part)
        problems = dict(sorted(pair for part in failed for pair in part.items()))
        missing = len(items) - len(digests) - len(problems)
        if missing or digests.keys() & problems.keys():
            raise RuntimeError(f"{missing} of {len(items)} images without a result")
        places = sorted(digests)
        summary = {
            "images": len(places),
            **writer.summary(out, [(items[i], digests[i]) for i in places]),
            "failed": [{"image": str(items[i].file), "error": e} for i, e in problems.items()],
            "done_before": before,
            "seconds": round(seconds, 3),
            "images_per_second": round((len(places) - before) / max(seconds, 1e-9), 3),
            "processes": processes.count,
            "settings": writer.settings | {"device": writer.device.type},
            "model": writer.model,
            "versions": environment(writer.device),
        }
        write_json(out / SUMMARY, summary)
        return summary

    return processes.by_first(finish)


def _work(
    writer: Writer,
    items: list[Item],
    todo: list[range],
    out: Path,
    mark: str,
    *,
    processes: Processes,
    before: int,
    progress: bool,
) -> tuple[list[dict[int, Any]], list[dict[int, str]]]:
    """Predicts this process' share; what all have made, and what failed, for the first process."""
    digests: dict[int, Any] = {}
    failed: dict[int, str] = {}
    stopped: BaseException | None = None
    shown = progress and processes.first
    with image_progress(len(items), before=before, shown=shown) as (advance, say):
        try:
            with Pulse(processes, advance) as pulse:
                for batch in todo[processes.rank :: processes.count]:
                    if pulse.ended:
                        break
                    for index, digest, problem in _batch(writer, items, batch, out, mark):
                        if problem is None:
                            digests[index] = digest
                        else:
                            failed[index] = problem
                            say(problem)
                        pulse.advance(1)
        except BaseException as error:  # the others are told before it goes on its way
            stopped = error
        lost = pulse.lost
        reasons = [] if lost else processes.collect(_reason(stopped, processes.rank))
        if stopped is not None:
            raise stopped
        if lost is not None:
            raise InputError(f"{lost}; the same command with --resume goes on")
        if _INTERRUPTED in reasons:
            raise KeyboardInterrupt
        processes.raise_first(reasons)
        made, problems = processes.gather(digests), processes.gather(failed)
        for theirs in problems[1:]:
            for problem in theirs.values():
                say(problem)
    return made, problems


def _batch(
    writer: Writer, items: list[Item], chosen: range, out: Path, mark: str
) -> Iterator[tuple[int, Any, str | None]]:
    """Predicts and writes a batch: place, digest or None, what is wrong or None."""
    places = {items[index].file: index for index in chosen}
    sources: dict[Path, dict[str, int]] = {}  # before they are read: a later change is noticed
    problems: list[tuple[int, str]] = []
    for file, index in places.items():
        try:
            sources[file] = input_state(file)
        except OSError as error:
            problems.append((index, f"{file}: cannot be read ({error.strerror}); was it removed?"))
    if sources:

        def note(file: Path, error: InputError) -> None:
            problems.append((places[file], str(error)))

        for result in writer.predict(list(sources), note):
            index = places[result.source]
            stem = items[index].stem
            extra = {"model": writer.model, "input": sources[result.source], "made": mark}
            yield index, writer.save(result, out / stem.parent, stem.name, extra), None
    for index, problem in problems:
        yield index, None, problem


_INTERRUPTED = "interrupted"


def _reason(error: BaseException | None, rank: int) -> str | None:
    if error is None:
        return None
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, InputError):
        return str(error)
    return f"process {rank} failed ({type(error).__name__}: {error}); see what it said"


def _list(
    paths: list[str | os.PathLike[str]], out: Path, reserved: tuple[str, ...], *, recursive: bool
) -> list[Item]:
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
        raise InputError(f"{out}: all images given lie in the output folder; write to another one")
    stems = result_stems([relative for _, relative in located], reserved)
    return [Item(file, stem) for (file, _), stem in zip(located, stems, strict=True)]


def result_stems(relatives: list[Path], reserved: tuple[str, ...] = ()) -> list[Path]:
    """A name for each file's results, no two alike even where case does not count.

    >>> [str(stem) for stem in result_stems([Path("a.png"), Path("b.png"), Path("b.jpg")])]
    ['a', 'b.png', 'b.jpg']
    """
    without = [relative.with_suffix("") for relative in relatives]
    often = Counter(_key(stem) for stem in without)
    taken = {Path(SUMMARY).stem, *reserved}
    result = []
    for relative, short in zip(relatives, without, strict=True):
        # a.png and a.jpg become a.png_mask.png and a.jpg_mask.png
        stem = short if often[_key(short)] == 1 and _key(short) not in taken else relative
        number = 2
        while _key(stem) in taken:
            stem = relative.with_name(f"{relative.name}-{number}")
            number += 1
        taken.add(_key(stem))
        result.append(stem)
    return result


def _key(stem: Path) -> str:
    return stem.as_posix().casefold()
