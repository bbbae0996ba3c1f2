"""Saved networks, run folders, checkpoints and other files of weights."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from campaign.case import Case, anything
from campaign.inputs.common import PREDICT, damage, damage_values, replace_by_special, spoil
from campaign.judge import check_prediction, check_resumed, check_scores
from campaign.material import ON_DATA, give
from campaign.mutate import damaged_tree, keys, words

NAN = float("nan")


class Harm:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ../pwned pwned",)


def models(rng: Random, root: Path, folder: Path) -> Case:
    """A damaged folder of a saved network, opened by a command."""
    kind = rng.choice(words("net net dense lowpass seg3 rcnn"))
    give(root, folder, kind, "images", "blocks")
    place = folder / kind
    files = sorted(path for path in place.iterdir() if path.name != "README.md")
    file = rng.choice(files)
    choice = rng.random()
    if choice < 0.5:
        file = rng.choice([path for path in files if path.suffix == ".json"])
        what = damage_values(rng, file)
    elif choice < 0.58:
        what = _trap(rng, place)
    elif choice < 0.63:
        what = replace_by_special(rng, file)
    elif choice < 0.67:
        file.unlink()
        what = "missing"
    elif choice < 0.75:
        file = place / "model.safetensors"
        what = _odd_weights(rng, file)
    else:
        what = damage(rng, file)
    predict = ["predict", "images/a.png", "--model", kind, *PREDICT]
    others = [
        ["convert", kind, "--out", "out", "--k", "2", "--size", "64"],
        ["eval", kind, *ON_DATA, "--json", "scores.json"],
        ["sweep", kind, *ON_DATA, "--k", "1", "--out", "out"],
    ]
    command = rng.choice([*[predict] * 5, *others])
    semantic = command is predict and kind != "rcnn"
    return Case(
        folder,
        command,
        f"{kind}/{file.name}: {what}, {command[0]}",
        names=(kind,),
        check=(lambda place: check_prediction(place, classes=256)) if semantic else anything,
        outputs=("out", "scores.json"),
    )


def _trap(rng: Random, place: Path) -> str:
    """Make opening the folder harmful to those who trust it; how."""
    config = json.loads((place / "config.json").read_text())
    weights = place / "model.safetensors"
    kind = rng.choice(words("code url cache pickle elsewhere hub index absolute"))
    match kind:
        case "code":
            (place / "evil").mkdir()
            classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M"}
            evil = {"auto_map": classes, "model_type": "x"}
            (place / "evil" / "config.json").write_text(json.dumps(evil))
            (place / "evil" / "evil.py").write_text("open('../pwned', 'w')\n")
            where = rng.choice((f"{place.name}/evil", str(place / "evil")))
            config |= {"network": "SegformerFsa", "pretrained": where, "variant": None}
        case "url":
            overlay = {"url": "http://127.0.0.1:9/x", "hf_hub_id": None, "file": "../canary"}
            options = {"pretrained_cfg_overlay": overlay}
            config |= {"pretrained": True, "encoder_options": options}
        case "cache":
            config |= {"pretrained": True, "encoder_options": {"cache_dir": "../pwned"}}
        case "pickle":
            for name in ("pytorch_model.bin", "model.pt", weights.name):
                (place / name).write_bytes(pickle.dumps({"state_dict": Harm()}))
        case "elsewhere":
            names = ("encoder_weights", "weights", "backbone_weights")
            config |= dict.fromkeys(names, "../canary")
        case "hub":
            config |= {"encoder": "hf-hub:timm/resnet18.a1_in1k", "variant": "nvidia/mit-b0"}
        case "index":
            weights.unlink()
            index = {"weight_map": {"a": "../../canary", "b": "/etc/passwd"}}
            (place / f"{weights.name}.index.json").write_text(json.dumps(index))
        case "absolute":
            weights.unlink()
            weights.symlink_to("/etc/passwd")
    (place / "config.json").write_text(json.dumps(config))
    return f"trap: {kind}"


def _odd_weights(rng: Random, path: Path) -> str:
    """Write weights that do not belong to the network; in which way."""
    if not path.is_file():
        return "none"
    state = load_file(path)
    key = rng.choice(sorted(state))
    kind = rng.choice(words("missing surplus shape nan huge dtype none header"))
    match kind:
        case "missing":
            del state[key]
        case "surplus":
            state["surplus"] = torch.zeros(3)
        case "shape":
            state[key] = torch.zeros(rng.choice(((1,), (7, 7), (0,), (2, 3, 4, 5))))
        case "nan" | "huge":
            factor = NAN if kind == "nan" else 1e38
            state = {n: v * factor if v.is_floating_point() else v for n, v in state.items()}
        case "dtype":
            dtype = rng.choice((torch.int8, torch.bool, torch.float64, torch.float16))
            state = {n: v.to(dtype) for n, v in state.items()}
        case "none":
            state = {}
    save_file(state, path, {"format": "pt"})
    if kind == "header":
        length = rng.choice((0, 1, 2**20, 2**62, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    return f"weights: {kind} {key}"


def checkpoints(rng: Random, root: Path, folder: Path) -> Case:
    """A damaged run folder that is resumed or opened, or a damaged file of weights."""
    if rng.random() < 0.3:
        return _weights_file(rng, root, folder)
    give(root, folder, "run")
    run = (folder / "run").rename(folder / "out")
    last = "checkpoints/last.ckpt"
    name = rng.choice((*[last] * 5, "config.yaml", "metrics.csv", "model/config.json"))
    path = run / name
    if name == "config.yaml":
        known = keys(yaml.safe_load(path.read_text()))
        what = spoil(rng, path, damage_values, share=0.9)
    else:
        known = []
        what = spoil(rng, path, _odd_checkpoint if name == last else damage)
    if rng.random() < 0.8:
        command, check = words("train --resume --out out"), check_resumed
    else:
        command, check = words("eval out --accelerator cpu --json scores.json"), check_scores
    return Case(
        folder,
        command,
        f"{name}: {what}, {command[0]}",
        names=("out/", "out:", *known),
        check=check,
        outputs=("out", "scores.json"),
    )


def _odd_checkpoint(rng: Random, path: Path) -> str:
    """Write a file that torch can read, but that is no checkpoint of the run; in which way."""
    content = torch.load(path, weights_only=True)
    kind = rng.choice(words("tree tree tree pickle old weights empty other"))
    match kind:
        case "tree":
            what, _, content = damaged_tree(rng, content)
            kind = f"tree: {what}"
        case "pickle":
            content["more"] = Harm()
        case "weights":
            state = content["state_dict"]
            key = rng.choice(sorted(state))
            state[key] = rng.choice((torch.zeros(3), None, "x", torch.full_like(state[key], 1)))
            kind = f"weights: {key}"
        case "empty":
            content = {}
        case "other":
            content = rng.choice(([1, 2], torch.zeros(3), "text", None, 3))
    if kind == "old":  # without torch's archive
        path.write_bytes(pickle.dumps({"state_dict": Harm()}))
    else:
        torch.save(content, path)
    return kind


def _weights_file(rng: Random, root: Path, folder: Path) -> Case:
    give(root, folder, "weights.pth", "blocks", "recipe.yaml")
    path = folder / "weights.pth"
    what = spoil(rng, path, _odd_checkpoint)
    command = rng.choice(
        (
            "convert weights.pth --from ccnet --out out",
            "convert weights.pth --from mmseg --out out",
            "train --config recipe.yaml --out out --model.encoder_weights weights.pth",
            "predict blocks/val/images --model weights.pth --device cpu --out out",
        )
    )
    return Case(folder, command.split(), f"{what}, {command}", names=("weights.pth",))
