"""`fsanet convert`: a trained network, its attention replaced, with no retraining."""

from __future__ import annotations

import argparse
import glob
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsanet.cli.parsing import Parser, band_of, has, quiet
from fsanet.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fsanet.attention.dct import BandLike
    from fsanet.convert import Calibration, Conversion

_EPILOG = """\
examples:
  fsanet convert runs/spatial --k 8 --out converted --eval
  fsanet convert segformer-b0 --k '*stages.2*=16' '*stages.3*=8' --out converted
  fsanet convert runs/spatial --calibrate 0.05 --images photos --out converted
  fsanet convert --from mmseg FILE --out DIR    a published checkpoint; see --from mmseg --help

With --eval, and to calibrate on a data set, the options of `fsanet eval` are options here, too
(--data, --data.root, --split, --window, ...; a run folder knows its own data).
"""
_REPORT = "report.json"


def run(given: list[str]) -> int:
    if has(given, "--from"):
        from fsanet.cli import convert_checkpoint

        return convert_checkpoint.run(given)
    quiet()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of the profiler that measures memory
    wanted, rest = _parser().parse_known_args(given)

    from fsanet.convert.saved import network_folder

    out, source = Path(wanted.out), str(network_folder(wanted.model))
    _check(wanted, rest, out, source)

    from fsanet.convert import calibrate, compare_grids, convert_attention, load_model
    from fsanet.convert.calibration import error_table
    from fsanet.convert.conversion import to_json
    from fsanet.files import environment, write_json

    data, how = _data(wanted, rest)
    network: Any = load_model(source, task="semantic").eval()
    options = {
        "similarity": wanted.similarity,
        "match": tuple(wanted.match),
        "route": wanted.route,
        "grid": wanted.grid,
    }
    report: dict[str, Any] = {"model": str(wanted.model), "options": options}
    k: Any = _bands(wanted.k or ["8"])
    images = _images(wanted, network, data) if wanted.calibrate or wanted.route_error else []
    if wanted.calibrate is not None:
        metric = None
        if wanted.by == "miou":

            def metric(candidate: nn.Module) -> float:
                return _evaluate(candidate, data, how).miou

        found = calibrate(network, images, tolerance=wanted.calibrate, metric=metric, **options)
        _save_calibration(found, out)
        print(f"{found.table()}\ndrawn in {out / 'calibration.png'}\n")
        if not found.k:
            raise InputError(
                f"--calibrate {wanted.calibrate}: no k keeps any module within it; nothing was "
                f"converted, {out / 'calibration.png'} shows the errors"
            )
        k = {glob.escape(name): side for name, side in found.k.items()}
        options["match"] = "*"
    if wanted.route_error:
        errors = compare_grids(network, images, k, match=options["match"])
        print(f"route grid compared with route tokens, relative error:\n{error_table(errors)}\n")
        report["route_error"] = errors
    conversion = convert_attention(network, k, **options)
    size = tuple(wanted.size if len(wanted.size) == 2 else wanted.size * 2)
    print(conversion.table(size))
    flops = conversion.flops(size)
    report["modules"] = [module.as_dict() for module in conversion.modules]
    report["flops"] = {"size": list(size), "before": flops.before, "after": flops.after}
    if wanted.eval:
        report["evaluation"] = _compare(network, conversion.model, data, how)
    _save(conversion, source, out)
    write_json(out / _REPORT, to_json(report) | {"versions": environment()})
    print(f"saved in {out}; {_how_to_load(conversion, out)}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="fsanet convert",
        usage="fsanet convert MODEL --out DIR [--k K ...] [--calibrate TOLERANCE] [--eval] ...",
        description="Replace the attention of a trained network, weights kept, no retraining.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, model folder, or SegFormer of transformers")
    add("--out", required=True, metavar="DIR", help="the converted network goes here")
    add(
        "--k",
        nargs="+",
        action="extend",
        metavar="K",
        help="frequencies kept: 8, 8,6 (rows, columns), 0:8,0:6 (ranges), all; or PATTERN=K ..., "
        "by module name (default: 8)",
    )
    add("--match", nargs="+", default=["*"], metavar="PATTERN", help="modules, by name")
    add("--similarity", choices=["dot", "linear_softmax", "linear", "softmax"])
    add(
        "--route",
        choices=["tokens", "grid"],
        default="tokens",
        help="softmax over all keys, or over a grid of them evaluated from coefficients",
    )
    add("--grid", type=int, default=16, metavar="M", help="points of a side of that grid (16)")
    add(
        "--calibrate",
        type=float,
        metavar="TOLERANCE",
        help="choose k for each module: the smallest within this relative error",
    )
    add(
        "--by",
        choices=["error", "miou"],
        default="error",
        help="what the tolerance is of; miou: the largest drop, 0..1, on the data (slow)",
    )
    add("--images", nargs="+", metavar="PATH", help="to calibrate on (default: of the val split)")
    add("--calibrate-images", type=int, default=4, metavar="N", help="how many of them (4)")
    add("--route-error", action="store_true", help="print the error of the grid as it grows")
    add("--eval", action="store_true", help="mIoU, time and memory, before and after")
    add("--size", type=int, nargs="+", default=[512], metavar="N", help="image to count FLOPs for")
    add("--overwrite", action="store_true", help="write over a network in DIR")
    return parser


def _check(wanted: argparse.Namespace, rest: list[str], out: Path, source: str) -> None:
    if Path(source).resolve() == out.resolve():
        raise InputError(f"--out {out}: is the folder of the model; give another one")
    if (out / "config.json").exists() and not wanted.overwrite:
        raise InputError(f"--out {out}: holds a network; give another folder, or --overwrite")
    if wanted.calibrate is not None and wanted.k is not None:
        raise InputError("--calibrate chooses k itself: leave --k or --calibrate out")
    if len(wanted.size) > 2 or min(wanted.size) < 1:
        raise InputError(f"--size {wanted.size}: give a side, or height and width, in pixels")
    if wanted.calibrate_images < 1:
        raise InputError(f"--calibrate-images {wanted.calibrate_images}: give at least 1")
    if wanted.by == "miou" and wanted.calibrate is None:
        raise InputError("--by miou is of --calibrate, which is missing")
    if rest and not _takes_data(wanted):
        raise InputError(f"unknown option '{rest[0]}'; see --help (data options need --eval)")


def _takes_data(wanted: argparse.Namespace) -> bool:
    looks = wanted.calibrate is not None or wanted.route_error
    return wanted.eval or wanted.by == "miou" or (looks and not wanted.images)


def _data(wanted: argparse.Namespace, rest: list[str]) -> tuple[Any, dict[str, Any]]:
    """The data module and the arguments of `evaluate`, where they are needed."""
    if not _takes_data(wanted):
        return None, {}
    from fsanet.cli import options

    known = options.data_of_run(Path(wanted.model))
    if known is None and not has(rest, "--data"):
        raise InputError(
            f"{wanted.model}: not a run folder, so its data are not known; give --data, or "
            "--images to calibrate on"
        )
    parser = options.eval_parser(known)
    parsed = options.parse(parser, [wanted.model, *rest])
    kept = {k: v for k, v in vars(parsed).items() if k not in ("model", "data", "json")}
    return options.make_data(parser, parsed), kept


def _bands(texts: list[str]) -> BandLike | dict[str, BandLike]:
    if len(texts) == 1 and "=" not in texts[0]:
        return band_of(texts[0])
    bands = {}
    for text in texts:
        pattern, equals, band = text.rpartition("=")
        if not equals:
            raise InputError(f"--k {text}: with more than one, each has to be PATTERN=K")
        bands[pattern] = band_of(band)
    return bands


def _images(wanted: argparse.Namespace, network: Any, data: Any) -> list[Tensor]:
    """What the network takes, of files or of the validation split."""
    from fsanet.data.images import list_images, read_image

    if wanted.images:
        pictures = [read_image(file) for file in list_images(wanted.images)]
    else:
        data.prepare_data()
        data.setup("validate")
        dataset = data.dataset("val")
        count = min(wanted.calibrate_images, len(dataset))
        pictures = [read_image(dataset[i * len(dataset) // count][0]) for i in range(count)]
    return [network.normalise(picture[None]) for picture in pictures]


def _evaluate(network: nn.Module, data: Any, how: dict[str, Any]) -> Any:
    from fsanet.train import evaluate

    return evaluate(network, data, **how)


def _compare(
    before: Any, after: nn.Module, data: Any, how: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Print and return mIoU, time and memory of both networks."""
    import torch

    from fsanet.convert.conversion import align_columns
    from fsanet.cost import Quartiles, Timed, peak_memory, time_calls
    from fsanet.data.images import read_image

    networks = {"before": before, "after": after}
    scores = {name: _evaluate(network, data, how) for name, network in networks.items()}
    gpu = torch.cuda.is_available() and how["accelerator"] in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if gpu else "cpu")
    picture = read_image(data.dataset(how["split"])[0][0])
    image = before.normalise(picture[None].to(device))
    calls = {name: partial(net.to(device).eval(), image) for name, net in networks.items()}
    with torch.inference_mode():
        timed = {name: Timed(call) for name, call in calls.items()}
        seconds = time_calls(timed, device=device, rounds=5)
        peaks = {name: peak_memory(call, device) or 0 for name, call in calls.items()}
    before.cpu(), after.cpu()
    rows = [["", "mIoU %", "pixel accuracy %", "ms", "peak MiB"]]
    found = {}
    for name, score in scores.items():
        middle = Quartiles.of(list(seconds[name].values())).median
        found[name] = {
            "miou": score.miou,
            "pixel_accuracy": score.pixel_accuracy,
            "seconds": middle,
            "peak_bytes": peaks[name],
        }
        figures = (100 * score.miou, 100 * score.pixel_accuracy, 1e3 * middle)
        rows.append([name, *(f"{v:.2f}" for v in figures), f"{peaks[name] / 2**20:.1f}"])
    height, width = picture.shape[-2:]
    print(f"\n{how['split']} split; time and memory of one {width} x {height} image on {device}:")
    print("\n".join(align_columns(rows, left=1)))
    return found


def _save_calibration(calibration: Calibration, out: Path) -> None:
    from fsanet.files import write_json, write_whole
    from fsanet.report.figures import draw_calibration

    picture = draw_calibration(calibration)
    write_json(out / "calibration.json", calibration.as_dict())
    write_whole(out / "calibration.png", lambda stream: stream.write(picture))


def _save(conversion: Conversion, source: str, out: Path) -> None:
    """In the format the network came in: this library's, or transformers'."""
    from fsanet.convert import convert_attention, save_converted

    if not _of_transformers(source):
        save_converted(conversion, out)
        return
    from transformers import SegformerForSemanticSegmentation

    plain = SegformerForSemanticSegmentation.from_pretrained(source)
    module = conversion.modules[0]
    again = convert_attention(
        plain,
        {glob.escape(one.name): one.k for one in conversion.modules},
        module.similarity,  # type: ignore[arg-type]
        route=module.route,  # type: ignore[arg-type]
        grid=module.grid or 1,
        in_place=True,
    )
    save_converted(again, out)


def _of_transformers(source: str) -> bool:
    file = Path(source, "config.json")
    return file.is_file() and "model_type" in json.loads(file.read_text(encoding="utf-8"))


def _how_to_load(conversion: Conversion, out: Path) -> str:
    alone = type(conversion.model).__name__ == "FsaNet" and conversion.modules[0].grid is None
    loader = "FsaNet.from_pretrained" if alone else "fsanet.load_model"
    return f"load with {loader}({str(out)!r})"
