"""`fsanet sweep`: which frequencies a trained network's attention needs, with and without training.

Nothing is trained unless `--retrain` says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsanet.cli.eval import TESTING, listed, writable
from fsanet.cli.parsing import quiet, switches

if TYPE_CHECKING:
    from fsanet.convert.variants import Variant
    from fsanet.data.batches import SegmentationData
    from fsanet.report.sweep import SweepRecord
    from fsanet.train import SemanticSegmentation

_K = ["2", "4", "6", "8", "12", "16", "full"]
_OWN = ("model", "data", "json", "out", "k", "bands", "cuts", "match", "retrain", "steps", "seeds")


def run(given: list[str]) -> int:
    quiet()
    from fsanet.cli import options
    from fsanet.convert import load_model
    from fsanet.convert.variants import attention_variants
    from fsanet.errors import InputError
    from fsanet.files import fingerprint, first_process
    from fsanet.report.sweep import SweepRecord, sweep_without_training

    given = switches(given, ("--flip", "--boundary"))
    given = listed(given, ("--scales", "--window", "--stride", "--resize", "--trimap"))
    folders = [Path(text) for text in given if not text.startswith("-") and Path(text).is_dir()]
    known = [found for found in map(options.data_of_run, folders) if found is not None]
    parser = _parser(known[0] if known else None)
    parsed = options.parse(parser, given)
    if parsed.k is None and parsed.bands is None:
        parsed.k = _K
    points = attention_variants(parsed.k or (), parsed.bands or (), tuple(parsed.cuts))
    if (parsed.retrain is None) != (parsed.steps is None):
        raise InputError("--retrain CONFIG and --steps N: give both, or neither")
    if len(set(parsed.seeds)) < len(parsed.seeds):
        raise InputError(f"--seeds {' '.join(map(str, parsed.seeds))}: give each once")
    folder = Path(parsed.model)
    if parsed.out is None and not folder.is_dir():
        raise InputError(f"--out: give a folder for the sweep of {parsed.model}")
    out = Path(parsed.out) if parsed.out is not None else folder / "sweep"
    data = options.make_data(parser, parsed)
    testing = {key: value for key, value in vars(parsed).items() if key not in _OWN}
    model = load_model(parsed.model, task="semantic")
    about = {
        "model": str(parsed.model),
        "weights": fingerprint(model, weights_only=True),
        "match": parsed.match,
        "data": parsed.data.as_dict() if hasattr(parsed.data, "as_dict") else parsed.data,
        "split": parsed.split,
        "testing": {name: testing[name] for name in (*TESTING, "boundary")},
    }
    if first_process():
        writable(out)
    record = SweepRecord.open(out, _plain(about), points)

    def say(point: Variant, scores: dict[str, Any]) -> None:
        if first_process():
            miou = scores["miou"]
            text = "no label" if miou is None else f"{100 * miou:.2f} %"
            print(f"{point.name}: mIoU {text}", flush=True)

    sweep_without_training(model, data, points, record, match=parsed.match, say=say, **testing)
    if parsed.retrain is not None:
        _retrain(parsed, points, record, testing)
    if not first_process():
        return 0
    title = f"{parsed.model}, {parsed.split} split"
    record.write()
    record.write_report(points, title)
    if parsed.json is not None:
        from fsanet.files import write_text

        write_text(parsed.json, (out / "sweep.json").read_text(encoding="utf-8"))
    _print(record.table(points), title)
    print(f"table, figure and all numbers in {out}")
    return 0


def _parser(run_data: dict[str, Any] | None) -> Any:
    from fsanet.cli import options

    parser = options.eval_parser(run_data)
    parser.prog = "fsanet sweep"
    parser.description = (
        "Test a trained network with other frequencies in its attention: as it is, without "
        "attention, and at every --k and band. With --retrain each is trained anew, too."
    )
    add = parser.add_argument
    add("--k", nargs="+", default=None, help=f"low frequencies a side (default: {' '.join(_K)})")
    add("--bands", nargs="+", default=None, help="low middle high full, 8:16, or 0:8,8:16")
    add("--cuts", nargs=2, type=int, default=[8, 16], help="where low ends and high begins")
    add("--match", type=str, default="*", help="names of attention layers to change (a pattern)")
    add("--out", type=str, default=None, help="folder of the sweep (default: MODEL/sweep)")
    add("--retrain", type=str, default=None, help="file of `fsanet train`: train each point, too")
    add("--steps", type=int, default=None, help="optimiser steps of each such training")
    add("--seeds", nargs="+", type=int, default=[0], help="a training for each of these")
    return parser


def _retrain(
    parsed: Any, points: list[Variant], record: SweepRecord, testing: dict[str, Any]
) -> None:
    """Train every point with every seed under the same budget; goes on where it was stopped."""
    from fsanet.files import first_process
    from fsanet.report.sweep import train_point

    todo = [(seed, point) for seed in parsed.seeds for point in points]
    for number, (seed, point) in enumerate(todo, 1):
        out = record.out / "trained" / f"{_slug(point.name)}-seed{seed}"
        if first_process():
            print(f"[{number}/{len(todo)}] {point.name}, seed {seed}", flush=True)
        arguments, make = _training(parsed, point, seed, out)
        scores = train_point(make, out, training=arguments, testing=testing)
        how = {"config": parsed.retrain, "steps": parsed.steps}
        record.again.setdefault(point.name, {})[str(seed)] = scores | how
        record.write()


def _training(parsed: Any, point: Variant, seed: int, out: Path) -> tuple[dict[str, Any], Any]:
    """Options of the training of a point, and a function that makes its network and data."""
    from fsanet.cli import options
    from fsanet.models.saving import band_to_json

    given = ["--config", parsed.retrain]
    named = options.names_model(given)
    group = "--model.init_args" if named else "--model"
    changes = {
        "trained": [],
        "removed": [f"{group}.attention=null"],
    }.get(point.kind)
    if changes is None:
        band = band_to_json(point.k if point.k is not None else point.band)
        changes = [f"{group}.attention=frequency", f"{group}.k={json.dumps(band)}"]
    given += [*changes, f"--steps={parsed.steps}", f"--seed={seed}", f"--out={out}"]
    parser = options.train_parser(named_model=named)
    wanted = options.parse(parser, given)

    def make() -> tuple[SemanticSegmentation, SegmentationData, str]:
        import lightning

        lightning.seed_everything(seed, verbose=False)
        data = options.make_data(parser, wanted)
        task = options.make_task(wanted, data)
        return task, data, options.record(parser, wanted, out)

    return options.train_arguments(wanted), make


def _print(rows: list[list[str]], title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for index, name in enumerate(rows[0]):
        table.add_column(escape(name), justify="right" if index else "left")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    Console().print(table)


def _plain(value: Any) -> Any:
    """Values as JSON has them; paths as text."""
    return json.loads(json.dumps(value, default=str))


def _slug(name: str) -> str:
    """A name as part of a path: ``k=8`` as it is, ``0:8,8:`` as ``0-8_8-``."""
    return name.replace(" ", "-").replace(":", "-").replace(",", "_")
