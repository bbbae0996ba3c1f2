"""Predictions of many files, written to a folder that mirrors where they came from."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import nn

from fsanet.data.images import locate_images
from fsanet.errors import InputError
from fsanet.files import write_json
from fsanet.provenance import environment

if TYPE_CHECKING:
    from fsanet.predict import Predictor

_SUMMARY = "summary"


def load_model(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    """The network itself, from a folder of ``save_pretrained``, a training run, or the hub.

    A folder that holds a conversion gives the converted network.

    Raises:
        InputError: the folder holds no model.
    """
    if isinstance(model, nn.Module):
        return model
    from fsanet import models
    from fsanet.convert.saved import CONVERSION_FILE, load_converted

    model = network_folder(model)
    if Path(model, CONVERSION_FILE).is_file():
        return load_converted(model)
    return models.load_model(model)


def network_folder(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of the network itself: that in a run folder, or what was given."""
    inner = Path(source, "model")  # where a training run keeps its best
    if (inner / "config.json").is_file() and not Path(source, "config.json").is_file():
        return inner
    return source


def write_predictions(
    predictor: Predictor,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: Path,
    *,
    recursive: bool,
    alpha: float,
    legend: bool,
    progress: bool,
) -> dict[str, Any]:
    """Segment ``paths`` and write to ``out``; see `fsanet.predict.predict_to_folder`."""
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; give the weight of the colours, 0 to 1")
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
        raise InputError(f"{out}: all images given lie in the output folder; write to another one")
    stems = dict(zip((file for file, _ in located), _stems([r for _, r in located]), strict=True))
    # Written first, to notice a folder that cannot be written to before the work, not after it.
    write_json(out / f"{_SUMMARY}.json", {"images": 0, "state": "running"})

    info = _model_info(predictor)
    failed: list[dict[str, str]] = []
    pixels: Counter[str] = Counter()
    done = 0
    start = time.perf_counter()
    with _bar(len(located), shown=progress) as (advance, say):

        def note(file: Path, error: InputError) -> None:
            failed.append({"image": str(file), "error": str(error)})
            say(str(error))

        results = predictor.predict_files(
            [file for file, _ in located],
            progress=lambda count, total: advance(count),
            on_error=note,
        )
        for result in results:
            if result.source is None:
                continue
            stem = stems[result.source]
            result.save(
                out / stem.parent, stem.name, alpha=alpha, legend=legend, extra={"model": info}
            )
            pixels.update(result.counts())
            done += 1
    seconds = time.perf_counter() - start
    classes, palette = predictor.model.classes, predictor.model.palette
    everything = sum(pixels.values())
    summary = {
        "images": done,
        "failed": failed,
        "pixels": everything,
        "classes": [
            {
                "id": index,
                "name": name,
                "colour": list(palette[index]),
                "pixels": pixels[name],
                "fraction": pixels[name] / everything if everything else 0.0,
            }
            for index, name in enumerate(classes)
        ],
        "seconds": round(seconds, 3),
        "images_per_second": round(done / seconds, 3) if seconds > 0 else 0.0,
        "settings": _settings(predictor),
        "model": info,
        "versions": environment(predictor.device),
    }
    write_json(out / f"{_SUMMARY}.json", summary)
    return summary


def _stems(relatives: list[Path]) -> list[Path]:
    """A name for each file's results, no two alike even where case does not count."""
    without = [relative.with_suffix("") for relative in relatives]
    often = Counter(_key(stem) for stem in without)
    taken = {_SUMMARY}
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


def _model_info(predictor: Predictor) -> dict[str, Any]:
    model = predictor.model
    return {
        "name": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_classes": len(model.classes),
    }


def _settings(predictor: Predictor) -> dict[str, Any]:
    return {
        "window": predictor.window,
        "stride": predictor.stride,
        "scales": predictor.scales,
        "flip": predictor.flip,
        "batch_size": predictor.batch_size,
        "dtype": None if predictor.dtype is None else str(predictor.dtype).removeprefix("torch."),
        "device": str(predictor.device),
    }


@contextlib.contextmanager
def _bar(
    total: int, *, shown: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A progress bar on the terminal: a function that sets the count, one that prints a line."""
    console = Console(stderr=True, quiet=not shown)
    columns = (
        TextColumn("predict"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task("predict", total=total)
        yield (
            lambda count: bar.update(task, completed=count),
            lambda line: console.print(f"skipped: {line}", markup=False, highlight=False),
        )


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} images/s")
