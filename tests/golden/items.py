"""What is recorded: one function an item, through public entry points alone.

An item takes an empty folder to work in and gives values of JSON (see `golden.compare`). So the
same code runs on the tree the values were recorded from and on any later one.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
import inspect
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from golden.compare import at_least, mask, near, note, rounded
from PIL import Image

import fsanet

HERE = Path(__file__).resolve().parent
SAVED = HERE / "saved"  # networks, written by the old tree
RUN = HERE / "run"  # a run that was stopped after 6 of 12 steps, written by the old tree


@dataclass(frozen=True)
class Item:
    """One thing that is compared."""

    name: str
    measure: Callable[[Path], dict[str, Any]]
    slow: bool


ITEMS: dict[str, Item] = {}


def item(name: str, *, slow: bool = False) -> Callable[[Any], Any]:
    """Make a function an item; ``slow`` ones take more than a few seconds."""

    def register(measure: Any) -> Any:
        assert name not in ITEMS, name
        ITEMS[name] = Item(name, measure, slow)
        return measure

    return register


def measured(name: str, *, recording: bool = False) -> dict[str, Any]:
    """The values of an item on the tree that is imported, on one thread.

    Args:
        name: of the item.
        recording: where an item is to reproduce something else, take that.
    """
    measure = uninterrupted if recording and name == "run/resume" else ITEMS[name].measure
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            found = measure(Path(folder))
    finally:
        torch.set_num_threads(threads)
    return json.loads(json.dumps(found))


# --- what is called by another name in the old tree -----------------------------------------


def load_model(folder: Path) -> Any:
    """`fsanet.load_model`, or what the old tree has in its place."""
    load = getattr(fsanet, "load_model", None)
    if load is None:
        converted = (folder / "fsanet_conversion.json").is_file()
        place = "fsanet.predict_folder" if converted else "fsanet.models"
        load = importlib.import_module(place).load_model
    return load(folder).eval()


# --- the command line ------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A command that has ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Call:
    """Run `python -m fsanet` with these arguments, in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["fsanet", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module("fsanet", run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return Call(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Call:
    """Run a command that has to end well."""
    found = call(*arguments)
    assert found.code == 0, f"{arguments}: {found.code}\n{found.err}"
    return found


def real_process(*arguments: object) -> Call:
    """Run a command in a process of its own, on the same tree."""
    source = str(Path(fsanet.__file__).resolve().parents[1])
    found = subprocess.run(
        [sys.executable, "-m", "fsanet", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return Call(found.returncode, found.stdout, found.stderr)


def structure(value: Any) -> Any:
    """Names and types of JSON, without the values; what is told of the machine is left out.

    Later versions may have more names; the table tells which.
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


# --- networks, images, data ------------------------------------------------------------------

ENCODER = {"encoder": "resnet10t", "encoder_options": {"channels": [8, 8, 8, 16], "stem_width": 8}}
NETWORK = ENCODER | {
    "attention": "frequency",
    "k": 4,
    "recurrence": 2,
    "zero_init": False,
    "head_channels": 8,
    "aux_channels": 8,
    "dropout": 0.1,
    "output_stride": 8,
}
SCENES = {
    "class_path": "SceneData",
    "init_args": {
        "size": [48, 128],
        "train_length": 12,
        "val_length": 4,
        "test_length": 4,
        "batch_size": 4,
        "steps_per_epoch": 10,
        "workers": 0,
    },
}
TASK = {
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.01,
    "decay_norms": False,
    "warmup_steps": 2,
}
TRAINING = {"steps": 20, "log_every": 1, "accelerator": "cpu", "devices": 1, "seed": 0}
SEMANTIC = {"model": NETWORK, "data": SCENES, "task": TASK, **TRAINING}
SEGFORMER = SEMANTIC | {
    "model": {
        "class_path": "SegformerFsa",
        "init_args": {"variant": "b0", "k": 4, "recurrence": 2, "zero_init": False},
    },
    "data": SCENES | {"init_args": SCENES["init_args"] | {"batch_size": 2}},
    "task": TASK | {"lr": 0.001},
}
INSTANCES = {
    "class_path": "InstanceSceneData",
    "init_args": {
        "picture": [64, 80],
        "train_length": 200,
        "val_length": 10,
        "test_length": 10,
        "batch_size": 2,
        "steps_per_epoch": 10,
        "workers": 0,
    },
}
MASK_RCNN = {
    "model": {
        "backbone": "resnet18",
        "backbone_options": {"channels": [8, 8, 8, 16], "stem_width": 8},
        "positions": ["res4", "p4"],
        "k": 4,
        "fpn_channels": 8,
        "box_channels": 16,
        "mask_channels": 8,
        "anchor_sizes": [8, 16, 24, 32, 48],
        "min_size": 64,
        "max_size": 80,
        "detector_options": {
            "rpn_pre_nms_top_n_train": 100,
            "rpn_post_nms_top_n_train": 40,
            "rpn_pre_nms_top_n_test": 50,
            "rpn_post_nms_top_n_test": 20,
            "box_batch_size_per_image": 16,
            "box_score_thresh": 0.0,
            "box_detections_per_img": 8,
        },
    },
    "data": INSTANCES,
    "task": {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.01, "warmup_steps": 2},
    "gradient_clip": 10.0,
    **TRAINING,
}
TRAININGS: dict[str, dict[str, Any]] = {
    "dot": SEMANTIC,
    "linear_softmax": SEMANTIC
    | {
        "model": NETWORK | {"similarity": "linear_softmax", "recurrence": 1},
        "task": TASK | {"loss": "ohem", "ohem_min_kept": 500, "freeze_batchnorm": "encoder"},
    },
    "ccnet": SEMANTIC
    | {
        "model": NETWORK | {"block": "ccnet", "k": [[0, 5], [0, 3]], "qkv_bias": True},
        "task": TASK | {"optimizer": "sgd", "head_lr_multiplier": 10.0},
    },
    "spatial": SEMANTIC
    | {
        "model": NETWORK | {"attention": "spatial", "similarity": "softmax", "recurrence": 1},
        "task": TASK | {"class_weights": [0.7, 0.7, 1.5, 1.5, 1.5, 2.0, 2.0]},
    },
    "segformer": SEGFORMER,
    "instances": MASK_RCNN,
    "instances, longer": MASK_RCNN
    | {
        "data": INSTANCES
        | {"init_args": INSTANCES["init_args"] | {"batch_size": 4, "steps_per_epoch": 200}},
        "task": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01, "warmup_steps": 2},
        "steps": 200,
    },
}
#: Networks in `SAVED`, and the training each is the result of.
SAVED_BY = {
    "fsanet_dot": "dot",
    "fsanet_linear_softmax": "linear_softmax",
    "fsanet_ccnet": "ccnet",
    "fsanet_spatial": "spatial",
    "mask_rcnn": "instances, longer",
}
CONVERSIONS = {
    "converted_tokens": ["--k", "3", "--similarity", "softmax"],
    "converted_grid": ["--k", "3,5", "--route", "grid", "--grid", "5"],
}
# At this rate it is best after 3 steps: only a run that remembers this keeps the right network.
STOPPED = SEMANTIC | {
    "steps": 12,
    "data": SCENES | {"init_args": SCENES["init_args"] | {"steps_per_epoch": 3}},
    "task": TASK | {"lr": 0.05},
    "test": {"flip": True},
}


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


def with_fixed_weights(model: Any) -> Any:
    model.load_state_dict(fixed_weights(model.state_dict()))
    return model


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


def write_folder_data(root: Path) -> dict[str, Any]:
    """A data set of blocks of three colours on disk, and the options that name it."""
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for index in range(count):
            ids = (3 * uniform(f"{split} {index}", 5, 7)).to(torch.uint8)
            ids = ids.repeat_interleave(16, 0).repeat_interleave(16, 1)  # (80, 112)
            colours = torch.stack([150 * (ids == c) for c in range(3)], -1)
            noise = 80 * uniform(f"noise {split} {index}", *colours.shape)
            ids[:3] = 255
            for part, array in (("images", (colours + noise).to(torch.uint8)), ("masks", ids)):
                file = root / split / part / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.numpy()).save(file)
    options = {
        "root": str(root),
        "classes": ["red", "green", "blue"],
        "batch_size": 2,
        "steps_per_epoch": 10,
        "crop": [64, 64],
        "scale": [0.5, 2.0],
        "class_ratio": 0.75,
        "workers": 0,
    }
    return {"class_path": "FolderData", "init_args": options}


# --- numbers of tensors ----------------------------------------------------------------------


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


# --- the public names ------------------------------------------------------------------------

_NAMES = (
    *("BandTreatments", "FrequencySelfAttention", "SpatialSelfAttention"),
    *("FsaNet", "Predictor", "calibrate", "convert_attention"),
)


@item("api/signatures")
def signatures(work: Path) -> dict[str, Any]:
    found = {}
    for name in _NAMES:
        parameters = inspect.signature(getattr(fsanet, name)).parameters.values()
        accepted = {
            p.name: [p.kind.name, _default(p.default)]
            for p in parameters
            if not p.name.startswith("_")
        }
        if "options" in accepted:  # declared once since 0.2: by a base class or for conversions
            shared = getattr(fsanet, name)
            if inspect.isclass(shared):
                shared = shared.__mro__[1]
            else:
                from fsanet.convert import ConversionOptions as shared
            for p in inspect.signature(shared).parameters.values():
                default = "tuple" if p.name == "kinds" else _default(p.default)
                accepted.setdefault(p.name, ["KEYWORD_ONLY", default])
        found[name] = at_least(accepted)
    return {"all": at_least({name: name in fsanet.__all__ for name in _NAMES}), **found}


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    parts = value if isinstance(value, tuple) else (value,)
    plain = all(part is None or isinstance(part, bool | int | float | str) for part in parts)
    return repr(value) if plain else type(value).__name__


_LAYERS: dict[str, dict[str, Any]] = {
    "dot": {"k": 4},
    "dot_r2": {"k": 4, "recurrence": 2},
    "dot_all": {"k": None},
    "dot_rectangle": {"k": ((1, 5), (0, 3)), "recurrence": 2},
    "linear_softmax_r2": {"k": (4, 3), "similarity": "linear_softmax", "recurrence": 2},
    "linear": {"k": 4, "similarity": "linear", "scale": 0.01},
    "softmax": {"k": 4, "similarity": "softmax"},
    "ccnet_r2": {"k": 3, "block": "ccnet", "recurrence": 2, "qkv_bias": True},
    "widths": {"k": 3, "qk_channels": 3, "value_channels": 5, "norm": False},
}


def _of_layer(layer: Any, *, training: bool = False) -> dict[str, Any]:
    """Output and gradients of a layer of 8 channels on a fixed map."""
    with_fixed_weights(layer).train(training)
    x = (2 * uniform("map", 2, 8, 9, 12) - 1).float().requires_grad_()
    y = layer(x)
    (y * (uniform("direction", *y.shape).float() - 0.5)).sum().backward()
    slopes = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {
        "output": of_tensor(y),
        "of_input": of_tensor(x.grad),
        "of_parameters": of_state(slopes, rtol=1e-4),
        "state": shapes(layer.state_dict()),
    }


@item("api/frequency_attention")
def frequency_attention(work: Path) -> dict[str, Any]:
    found = {
        name: _of_layer(fsanet.FrequencySelfAttention(8, **options))
        for name, options in _LAYERS.items()
    }
    layer = fsanet.FrequencySelfAttention(8, k=4, recurrence=2)
    return found | {"dot_r2, training": _of_layer(layer, training=True)}


@item("api/spatial_attention")
def spatial_attention(work: Path) -> dict[str, Any]:
    kinds = ("dot", "linear_softmax", "linear", "softmax")
    layers = {
        kind: fsanet.SpatialSelfAttention(8, similarity=kind, recurrence=2, scale=0.02)
        for kind in kinds
    }
    layers["ccnet"] = fsanet.SpatialSelfAttention(8, similarity="softmax", block="ccnet")
    return {name: _of_layer(layer) for name, layer in layers.items()}


@item("api/band_treatments")
def band_treatments(work: Path) -> dict[str, Any]:
    def treatments() -> list[Any]:
        convolution = torch.nn.Conv2d(8, 8, 1, groups=8, bias=False)
        softmax = fsanet.FrequencySelfAttention(8, similarity="linear_softmax")
        return [
            (2, fsanet.FrequencySelfAttention(8, recurrence=2)),
            (((0, 2), (2, 4)), convolution),
            (((2, 4), (0, 2)), "drop"),
            (((4, None), (4, None)), softmax),
        ]

    rests: tuple[Any, ...] = ("identity", "drop")
    return {rest: _of_layer(fsanet.BandTreatments(treatments(), rest=rest)) for rest in rests}


@item("api/fsanet")
def network_of_python(work: Path) -> dict[str, Any]:
    """Seeded first weights, what they give, and what is saved."""
    torch.manual_seed(0)
    network = fsanet.FsaNet(num_classes=5, **NETWORK).eval()
    network.save_pretrained(work / "network")
    again = fsanet.FsaNet.from_pretrained(work / "network").eval()
    images = network.normalise(synthetic_images())
    with torch.no_grad():
        logits = network(images)
        assert torch.equal(again(images), logits)
        both = network.forward_with_auxiliary(images)
    torch.manual_seed(0)
    plain = fsanet.FsaNet(num_classes=5, **(NETWORK | {"zero_init": True, "aux_channels": 0}))
    with torch.no_grad():
        other = plain.eval()(images)
    return {
        "weights": of_state(network.state_dict(), rtol=1e-5),
        "logits": of_tensor(logits),
        "auxiliary": of_tensor(both[1]),
        "zero_init": of_tensor(other),
        "files": files(work / "network"),
        "config": read_json(work / "network" / "config.json"),
        "repr_of_attention": repr(network.head.attention).splitlines()[1].strip(),
    }


@item("api/convert_and_calibrate")
def convert_and_calibrate(work: Path) -> dict[str, Any]:
    network = load_model(SAVED / "fsanet_spatial")
    images = network.normalise(synthetic_images())
    found: dict[str, Any] = {}
    options: dict[str, Any] = {
        "tokens": {"k": 3},
        "grid": {"k": (3, 2), "route": "grid", "grid": 4},
        "whole band": {"k": None},
        "linear": {"k": {"*attention*": 4}, "similarity": "linear"},
    }
    for name, how in options.items():
        conversion = fsanet.convert_attention(network, **how)
        flops = conversion.flops((64, 96))
        with torch.no_grad():
            logits = conversion.model.eval()(images)
        found[name] = {
            "logits": of_tensor(logits),
            "modules": [module.as_dict() for module in conversion.modules],
            "flops": [flops.before, flops.after],
            "table": conversion.table((64, 96)).splitlines()[0].split(),
        }
    chosen = fsanet.calibrate(network, [images], tolerance=0.02)
    errors = {
        name: {str(k): rounded(error) for k, error in of_module.items()}
        for name, of_module in chosen.errors.items()
    }
    found["calibrate"] = {"k": chosen.k, "errors": near(errors, rtol=1e-2, atol=1e-4)}
    return found


@item("api/predictor")
def predictor(work: Path) -> dict[str, Any]:
    network = load_model(SAVED / "fsanet_dot")
    image = synthetic_images()[0]
    found = {}
    options: dict[str, Any] = {
        "whole": {},
        "window": {"window": 40, "stride": (24, 32), "batch_size": 3},
        "views": {"scales": (0.75, 1.25), "flip": True, "confidence": True},
    }
    for name, how in options.items():
        result = fsanet.Predictor(network, **how)(image)
        found[name] = {"mask": mask(result.mask), "classes": list(result.counts())}
        found[name]["colours"] = [list(colour) for colour in result.palette]
        if result.confidence is not None:
            found[name]["confidence"] = of_tensor(result.confidence)
    return found


# --- networks that the old tree saved --------------------------------------------------------


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
        "headline": note(f"logits {logits.mean():.6f}, std {logits.std():.6f}"),
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


@item("saved/fsanet_linear_softmax")
def saved_linear_softmax(work: Path) -> dict[str, Any]:
    return _of_semantic(load_model(SAVED / "fsanet_linear_softmax"))


@item("saved/fsanet_ccnet")
def saved_ccnet(work: Path) -> dict[str, Any]:
    return _of_semantic(load_model(SAVED / "fsanet_ccnet"))


@item("saved/fsanet_spatial")
def saved_spatial(work: Path) -> dict[str, Any]:
    return _of_semantic(load_model(SAVED / "fsanet_spatial"))


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


@item("saved/converted_grid")
def saved_converted_grid(work: Path) -> dict[str, Any]:
    return _of_semantic(load_model(SAVED / "converted_grid"))


@item("saved/segformer")
def saved_segformer(work: Path) -> dict[str, Any]:
    """Config, names and shapes are of a file of the old tree; 15 MB of values are made here."""
    from safetensors.torch import save_file

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


# --- training --------------------------------------------------------------------------------

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
    """Every option of a run; classes by their last name, no paths of this machine."""
    text = file.read_text(encoding="utf-8").replace(str(work), "WORK")
    return yaml.safe_load(re.sub(r"class_path: (?:\w+\.)*(\w+)", r"class_path: \1", text))


def of_run(out: Path, said: Call, work: Path, *, first: float = 1e-4) -> dict[str, Any]:
    """What a training left and said; ``first``: relative tolerance of the losses it begins with."""
    columns = logged(out)
    losses = columns.pop("train/loss")
    with (out / "metrics.csv").open(encoding="utf-8") as stream:
        names = stream.readline().strip().split(",")
    rates = [name for name in columns if name.startswith("train/lr")]
    assert rates, list(columns)
    # Digits in the last place grow in training: that much later steps differ between processors.
    tolerance = [first] * 5 + [20 * first] * (len(losses) - 5)
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
        "said": re.sub(r"[\d.]+", "0", said.out.splitlines()[-1].replace(str(work), "WORK")),
        "headline": note(f"loss {losses[0]:.6f} to {losses[-1]:.6f}; best {best[1]}"),
    }


def _saved_run(out: Path) -> dict[str, Any]:
    return {"saved": shapes(load_model(out / "model").state_dict())}


@item("train/dot")
def train_dot(work: Path) -> dict[str, Any]:
    out, said = train(work, TRAININGS["dot"])
    return of_run(out, said, work) | _saved_run(out)


@item("train/linear_softmax")
def train_linear_softmax(work: Path) -> dict[str, Any]:
    return of_run(*train(work, TRAININGS["linear_softmax"]), work)


@item("train/ccnet", slow=True)
def train_ccnet(work: Path) -> dict[str, Any]:
    return of_run(*train(work, TRAININGS["ccnet"]), work)


@item("train/spatial", slow=True)
def train_spatial(work: Path) -> dict[str, Any]:
    return of_run(*train(work, TRAININGS["spatial"]), work)


@item("train/segformer", slow=True)
def train_segformer(work: Path) -> dict[str, Any]:
    out, said = train(work, TRAININGS["segformer"])
    return of_run(out, said, work) | _saved_run(out)


@item("train/instances")
def train_instances(work: Path) -> dict[str, Any]:
    out, said = train(work, TRAININGS["instances"])
    return of_run(out, said, work) | _saved_run(out)


@item("train/folder")
def train_folder(work: Path) -> dict[str, Any]:
    """Images on disk with every augmentation, accumulated batches, options on the command line."""
    options = SEMANTIC | {"data": write_folder_data(work / "data"), "steps": 5}
    more = ["--model.k", "[3,2]", "--data.init_args.accumulate=2", "--task.lr=0.003"]
    # Images are resized in 8 bits, which another processor rounds in another way.
    return of_run(*train(work, options, *more), work, first=5e-3)


# --- a run that the old tree began -----------------------------------------------------------


def _of_final(out: Path, said: Call, work: Path) -> dict[str, Any]:
    columns = logged(out)
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    network = load_model(out / "model")
    with torch.no_grad():
        logits = network(network.normalise(synthetic_images()))
    best = re.search(r"best (?:mIoU|val/miou) ([\d.]+) after (\d+) of (\d+) steps", said.out)
    assert best is not None, said.out
    losses = columns["train/loss"]
    return {
        "losses": near(losses, rtol=[1e-4] * 8 + [2e-3] * 4),
        "metrics": near(columns, rtol=1e-2, atol=5e-3),
        "step": state["global_step"],
        "final weights": of_state(state["state_dict"], rtol=2e-3),
        "best": [near(float(best[1]), atol=5e-3), int(best[2]), int(best[3])],
        "logits of the best": of_tensor(logits, rtol=1e-3),
        "headline": note(f"loss {losses[0]:.6f} to {losses[-1]:.6f}; best {best[1]}"),
    }


def uninterrupted(work: Path) -> dict[str, Any]:
    """What the run is to come to: the same training, never stopped. For recording alone."""
    out, said = train(work, STOPPED)
    return _of_final(out, said, work)


def copied_run(work: Path) -> Path:
    return Path(shutil.copytree(RUN, work / "run"))


@item("run/resume")
def resume(work: Path) -> dict[str, Any]:
    """The old tree's half of a run, finished here; recorded are values of the whole run there."""
    out = copied_run(work)
    said = done("train", "--resume", "--out", out)
    return _of_final(out, said, work)


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
    miou = found["as the run says"]["scores"]["values"]["miou"]
    return found | {"headline": note(f"mIoU {miou:.6f}")}


_SCORES = ("miou", "pixel_accuracy", "mean_accuracy", "classes")


def _numbers(value: Any) -> Any:
    """Numbers alone, of dictionaries and lists of any depth."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items() if not isinstance(one, str)}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return value


@item("command/eval_saved")
def evaluate_saved(work: Path) -> dict[str, Any]:
    """A network that is not of a run, on data given on the command line."""
    data = ["--data", "SceneData", "--data.size", "[48,128]", "--data.test_length", "3"]
    more = ["--data.workers", "0", "--accelerator", "cpu", "--json", work / "scores.json"]
    done("eval", SAVED / "fsanet_ccnet", *data, *more)
    scores = read_json(work / "scores.json")
    assert sum((row["iou"] or 0) > 0 for row in scores["classes"].values()) > 2, scores
    return {"scores": near({k: v for k, v in scores.items() if k in _SCORES}, atol=2e-3)}


@item("command/eval_instances")
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
        "headline": note(f"AP50 of boxes {scores['box']['AP50']:.6f}"),
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
        "headline": note(f"as trained {points['as trained']:.6f}"),
    }


# --- prediction ------------------------------------------------------------------------------


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


@item("predict/run_folder")
def predict_run_folder(work: Path) -> dict[str, Any]:
    return _predicted(work, RUN, "--alpha", "0.8", several=False)


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


@item("predict/resume")
def predict_resume(work: Path) -> dict[str, Any]:
    """Finished images stay as they are; other settings are refused."""
    images, out = write_images(work / "in"), work / "out"
    common = ["predict", images, "--model", SAVED / "fsanet_dot", "--out", out]
    done(*common)
    (out / "b_mask.png").unlink()
    done(*common, "--resume")
    refused = call(*common, "--resume", "--flip")
    return {
        "done before": read_json(out / "summary.json")["done_before"],
        "again": (out / "b_mask.png").is_file(),
        "refused": refused.code,
    }


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
    import zipfile

    from PIL import ImageOps

    torch.manual_seed(0)
    network = fsanet.FsaNet(num_classes=19, **(NETWORK | {"aux_channels": 0}))
    with_fixed_weights(network).save_pretrained(work / "network")
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


# --- the other commands ----------------------------------------------------------------------


@item("command/convert")
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
        "config": read_json(out / "config.json"),
        "headline": note(f"mIoU {scores['before']['miou']:.6f} to {scores['after']['miou']:.6f}"),
    }


@item("command/convert_calibrate")
def convert_calibrate(work: Path) -> dict[str, Any]:
    out = work / "out"
    what = ["--calibrate", "0.03", "--route", "grid", "--grid", "6", "--route-error"]
    what += ["--size", "64", "--images", write_images(work / "in") / "a.png"]
    done("convert", SAVED / "fsanet_spatial", "--out", out, *what)
    found, report = read_json(out / "calibration.json"), read_json(out / "report.json")
    return {
        "files": files(out),
        "calibration": structure(found),
        "k": found["k"],
        "errors": near(found["errors"], rtol=1e-2, atol=1e-4),
        "report": structure(report),
        "route_error": near(report["route_error"], rtol=2e-2, atol=1e-6),
        "modules": report["modules"],
    }


@item("command/data_check")
def data_check(work: Path) -> dict[str, Any]:
    write_folder_data(work / "data")
    file = work / "report.json"
    common = ["data", "check", work / "data", "--workers", "0", "--json", file]
    found = {}
    for name, classes in (("right", "3"), ("wrong", "2")):
        said = call(*common, "--num-classes", classes)
        report = read_json(file)
        report.pop("seconds", None)
        for problem in report["problems"]:
            problem["message"] = "id 2" in problem["message"]  # the wording may change
        found[name] = {
            "code": said.code,
            "lines": len(said.err.splitlines()),
            "structure": structure(read_json(file)),
            "report": json.loads(json.dumps(report).replace(str(work), "WORK")),
        }
    found["quick"] = {"code": call("data", "check", work / "data", "--quick").code}
    return found


def _export(work: Path, name: str, *how: str) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """The exported file, an image of 96 x 128 pixels, and the logits to come."""
    file = work / name
    source = SAVED / "fsanet_linear_softmax"
    done("export", source, "--out", file, *how)
    images = torch.nn.functional.pad(synthetic_images()[:1] / 255, (0, 32, 0, 32), value=0.5)
    network = load_model(source)
    with torch.no_grad():
        return file, images, network(network.normalise(images))


def _agreement(got: torch.Tensor, want: torch.Tensor) -> dict[str, Any]:
    error = ((got - want).abs().max() / want.abs().max()).item()
    return {"agrees": error < 1e-4, "logits": of_tensor(got)}


@item("command/export_onnx", slow=True)
def export_onnx(work: Path) -> dict[str, Any]:
    import onnxruntime

    file, images, want = _export(work, "network.onnx", "--size", "64", "96")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    (logits,) = session.run(None, {given.name: images.numpy()})
    return {
        "files": files(work),
        "input": [given.name, given.type, [isinstance(side, int) for side in given.shape]],
        "output": [made.name, made.type, [isinstance(side, int) for side in made.shape]],
        **_agreement(torch.from_numpy(logits), want),
    }


@item("command/export_torch", slow=True)
def export_torch(work: Path) -> dict[str, Any]:
    # A fixed size: torch.export.save cannot store the rounding of sizes in this encoder.
    file, images, want = _export(work, "network.pt2", "--size", "96", "128", "--fixed")
    with torch.no_grad():
        got = torch.export.load(file).module()(images)
    return {"files": files(work), **_agreement(got, want)}


_BENCH = ["--rounds", "1", "--threads", "1", "--device", "cpu", "--limit-seconds", "100"]


def _bench(work: Path, *what: object) -> dict[str, Any]:
    table, file = work / "table.md", work / "numbers.json"
    done("bench", *what, *_BENCH, "--json", file, "--markdown", table)
    content = read_json(file)
    counts = [
        {k: v for k, v in {**row, **row.get("findings", {})}.items() if k in _COUNTS}
        for row in content["rows"]
    ]
    settings = {k: v for k, v in content["settings"].items() if k != "limit_memory"}
    return {
        "structure": structure(content),
        "settings": json.loads(json.dumps(settings).replace(str(HERE), "HERE")),
        "rows": counts,
        "files": files(work),
        "tables": [line for line in table.read_text().splitlines() if line.startswith("#")],
    }


_COUNTS = ("layer", "title", "variant", "height", "width", "flops", "parameters")


@item("command/bench_layers", slow=True)
def bench_layers(work: Path) -> dict[str, Any]:
    layers = ["floor", "sdpa", "dot-R1", "linear_softmax-R2"]
    return _bench(work, "--sizes", "12x10", "--channels", "16", "--layers", *layers)


@item("command/bench_network", slow=True)
def bench_network(work: Path) -> dict[str, Any]:
    return _bench(work, "--model", SAVED / "fsanet_dot", "--image", "64x64", "--k", "3")


@item("command/demo", slow=True)
def demo(work: Path) -> dict[str, Any]:
    out = work / "demo"
    said = done("demo", "--steps", "8", "--seed", "1", "--out", out)
    found = files(out)
    content = {
        name: structure(read_json(out / name))
        for name in found
        if name.endswith(".json") and "/" not in name
    }
    return {"files": found, "content": content, "said": bool(said.out)}


# --- options and mistakes --------------------------------------------------------------------

_COMMANDS = {
    "train": [],
    "eval": [],
    "predict": [],
    "convert": [],
    "convert published": ["--from", "mmseg"],
    "sweep": [],
    "export": [],
    "bench": [],
    "demo": [],
    "data": [],
}


@item("options/help")
def options_of_help(work: Path) -> dict[str, Any]:
    """The options that each command's --help names; later versions may have more."""
    found = {}
    for command, more in _COMMANDS.items():
        said = call(*command.removesuffix(" published").split(), *more, "--help")
        assert said.code == 0, (command, said)
        options = _options(said.out)
        for part in ("names", "defaults"):
            listed = options[part]["values"]
            for name in [name for name in listed if name.startswith("--model.")]:
                del listed[name]
        found[command] = {"code": said.code, "options": options}
    said = call("--help")
    return found | {
        "fsanet": {"code": said.code, "options": _options(said.out)},
        "version": bool(re.fullmatch(r"fsanet \d\S*\n", call("--version").out)),
        "commands": at_least(
            {name.split()[0]: f"\n  {name.split()[0]} " in said.out for name in _COMMANDS}
        ),
    }


@item("options/classes")
def options_of_classes(work: Path) -> dict[str, Any]:
    """The options, with their defaults, of classes that a YAML file may name."""
    found = {}
    for part, name, of in (
        *(("data", name, []) for name in ("FolderData", "CityscapesData", "SceneData")),
        *(("data", name, []) for name in ("CamVidData", "Ade20kData", "VocAugData")),
        *(("data", name, ["--data", name]) for name in ("InstanceSceneData", "CocoData")),
        ("model", "SegformerFsa", ["--model", "SegformerFsa"]),
        ("model", "MaskRcnnFsa", ["--data", "InstanceSceneData", "--model", "MaskRcnnFsa"]),
    ):
        said = call("train", *of, f"--{part}.help", name)
        assert said.code == 0, said
        found[name] = _options(said.out)
    return found


def _options(text: str) -> dict[str, Any]:
    """Options by name, with the default where the help tells it beside a type."""
    names, defaults = {}, {}
    for block in re.split(r"\n +(?=--)", text)[1:]:
        line = " ".join(block.split())
        name = line.split()[0].rstrip(",")
        # Underscores are accepted; options of the model are those of a class, see its own help.
        name = name if "." in name else name.replace("_", "-").replace("--no-", "--", 1)
        if name.endswith(".help") or name == "--model":
            continue
        names[name] = True
        default = re.search(r"type: .*default: (\([^)]*\)|[^),]*)", line)
        if default is not None and name not in (
            "--cuts",
            "--seeds",
        ):  # 8 16 and 0, differently shown
            defaults[name] = default[1]
    known = re.findall(r"known subclasses: ([\w., ]*)", " ".join(text.split()))
    classes = [name.split(".")[-1] for names in known for name in names.split(", ")]
    assert len(names) > 1, f"no options in the help: {text[:200]!r}"
    return {
        "names": at_least(names),
        "defaults": at_least(defaults),
        "classes": at_least(dict.fromkeys(classes, True)),
    }


def _mistakes(work: Path) -> Iterator[tuple[str, list[object]]]:
    config = write_options(work / "options.yaml", SEMANTIC)
    bad = write_options(work / "bad.yaml", SEMANTIC | {"modle": {"k": 3}})
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
    yield "bench: no such layer", ["bench", "--layers", "dot-R3"]
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


@item("options/real_process", slow=True)
def processes(work: Path) -> dict[str, Any]:
    wrong = real_process("train", "--stesp", "3")
    version = real_process("--version")
    images, out = write_images(work / "in"), work / "out"
    model = SAVED / "fsanet_dot"
    predicted = real_process("predict", images / "a.png", "--model", model, "--out", out)
    assert predicted.code == 0, predicted.err
    done("predict", images / "a.png", "--model", model, "--out", work / "here")
    return {
        "wrong": [wrong.code, len(wrong.err.splitlines()), wrong.err.startswith("fsanet: error:")],
        "version": [version.code, version.out.startswith("fsanet "), version.err],
        "predicted": mask(_read(out / "a_mask.png")),
        "as in this process": bool(
            np.array_equal(_read(out / "a_mask.png"), _read(work / "here" / "a_mask.png"))
        ),
    }


# --- artefacts, for recording alone ----------------------------------------------------------


def write_artefacts() -> None:
    """Networks and the half of a run, as the imported tree writes them."""
    from safetensors import safe_open

    shutil.rmtree(SAVED, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, training in SAVED_BY.items():
            work = Path(folder, name)
            work.mkdir()
            out, _ = train(work, TRAININGS[training])
            if name != "mask_rcnn":
                _balance(out / "model")
            _keep(out / "model", SAVED / name)
        for name, how in CONVERSIONS.items():
            out = Path(folder, name)
            done("convert", SAVED / "fsanet_spatial", "--out", out, *how)
            (out / "report.json").unlink()  # holds a path, and opens nothing
            _keep(out, SAVED / name)
        work = Path(folder, "segformer")
        work.mkdir()
        out, _ = train(work, TRAININGS["segformer"] | {"steps": 3})
        place = SAVED / "segformer"
        place.mkdir()
        shutil.copy(out / "model" / "config.json", place)
        with safe_open(out / "model" / "model.safetensors", "pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in sorted(tensors.keys())}
            listed = {
                name: {"shape": part.get_shape(), "dtype": part.get_dtype()}
                for name, part in parts.items()
            }
        lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(e)}" for n, e in listed.items())
        (place / "tensors.json").write_text(f"{{\n{lines}\n}}\n")
        _write_run(Path(folder, "stopped"))


def _balance(folder: Path) -> None:
    """A saved FsaNet whose classifier gives each class a share of the images; it knows too few."""
    network = load_model(folder)
    with torch.no_grad():
        logits = network(network.normalise(write_and_read_images(folder.parent / "images")))
        mean, std = logits.mean((0, 2, 3)), logits.std((0, 2, 3))
        network.head.classify.weight /= std[:, None, None, None]
        network.head.classify.bias.copy_((network.head.classify.bias - mean) / std)
    shutil.rmtree(folder)
    network.save_pretrained(folder)


def write_and_read_images(folder: Path) -> torch.Tensor:
    """Cut-outs (3, 3, 48, 72) of the images that are predicted."""
    pictures = [_read(file)[:48, :72] for file in sorted(write_images(folder).rglob("*.png"))]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _keep(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("README.md"))


def _write_run(work: Path) -> None:
    """A run that a user interrupts as soon as its checkpoint of step 6 is written."""
    import lightning

    work.mkdir()
    save = lightning.Trainer.save_checkpoint

    @functools.wraps(save)
    def save_and_stop(self: Any, filepath: Any, *arguments: Any, **options: Any) -> None:
        save(self, filepath, *arguments, **options)
        if Path(filepath).name == "last.ckpt" and self.global_step == 6:
            raise KeyboardInterrupt

    lightning.Trainer.save_checkpoint = save_and_stop  # type: ignore[method-assign]
    try:
        config = write_options(work / "options.yaml", STOPPED)
        stopped = call("train", "--config", config, "--out", work / "run")
    finally:
        lightning.Trainer.save_checkpoint = save  # type: ignore[method-assign]
    assert stopped.code == 130, stopped
    out = work / "run"
    shutil.rmtree(out / "tensorboard", ignore_errors=True)
    (out / "checkpoints" / "best.ckpt").unlink()  # is in model/, and nothing reads it
    (out / "model" / "README.md").unlink(missing_ok=True)
    file = out / "config.yaml"
    file.write_text(file.read_text().replace(str(work), "runs"))
    last = out / "checkpoints" / "last.ckpt"
    torch.save(_without(torch.load(last, weights_only=True), str(work)), last)
    shutil.rmtree(RUN, ignore_errors=True)
    shutil.copytree(out, RUN)


def _without(value: Any, folder: str) -> Any:
    """A checkpoint in which no path is of this machine."""
    if isinstance(value, dict):
        return type(value)((_without(k, folder), _without(v, folder)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_without(entry, folder) for entry in value)
    return value.replace(folder, "runs") if isinstance(value, str) else value
