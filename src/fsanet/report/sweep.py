"""A sweep as it goes: what is measured is kept after every point, so that it can be gone on with.

The folder of a sweep holds `sweep.json` (everything), `sweep.md`, `sweep.png`, and `trained/` with
a run folder a point and seed where networks are trained anew.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fsanet.convert.variants import Variant, evaluate_variants
from fsanet.data.batches import SegmentationData
from fsanet.errors import InputError
from fsanet.files import environment, first_process, write_json, write_text, write_whole
from fsanet.metrics.confusion import Scores, markdown_table
from fsanet.report.figures import draw_sweep
from fsanet.train import SemanticSegmentation, evaluate, train

__all__ = ["SweepRecord", "sweep_without_training", "train_point"]

_FILE = "sweep.json"


@dataclass
class SweepRecord:
    """What a sweep has measured so far.

    Attributes:
        out: its folder.
        about: what all of it depends on: model, weights, data, split, way of testing. A folder
            holds one such sweep.
        plain: scores by name of the point, with no retraining.
        again: scores by name of the point and seed, of networks trained anew.
    """

    out: Path
    about: dict[str, Any]
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)
    again: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    points: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, about: Mapping[str, Any], points: Sequence[Variant]) -> SweepRecord:
        """The record in a folder, or a new one.

        Raises:
            InputError: the folder holds another sweep, or its file cannot be read.
        """
        # As it will be read again: tuples are lists in JSON.
        record = cls(out=out, about=json.loads(json.dumps(dict(about))))
        file = out / _FILE
        if file.exists():
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                there, known = content["about"], content["points"]
                by_name = {row["name"]: row for row in known}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file}: not the file of a sweep; give another --out") from error
            for key, value in record.about.items():
                if there.get(key) == value:
                    continue
                both = f"{key} {there.get(key)!r}, not {value!r}"
                what = f"other options of {key}" if isinstance(value, dict) else both
                raise InputError(f"{file}: holds a sweep with {what}; give another --out")
            for name, row in by_name.items():
                record.points[name] = {key: row[key] for key in ("name", "kind", "band")}
                if row["no_retraining"] is not None:
                    record.plain[name] = row["no_retraining"]
                record.again[name] = row["retrained"]
        for point in points:
            wanted = point.as_dict()
            if record.points.setdefault(point.name, wanted) != wanted:
                raise InputError(f"{file}: {point.name} was another band there; give another --out")
        return record

    def write(self) -> None:
        """Write `sweep.json`; whole, by the first process alone."""
        if not first_process():
            return
        rows = [
            row | {"no_retraining": self.plain.get(name), "retrained": self.again.get(name, {})}
            for name, row in self.points.items()
        ]
        write_json(
            self.out / _FILE, {"about": self.about, "points": rows, "versions": environment()}
        )

    def table(self, points: Sequence[Variant]) -> list[list[str]]:
        """A header, and a row a point: mIoU, what it lost against the network as it is."""
        seeds = max((len(self.again.get(point.name, {})) for point in points), default=0)
        header = ["attention sees", "mIoU %", "change", "pixel accuracy %"]
        if seeds:
            header += ["trained anew: mIoU % (mean)", "spread (std)", "seeds"]
        base = self.plain.get("as trained", {}).get("miou")
        rows = [header]
        for point in points:
            scores = self.plain.get(point.name, {})
            miou = scores.get("miou")
            change = "" if miou is None or base is None else f"{100 * (miou - base):+.2f}"
            row = [point.name, percent(miou), change, percent(scores.get("pixel_accuracy"))]
            if seeds:
                values = self.mious_again(point.name)
                mean = statistics.mean(values) if values else None
                spread = statistics.stdev(values) if len(values) > 1 else None
                row += [percent(mean), percent(spread), str(len(values)) if values else ""]
            rows.append(row)
        return rows

    def mious_again(self, name: str) -> list[float]:
        """mIoU of each seed that was trained."""
        found = self.again.get(name, {}).values()
        return [scores["miou"] for scores in found if scores["miou"] is not None]

    def write_report(self, points: Sequence[Variant], title: str) -> None:
        """Write `sweep.md` and `sweep.png` of the points."""
        plain = {n: s["miou"] for n, s in self.plain.items() if s["miou"] is not None}
        again = {point.name: self.mious_again(point.name) for point in points}
        picture = draw_sweep(points, plain, again, title)
        versions = ", ".join(f"{name} {value}" for name, value in environment().items())
        text = f"{title}\n\n{markdown_table(self.table(points))}\n\n{versions}\n"
        write_text(self.out / "sweep.md", text)
        write_whole(self.out / "sweep.png", lambda stream: stream.write(picture))


def sweep_without_training(
    model: nn.Module,
    data: SegmentationData,
    points: Sequence[Variant],
    record: SweepRecord,
    *,
    match: str = "*",
    say: Callable[[Variant, dict[str, Any]], None] | None = None,
    **testing: Any,
) -> None:
    """Evaluate the network at each point that the record lacks, and add it to the record.

    Two points with the same band are evaluated once. A network whose attention cannot be taken
    out has no such point.

    Args:
        model: trained network.
        data: to test on.
        points: of the sweep.
        record: gets the scores, and is written after each.
        match: pattern of the attention layers to change.
        say: called with each point and its scores as they come.
        **testing: options of `fsanet.train.evaluate`.

    Raises:
        InputError: what `evaluate_variants` raises, with the name of the point.
    """

    def scores_of(network: nn.Module) -> dict[str, Any]:
        return evaluate(network, data, **testing).as_dict()

    for point, scores in evaluate_variants(
        model, points, scores_of, known=record.plain, match=match
    ):
        if point.name not in record.plain:
            record.plain[point.name] = scores
            record.write()
        if say is not None:
            say(point, scores)


def train_point(
    make: Callable[[], tuple[SemanticSegmentation, SegmentationData, str]],
    out: Path,
    *,
    training: Mapping[str, Any],
    testing: Mapping[str, Any],
) -> dict[str, Any]:
    """Train and test one network of a sweep, or go on where that was stopped.

    Args:
        make: gives a new task, its data, and the text of config.yaml.
        out: run folder; done once `scores.json` is in it.
        training: options of `fsanet.train.train`.
        testing: options of `fsanet.train.evaluate`; the best validated weights are tested.

    Returns:
        the scores as plain values.

    Raises:
        InputError: `out` holds a run of other options, or what training and testing raise.
    """
    task, data, config = make()
    recorded = out / "config.yaml"
    if recorded.is_file() and recorded.read_text(encoding="utf-8") != config:
        raise InputError(f"{recorded}: a run with other options; give another --out")
    file = out / "scores.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    resume = (out / "checkpoints" / "last.ckpt").is_file()
    options = dict(training) | {"resume": resume, "overwrite": not resume}
    train(task, data, out=out, config=config, **options)
    scores: Scores = evaluate(out, data, **testing)
    if first_process():
        write_json(file, scores.as_dict())
    return scores.as_dict()


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
