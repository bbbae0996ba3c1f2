"""The record of a sweep: every result is kept when it is measured, so that a sweep can continue.

The folder of a sweep holds `sweep.json` (everything), `sweep.md`, `sweep.png`, and in `trained/`
a run folder for each variant and seed that was retrained.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fsanet.convert.variants import Variant, evaluate_variants
from fsanet.errors import InputError
from fsanet.files import environment, first_process, write_bytes, write_json, write_text
from fsanet.inputs import read_json
from fsanet.metrics.confusion import Scores, markdown_table
from fsanet.report.figures import draw_sweep

__all__ = ["Sweep", "check_scores"]

_TABULATED = ("miou", "pixel_accuracy")


@dataclass
class Sweep:
    """The results of a sweep so far.

    Attributes:
        out: its folder.
        about: what all results depend on: model, weights, data, split, way of testing. A folder
            holds one such sweep.
        variants: `Variant.as_dict` by name, in the order in which they were requested.
        converted: scores by name, without retraining.
        retrained: scores by name and seed of networks trained with the variant's band.
    """

    out: Path
    about: dict[str, Any]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    converted: dict[str, dict[str, Any]] = field(default_factory=dict)
    retrained: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, about: Mapping[str, Any], variants: Sequence[Variant]) -> Sweep:
        """The sweep in a folder, or a new one.

        Raises:
            InputError: the folder holds another sweep, or its file cannot be read.
        """
        # As it is read again: tuples become lists, paths text.
        sweep = cls(out=out, about=json.loads(json.dumps(dict(about), default=str)))
        file = out / "sweep.json"
        if file.exists():
            sweep._read(file)
        for variant in variants:
            wanted = variant.as_dict()
            if sweep.variants.setdefault(variant.name, wanted) != wanted:
                raise InputError(
                    f"{file}: {variant.name} is another band there; give another --out"
                )
        return sweep

    def _read(self, file: Path) -> None:
        content = read_json(file, "sweep")
        try:
            json.dumps(content, allow_nan=False)  # as it is written again
            about, rows = dict(content["about"]), content["points"]
            for row in rows:
                self.variants[row["name"]] = {key: row[key] for key in ("name", "kind", "band")}
                retrained, converted = row["retrained"], row["no_retraining"]
                self.retrained[row["name"]] = dict(retrained)
                if converted is not None:
                    self.converted[row["name"]] = converted
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: not the file of a sweep; give another --out") from error
        trained = (scores for by_seed in self.retrained.values() for scores in by_seed.values())
        for scores in (*self.converted.values(), *trained):
            check_scores(scores, file)
        for key, value in self.about.items():
            other = about.get(key)
            if _comparable(other) != _comparable(value):
                both = f"{key} {other!r}, not {value!r}"
                what = f"other options of {key}" if isinstance(value, dict) else both
                raise InputError(f"{file}: holds a sweep with {what}; give another --out")

    def evaluate(
        self,
        model: nn.Module,
        variants: Sequence[Variant],
        scores_of: Callable[[nn.Module], Scores],
        *,
        match: str = "*",
    ) -> Iterator[tuple[Variant, dict[str, Any]]]:
        """Evaluate the variants of a network that have no result yet, and write each result.

        Args:
            model: trained network.
            variants: to evaluate.
            scores_of: gives the scores of a network.
            match: pattern for the names of the attention layers to change.

        Yields:
            each variant with its scores as JSON values.
        """

        def evaluate(network: nn.Module) -> dict[str, Any]:
            return scores_of(network).as_dict()

        for variant, scores in evaluate_variants(
            model, variants, evaluate, known=self.converted, match=match
        ):
            if variant.name not in self.converted:
                self.converted[variant.name] = scores
                self.write()
            yield variant, scores

    def run_folder(self, variant: Variant, seed: int) -> Path:
        """Where the training of a variant with a seed is kept."""
        name = variant.name.replace(" ", "-").replace(":", "-").replace(",", "_")
        return self.out / "trained" / f"{name}-seed{seed}"

    def add_retrained(self, variant: Variant, seed: int, scores: dict[str, Any]) -> None:
        """Add the scores of a training, and write them."""
        self.retrained.setdefault(variant.name, {})[str(seed)] = scores
        self.write()

    def write(self) -> None:
        """Write `sweep.json` from the first process."""
        if not first_process():
            return
        rows = [
            row
            | {
                "no_retraining": self.converted.get(name),
                "retrained": self.retrained.get(name, {}),
            }
            for name, row in self.variants.items()
        ]
        content = {"about": self.about, "points": rows, "versions": environment()}
        write_json(self.out / "sweep.json", content)

    def table(self, variants: Sequence[Variant]) -> list[list[str]]:
        """A header and one row per variant: mIoU, and its change from the trained network's."""
        seeds = max((len(self.retrained.get(variant.name, {})) for variant in variants), default=0)
        header = ["attention sees", "mIoU %", "change", "pixel accuracy %"]
        if seeds:
            header += ["retrained: mIoU % (mean)", "spread (std)", "seeds"]
        base = self.converted.get("as trained", {}).get("miou")
        rows = [header]
        for variant in variants:
            scores = self.converted.get(variant.name, {})
            miou = scores.get("miou")
            change = "" if miou is None or base is None else f"{100 * (miou - base):+.2f}"
            row = [variant.name, _percent(miou), change, _percent(scores.get("pixel_accuracy"))]
            if seeds:
                values = self._retrained_miou(variant.name)
                mean = statistics.mean(values) if values else None
                spread = statistics.stdev(values) if len(values) > 1 else None
                row += [_percent(mean), _percent(spread), str(len(values)) if values else ""]
            rows.append(row)
        return rows

    def write_report(self, variants: Sequence[Variant], title: str) -> None:
        """Write `sweep.md` and `sweep.png`."""
        converted = {n: s["miou"] for n, s in self.converted.items() if s["miou"] is not None}
        retrained = {variant.name: self._retrained_miou(variant.name) for variant in variants}
        picture = draw_sweep(variants, converted, retrained, title)
        versions = ", ".join(f"{name} {value}" for name, value in environment().items())
        text = f"{title}\n\n{markdown_table(self.table(variants))}\n\n{versions}\n"
        write_text(self.out / "sweep.md", text)
        write_bytes(self.out / "sweep.png", picture)

    def _retrained_miou(self, name: str) -> list[float]:
        """mIoU of each seed."""
        scores = self.retrained.get(name, {}).values()
        return [one["miou"] for one in scores if one["miou"] is not None]


def check_scores(scores: Any, file: Path) -> None:
    """Raise `InputError` unless what was read from a file are scores, as they are tabulated."""
    found = [scores.get(name, "") for name in _TABULATED] if isinstance(scores, dict) else [""]
    if not all(isinstance(value, int | float | None) for value in found):
        raise InputError(f"{file}: holds no scores; remove it, or give another --out")


def _comparable(value: Any) -> Any:
    """Options of the data with the name of their class, whichever module it was in."""
    if isinstance(value, dict) and "class_path" in value:
        return {**value, "class_path": str(value["class_path"]).rpartition(".")[2]}
    return value


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
