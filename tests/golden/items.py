"""What is compared: one function per item, through the command line and the public names alone.

An item takes an empty folder to work in and returns values of JSON (see `golden.compare`).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from golden.compare import at_least, growing, mask, near
from PIL import Image, ImageOps
from safetensors.torch import save_file

import fsanet
from fsanet.cli import main as cli

HERE = Path(__file__).resolve().parent
SAVED = HERE / "saved"  # networks saved by version 0.1
RUN = HERE / "run"  # a run of version 0.1, stopped after 6 of 12 steps

Measure = Callable[[Path], dict[str, Any]]
ITEMS: dict[str, Measure] = {}


def item(name: str) -> Callable[[Measure], Measure]:
    """Make a function an item."""

    def register(measure: Measure) -> Measure:
        ITEMS[name] = measure
        return measure

    return register


def measured(name: str) -> dict[str, Any]:
    """The values of an item, computed on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            found = ITEMS[name](Path(folder))
    finally:
        torch.set_num_threads(threads)
    return json.loads(json.dumps(found))


def load_model(folder: Path) -> Any:
    return fsanet.load_model(folder).eval()


def rounded(value: float) -> float:
    """As many digits as a float32 has."""
    return float(f"{float(value):.9g}")


# --- the command line


@dataclass(frozen=True)
class Call:
    """A command that has ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Call:
    """Run `fsanet` with these arguments, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Call(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Call:
    """Run a command that has to end well."""
    found = call(*arguments)
    assert found.code == 0, f"{arguments}: {found.code}\n{found.err}"
    return found


def structure(value: Any) -> Any:
    """Names and types of JSON, without the values; what is told of the machine is left out.

    Later versions may have more names.
    """
    if isinstance(value, dict):
        if value and all(key.isdecimal() for key in value):
            return {"N": structure(next(iter(value.values())))}
        versions = ("versions", "environment")
        return at_least(
            {k: "of the machine" if k in versions else structure(v) for k, v in value.items()}
        )
    if isinstance(value, list):
        kinds = {json.dumps(structure(entry), sort_keys=True) for entry in value}
        return [json.loads(kind) for kind in sorted(kinds)]
    return {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}[type(value)]


def files(folder: Path) -> list[str]:
    """All files below a folder; names that are others each time, or by chance, are `*`."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = (re.sub(r"(tensorboard)/.*", r"\1/*", name) for name in found)
    return sorted({re.sub(r"(predictions/test)-\d\d", r"\1-*", name) for name in found})


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


# --- networks, images, data

TRAININGS: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "trainings.yaml").read_text())


def uniform(key: str, *shape: int) -> torch.Tensor:
    """Numbers of 0..1 that depend on the text alone."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    return torch.from_numpy(rng.random(shape))


def fixed_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Values that depend on names and shapes alone, at which a network does something."""
    found = {}
    for name, old in state.items():
        if not old.is_floating_point():
            found[name] = torch.zeros_like(old)
            continue
        value = uniform(name, *old.shape)
        if name.endswith("running_var") or (name.endswith("weight") and old.ndim == 1):
            value = 0.5 + value
        elif old.ndim <= 1:
            value = 0.4 * (value - 0.5)
        else:
            value = (2 * value - 1) * (3 / (old.numel() / old.shape[0])) ** 0.5
        found[name] = value.to(old.dtype)
    return found


def synthetic_images() -> torch.Tensor:
    """Two uint8 images (2, 3, 64, 96): smooth colours with blocks of noise."""
    coarse = uniform("coarse", 2, 3, 5, 7)
    smooth = torch.nn.functional.interpolate(coarse, (64, 96), mode="bilinear", align_corners=True)
    return (200 * smooth + 55 * uniform("fine", 2, 3, 64, 96)).to(torch.uint8)


def write_images(folder: Path) -> Path:
    """Three PNG images, one of them in a sub-folder."""
    sizes = {"a.png": (48, 128), "b.png": (61, 90), "sub/c.png": (72, 72)}
    for name, (height, width) in sizes.items():
        colours = uniform(name, 1, 3, 4, 6)
        picture = torch.nn.functional.interpolate(colours, (height, width), mode="nearest")[0]
        picture = 180 * picture + 75 * uniform(f"noise {name}", 3, height, width)
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()).save(file)
    return folder


# --- numbers of tensors


def of_tensor(values: torch.Tensor, *, rtol: float = 2e-5) -> dict[str, Any]:
    """Shape, dtype, and numbers that change when any value does: samples, mean, std, largest."""
    x = values.detach().double().flatten()
    largest = x.abs().max().item()
    step = max(1, x.numel() // 60) | 1
    waves = torch.cos(0.1 * torch.arange(x.numel(), dtype=torch.float64) ** 1.1)
    numbers = {
        "mean": rounded(x.mean()),
        "std": rounded(x.std(correction=0)),
        "largest": rounded(largest),
        "weighted": rounded((x * waves).mean()),
        "samples": [rounded(v) for v in x[::step].tolist()],
    }
    found = {"shape": list(values.shape), "dtype": str(values.dtype)}
    return found | {"numbers": near(numbers, rtol=rtol, atol=rtol * largest)}


def of_state(state: dict[str, torch.Tensor], *, rtol: float) -> dict[str, Any]:
    """Names and shapes, and the mean, mean size and a weighted mean of each tensor."""
    numbers = {}
    for name, value in state.items():
        x = value.double().flatten()
        waves = torch.cos(torch.arange(x.numel(), dtype=torch.float64))
        found = (x.mean(), x.abs().mean(), (x * waves).mean())
        numbers[name] = [rounded(v) for v in found]
    return {"shapes": shapes(state), "numbers": near(numbers, rtol=rtol, atol=rtol)}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in sorted(state.items())}


# --- networks saved by version 0.1


def _of_semantic(network: Any) -> dict[str, Any]:
    with torch.no_grad():
        logits = network(network.normalise(synthetic_images()))
    return {
        "class": type(network).__name__,
        "classes": list(network.classes),
        "palette": [list(colour) for colour in network.palette],
        "mean": list(network.mean),
        "state": shapes(network.state_dict()),
        "logits": of_tensor(logits),
        "mask": mask(logits.argmax(1)[0]),
    }


@item("saved/fsanet_dot")
def saved_dot(work: Path) -> dict[str, Any]:
    folder = SAVED / "fsanet_dot"
    found = _of_semantic(load_model(folder))
    images = synthetic_images()
    changed = fsanet.FsaNet.from_pretrained(folder, k=2, recurrence=1).eval()
    with torch.no_grad():
        logits = changed(changed.normalise(images))
    # The attention takes part: other frequencies give other logits.
    samples = torch.tensor(found["logits"]["numbers"]["values"]["samples"])
    step = max(1, logits.numel() // 60) | 1
    assert (samples - logits.flatten()[::step]).abs().max() > 0.01 * samples.abs().max()
    return found | {"k=2, recurrence=1": of_tensor(logits)}


for _name in ("fsanet_linear_softmax", "fsanet_ccnet", "fsanet_spatial", "converted_grid"):
    item(f"saved/{_name}")(lambda work, _folder=SAVED / _name: _of_semantic(load_model(_folder)))


@item("saved/converted_tokens")
def saved_converted_tokens(work: Path) -> dict[str, Any]:
    folder = SAVED / "converted_tokens"
    network = load_model(folder)
    alone = fsanet.FsaNet.from_pretrained(folder).eval()  # such a folder is a plain FsaNet, too
    images = network.normalise(synthetic_images())
    with torch.no_grad():
        other = alone(images)
    attention = type(network.head.attention).__name__
    return _of_semantic(network) | {"alone": of_tensor(other), "attention": attention}


@item("saved/segformer")
def saved_segformer(work: Path) -> dict[str, Any]:
    """Config, names and shapes are of version 0.1; 15 MB of values are made here."""
    folder = work / "segformer"
    folder.mkdir()
    shutil.copy(SAVED / "segformer" / "config.json", folder)
    kinds = {"F32": torch.float32, "I64": torch.int64}
    state = {
        name: torch.empty(entry["shape"], dtype=kinds[entry["dtype"]])
        for name, entry in read_json(SAVED / "segformer" / "tensors.json").items()
    }
    save_file(fixed_weights(state), folder / "model.safetensors", {"format": "pt"})
    return _of_semantic(load_model(folder))


@item("saved/mask_rcnn")
def saved_mask_rcnn(work: Path) -> dict[str, Any]:
    network = load_model(SAVED / "mask_rcnn")
    image = synthetic_images()[0, :, :, :80] / 255
    with torch.no_grad():
        (detected,) = network([image])
        features = network.backbone(image[None])
    return {
        "class": type(network).__name__,
        "classes": list(network.classes),
        "category_ids": list(network.category_ids),
        "state": shapes(network.state_dict()),
        "features": {name: of_tensor(value) for name, value in features.items()},
        "labels": detected["labels"].tolist(),
        "scores": of_tensor(detected["scores"], rtol=1e-2),
        "boxes": of_tensor(detected["boxes"], rtol=1e-2),
        "masks": of_tensor(detected["masks"], rtol=1e-2),
    }


# --- training

_OF_TIME = ("train/images_per_second", "train/data_wait")


def write_options(file: Path, options: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    return file


def train(work: Path, options: dict[str, Any], *more: object) -> tuple[Path, Call]:
    """The run folder of a training on the command line."""
    out = work / "run"
    config = write_options(work / "options.yaml", options)
    return out, done("train", "--config", config, "--out", out, *more)


def logged(out: Path) -> dict[str, list[float]]:
    """The columns of metrics.csv that do not depend on the time."""
    columns: dict[str, list[float]] = {}
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for name, text in row.items():
                if text != "" and name not in _OF_TIME:
                    columns.setdefault(name, []).append(rounded(float(text)))
    return columns


def plain_config(file: Path, work: Path) -> Any:
    """The options of a run; classes by their last name, no paths of this machine."""
    text = file.read_text(encoding="utf-8").replace(str(work), "WORK")
    text = re.sub(r"class_path: (?:\w+\.)*(\w+)", r"class_path: \1", text)
    return growing(yaml.safe_load(text))


def of_run(out: Path, said: Call, work: Path) -> dict[str, Any]:
    """What a training left and said."""
    columns = logged(out)
    losses = columns.pop("train/loss")
    with (out / "metrics.csv").open(encoding="utf-8") as stream:
        names = stream.readline().strip().split(",")
    rates = [name for name in columns if name.startswith("train/lr")]
    assert rates, list(columns)
    # Digits in the last place grow in training: that much later steps differ between processors.
    tolerance = [1e-4] * 5 + [2e-3] * (len(losses) - 5)
    best = re.search(r"best (?:mIoU|mask AP|val/miou|val/mask_AP) ([\d.]+)", said.out)
    assert best is not None, said.out
    return {
        "losses": near(losses, rtol=tolerance),
        "learning rates": near({name: columns.pop(name) for name in rates}, rtol=1e-6),
        "steps and epochs": [columns.pop("step"), columns.pop("epoch")],
        "metrics": near(columns, rtol=1e-2, atol=5e-3),
        "columns": at_least(dict.fromkeys(names, True)),
        "files": at_least(dict.fromkeys(files(out), True)),
        "config": plain_config(out / "config.yaml", work),
        "saved": shapes(load_model(out / "model").state_dict()),
        "said": re.sub(r"[\d.]+", "0", said.out.splitlines()[-1].replace(str(work), "WORK")),
    }


def train_item(training: str) -> Measure:
    def measure(work: Path) -> dict[str, Any]:
        out, said = train(work, TRAININGS[training])
        return of_run(out, said, work)

    return measure


for _name in TRAININGS:
    item(f"train/{_name}")(train_item(_name))


# --- a run begun by version 0.1


def copied_run(work: Path) -> Path:
    return Path(shutil.copytree(RUN, work / "run"))


@item("run/resume")
def resume(work: Path) -> dict[str, Any]:
    """Half a run of version 0.1, finished here; recorded are values of the whole run there."""
    out = copied_run(work)
    said = done("train", "--resume", "--out", out)
    columns = logged(out)
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    network = load_model(out / "model")
    with torch.no_grad():
        logits = network(network.normalise(synthetic_images()))
    best = re.search(r"best (?:mIoU|val/miou) ([\d.]+) after (\d+) of (\d+) steps", said.out)
    assert best is not None, said.out
    return {
        "losses": near(columns["train/loss"], rtol=[1e-4] * 8 + [2e-3] * 4),
        "metrics": near(columns, rtol=1e-2, atol=5e-3),
        "step": state["global_step"],
        "final weights": of_state(state["state_dict"], rtol=2e-3),
        "best": [near(float(best[1]), atol=5e-3), int(best[2]), int(best[3])],
        "logits of the best": of_tensor(logits, rtol=1e-3),
    }


@item("run/eval")
def evaluate(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run = copied_run(work)
    options: dict[str, list[object]] = {
        "as the run says": [],
        "val": ["--split", "val", "--flip", "false"],
        "window": ["--window", "40", "64", "--stride", "24", "--scales", "0.75", "1.0"],
        "boundary": ["--boundary", "--trimap", "1", "3", "--out", work / "tables"],
    }
    for name, how in options.items():
        file = work / "scores.json"
        done("eval", run, "--accelerator", "cpu", "--json", file, *how)
        scores = read_json(file)
        file.unlink()
        found[name] = {
            "structure": structure(scores),
            "scores": near({k: v for k, v in scores.items() if k in _SCORES}, atol=2e-3),
            "split": scores["split"],
        }
        if "boundary" in scores:
            edges = {k: v for k, v in scores["boundary"].items() if not isinstance(v, str)}
            found[name]["edges"] = near(_numbers(edges), atol=5e-3)
    tables = work / "tables"
    found["tables"] = files(tables)
    found["scores.json"] = structure(read_json(tables / "scores.json"))
    found["testing"] = read_json(tables / "scores.json")["testing"]
    found["confusion"] = near(read_json(tables / "scores.json")["confusion"], rtol=5e-3, atol=20)
    return found


_SCORES = ("miou", "pixel_accuracy", "mean_accuracy", "classes")


def _numbers(value: Any) -> Any:
    """Numbers alone, of dictionaries and lists of any depth."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items() if not isinstance(one, str)}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return value


@item("eval/instances")
def evaluate_instances(work: Path) -> dict[str, Any]:
    data = ["--data", "InstanceSceneData", "--data.picture", "[64,80]", "--data.test_length", "20"]
    more = ["--data.workers", "0", "--accelerator", "cpu", "--json", work / "scores.json"]
    done("eval", SAVED / "mask_rcnn", *data, *more)
    scores = read_json(work / "scores.json")
    found = {name: scores[name] for name in ("box", "mask")}
    assert scores["box"]["AP50"] > 0.005, scores  # else there is nothing to compare
    return {
        "structure": structure(scores),
        "scores": near(found, rtol=1e-2, atol=1e-4),
        "counts": [scores["images"], scores["instances"]],
    }


@item("run/sweep")
def sweep(work: Path) -> dict[str, Any]:
    out = work / "sweep"
    what = ["--k", "1", "2", "full", "--bands", "low", "high", "0:1,2:", "--cuts", "1", "2"]
    said = done("sweep", copied_run(work), *what, "--out", out, "--accelerator", "cpu")
    content = read_json(out / "sweep.json")
    points = {row["name"]: row["no_retraining"]["miou"] for row in content["points"]}
    assert len(set(points.values())) > 2  # frequencies count
    return {
        "files": files(out),
        "structure": structure(content),
        "miou": near(points, atol=2e-3),
        "split": content["about"]["split"],
        "said": [line.split(":")[0] for line in said.out.splitlines() if ": mIoU" in line],
    }


# --- prediction


def _read(file: Path) -> Any:
    with Image.open(file) as image:
        return np.asarray(image)


def _predicted(work: Path, model: Path, *how: object, several: bool = True) -> dict[str, Any]:
    """What `fsanet predict` leaves; ``several``: a mask of one class would prove nothing."""
    out = work / "out"
    done("predict", write_images(work / "in"), "--model", model, "--out", out, *how)
    names = files(out)
    found: dict[str, Any] = {"files": names}
    for name in names:
        file = out / name
        if name.endswith(".json"):
            content = read_json(file)
            found[name] = structure(content)
            if name == "summary.json":
                found["settings"] = content["settings"] | {"device": "", "seconds": ""}
                found["images"] = content["images"]
        elif name.endswith(("_mask.png", "_instances.png")):
            with Image.open(file) as image:
                found[f"{name}, mode"] = image.mode
                colours = (image.getpalette() or [])[:24]
            found[name] = mask(_read(file)) | {"palette": colours}
            assert not several or len(np.unique(_read(file))) > 2, name
        else:
            with Image.open(file) as image:
                found[name] = {"size": list(image.size), "mode": image.mode}
            found[name]["mean"] = near(rounded(_read(file).mean()), rtol=5e-3)
    return found


@item("predict/whole")
def predict_whole(work: Path) -> dict[str, Any]:
    return _predicted(work, SAVED / "fsanet_dot")


@item("predict/window")
def predict_window(work: Path) -> dict[str, Any]:
    window = ["--window", "32", "48", "--stride", "16", "--batch-size", "2"]
    return _predicted(work, SAVED / "fsanet_linear_softmax", *window)


@item("predict/scales_flip")
def predict_views(work: Path) -> dict[str, Any]:
    views = ["--scales", "0.75", "1.25", "--flip", "--no-legend"]
    return _predicted(work, SAVED / "fsanet_ccnet", *views)


@item("predict/confidence")
def predict_confidence(work: Path) -> dict[str, Any]:
    return _predicted(work, SAVED / "converted_grid", "--confidence", "--no-recursive")


@item("predict/instances")
def predict_instances(work: Path) -> dict[str, Any]:
    found = _predicted(work, SAVED / "mask_rcnn", "--score", "0.01")
    results = read_json(work / "out" / "results.json")
    assert results
    scores = [entry["score"] for entry in results]
    places = [[entry["image_id"], entry["category_id"]] for entry in results]
    return found | {"scores": near(scores, atol=1e-3), "of images and classes": places}


@item("predict/fingerprint")
def fingerprint(work: Path) -> dict[str, Any]:
    """What `--resume` and a sweep that goes on compare: equal, so an old folder goes on here."""
    found = {}
    for name in ("fsanet_dot", "fsanet_ccnet", "converted_grid"):
        out = work / name
        done("predict", write_images(work / "in") / "a.png", "--model", SAVED / name, "--out", out)
        found[name] = read_json(out / "summary.json")["model"]
    return found


@item("predict/cityscapes_export")
def predict_cityscapes(work: Path) -> dict[str, Any]:
    options = TRAININGS["dot"]["model"] | {"num_classes": 19, "aux_channels": 0}
    network = fsanet.FsaNet(**options)
    network.load_state_dict(fixed_weights(network.state_dict()))
    network.save_pretrained(work / "network")
    for index in range(2):
        file = work / "in" / "berlin" / f"berlin_{index:06}_000019_leftImg8bit.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(synthetic_images()[index].permute(1, 2, 0).numpy())
        ImageOps.flip(picture).save(file)
    zipped = work / "all.zip"
    done("predict", work / "in", "--model", work / "network", "--cityscapes-export", zipped)
    with zipfile.ZipFile(zipped) as archive:
        names = sorted(archive.namelist())
        ids = {name: _read(io.BytesIO(archive.read(name))) for name in names}  # type: ignore[arg-type]
    return {
        "names": names,
        "masks": {name: mask(array) for name, array in ids.items()},
        "ids": sorted({int(i) for array in ids.values() for i in np.unique(array)}),
    }


# --- the other commands


@item("convert/with_eval")
def convert(work: Path) -> dict[str, Any]:
    """With evaluation before and after, on data given on the command line."""
    out = work / "out"
    data = ["--data", "SceneData", "--data.size", "[48,128]", "--data.test_length", "3"]
    data += ["--data.workers", "0", "--accelerator", "cpu", "--progress", "false"]
    what = ["--k", "2,3", "--size", "48", "128", "--eval", "--split", "test", *data]
    done("convert", SAVED / "fsanet_spatial", "--out", out, *what)
    report = read_json(out / "report.json")
    scores = {
        name: {key: row[key] for key in ("miou", "pixel_accuracy")}
        for name, row in report["evaluation"].items()
    }
    return {
        "files": files(out),
        "structure": structure(report),
        "flops": report["flops"],
        "modules": report["modules"],
        "scores": near(scores, atol=2e-3),
        "conversion": read_json(out / "fsanet_conversion.json"),
        "config": growing(read_json(out / "config.json")),
    }


# --- options and mistakes


def _mistakes(work: Path) -> Iterator[tuple[str, list[object]]]:
    config = write_options(work / "options.yaml", TRAININGS["dot"])
    bad = write_options(work / "bad.yaml", TRAININGS["dot"] | {"modle": {"k": 3}})
    (work / "broken.yaml").write_text("model: [3\n")
    out = ["--out", work / "out"]
    training = ["train", "--config", config, *out]
    model, images = SAVED / "fsanet_dot", write_images(work / "in")
    (work / "no_image.png").write_bytes(b"no image")
    yield "no command", []
    yield "unknown command", ["trian"]
    yield "train without options", ["train"]
    yield "train: unknown option", [*training, "--model.kk", "3"]
    yield "train: unknown key in the file", ["train", "--config", bad, *out]
    yield "train: broken file", ["train", "--config", work / "broken.yaml", *out]
    yield "train: missing file", ["train", "--config", work / "none.yaml", *out]
    yield "train: value of another type", [*training, "--task.lr", "fast"]
    yield "train: value that makes no sense", [*training, "--model.k", "0"]
    yield "train: unknown class of data", [*training, "--data", "CamVid"]
    yield "train: unknown encoder", [*training, "--model.encoder", "resnet1o1"]
    yield "train: nothing to resume", [*training, "--resume"]
    yield "train: a run is there", ["train", "--config", config, "--out", copied_run(work)]
    yield "eval: no such folder", ["eval", work / "none", "--data", "SceneData"]
    yield "eval: no data", ["eval", model]
    yield "predict: no model", ["predict", images, *out]
    yield "predict: no image", ["predict", work / "none.png", "--model", model, *out]
    yield "predict: no picture", ["predict", work / "no_image.png", "--model", model, *out]
    yield "predict: window of no size", ["predict", images, "--model", model, *out, "--window", "0"]
    yield "predict: alpha", ["predict", images, "--model", model, *out, "--alpha", "3"]
    yield "convert: k", ["convert", model, "--k", "x", *out]
    yield "convert: no attention to convert", ["convert", model, "--match", "tail*", *out]
    yield "sweep: k", ["sweep", work / "run", *out, "--k", "0"]
    yield "export: ending", ["export", model, "--out", work / "network.xyz"]
    yield "bench: no such layer", ["bench", "--layers", "dot-3"]
    yield "bench: size", ["bench", "--sizes", "97"]
    yield "data: no such folder", ["data", "check", work / "none"]
    yield "demo: minutes", ["demo", "--minutes", "0", *out]


@item("options/mistakes")
def mistakes(work: Path) -> dict[str, Any]:
    """Exit code and number of lines of wrong command lines, and that nothing is left; no words."""
    found = {}
    for name, arguments in _mistakes(work):
        said = call(*arguments)
        lines = said.err.splitlines()
        found[name] = {
            "code": said.code,
            "lines": len(lines),
            "begins as it should": said.err.startswith("fsanet: error: "),
            "run left behind": any(
                (work / "out" / part).exists() for part in ("config.yaml", "model", "checkpoints")
            ),
        }
    return found
