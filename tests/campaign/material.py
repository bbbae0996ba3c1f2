"""Valid inputs, which the campaign damages: images, data sets, networks, a run, recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from support import miniature
from support.blocks import write_blocks

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

NETWORK: dict[str, Any] = {
    "encoder": "test_resnet",
    "encoder_options": {"channels": [8, 8, 8, 16], "stem_width": 8},
    "k": 3,
    "zero_init": False,
    "head_channels": 8,
    "aux_channels": 8,
    "output_stride": 16,
}
DATA: dict[str, Any] = {
    "class_path": "FolderData",
    "init_args": {
        "root": "blocks",
        "classes": ["red", "green", "blue"],
        "batch_size": 2,
        "steps_per_epoch": 2,
        "crop": [48, 48],
        "workers": 0,
    },
}
RECIPE: dict[str, Any] = {
    "model": NETWORK,
    "data": DATA,
    "task": {"optimizer": "adamw", "lr": 0.002, "warmup_steps": 1},
    "steps": 2,
    "accelerator": "cpu",
    "seed": 1,
}
#: Options of `fsanet eval` for a network that is not in a run folder.
ON_DATA = ["--data", "FolderData", "--data.root", "blocks", "--data.workers", "0"]
ON_DATA += ["--data.classes", '["red","green","blue"]', "--split", "val", "--accelerator", "cpu"]


def write_all(root: Path) -> None:
    """Write everything below ``root``; it takes some seconds.

    Their names are such that no message has them unless it means them.

    "images", "blocks" (FolderData), "recipe.yaml", "coco", "cityscapes", "ade20k", "voc", "camvid";
    "net" and "dense" (FsaNet of three classes), "lowpass", "seg3", "rcnn";
    "run" (stopped after half of its steps), "weights.pth".
    """
    from fsanet import FsaNet, convert_attention
    from fsanet.convert import save_converted
    from fsanet.models import MaskRcnnFsa, SegformerFsa

    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 56)), ("b.jpg", (48, 40)), ("c.png", (33, 47))):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "images" / name)
    write_blocks(root / "blocks")
    torch.manual_seed(0)
    names = {"num_classes": 3, "classes": DATA["init_args"]["classes"]}
    FsaNet(**NETWORK, **names).save_pretrained(root / "net")
    softmax = FsaNet(**NETWORK | {"attention": "spatial", "similarity": "softmax"}, **names)
    softmax.save_pretrained(root / "dense")
    save_converted(convert_attention(softmax, k=3), root / "lowpass")
    tiny = SegformerFsa(k=3, zero_init=False, **names)
    tiny.save_pretrained(root / "seg3")
    torch.save({"state_dict": softmax.state_dict(), "epoch": 3}, root / "weights.pth")
    options = json.loads((GOLDEN / "saved" / "mask_rcnn" / "config.json").read_text())
    for name in ("network", "classes", "category_ids", "num_classes"):
        del options[name]
    published = [number for number in range(1, 91) if number not in miniature.NOT_IN_COCO]
    names = {"classes": [f"category {number}" for number in published], "num_classes": 80}
    MaskRcnnFsa(**options, **names, category_ids=published).save_pretrained(root / "rcnn")
    shutil.copytree(GOLDEN / "run", root / "run")
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    miniature.write_coco(root / "coco")
    miniature.write_cityscapes(root / "cityscapes")
    miniature.write_ade20k(root / "ade20k")
    miniature.write_voc(root / "voc", sbd="none")
    miniature.write_camvid(root / "camvid")


def give(root: Path, folder: Path, *names: str) -> None:
    """Copy some of it into the folder of a case."""
    for name in names:
        source, target = root / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
