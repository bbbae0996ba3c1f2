"""Valid inputs, which the campaign damages: images, data sets, networks, a run, recipes."""

from __future__ import annotations

import importlib.util
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
from support.onnx_files import onnx_file

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
    "run" (stopped after half of its steps), "weights.pth";
    "labelled" (annotations of CVAT and Label Studio), and where the packages are installed
    "net.onnx", "clip.mp4", "clip.mkv".
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
    _write_foreign(root)


def _write_foreign(root: Path) -> None:
    """Files of other programs; as small as they can be, with a shape of each kind."""
    from fsanet.data.label_studio import encode_brush

    folder = root / "labelled"
    folder.mkdir()
    shutil.copy(root / "images" / "a.png", folder / "a.png")  # 56 x 40 pixels
    shapes = [
        '<polygon label="road" points="2,4;12,4;12,10" z_order="1"/>',
        '<box label="car" xtl="1" ytl="2" xbr="20" ybr="9" rotation="5"/>',
        '<ellipse label="car" cx="15" cy="10" rx="10" ry="5"/>',
        '<mask label="road" rle="1, 2, 3" left="4" top="5" width="3" height="2"/>',
    ]
    image = f'<image id="0" name="a.png" width="56" height="40">{"".join(shapes)}</image>'
    (folder / "a.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")
    size = {"original_width": 56, "original_height": 40}
    around = {"x": 30, "y": 40, "rotation": 5}
    brush = encode_brush(np.eye(40, 56, dtype=bool))
    values: dict[str, dict[str, Any]] = {
        "polygonlabels": {"points": [[10, 10], [50, 10], [50, 50]]},
        "rectanglelabels": around | {"width": 20, "height": 10},
        "ellipselabels": around | {"radiusX": 10, "radiusY": 5},
        "brushlabels": {"format": "rle", "rle": brush},
    }
    results = [{"type": kind, "value": v | {kind: ["car"]}, **size} for kind, v in values.items()]
    task = {
        "data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
        "annotations": [{"result": results}],
    }
    (folder / "a.json").write_text(json.dumps([task]))
    if importlib.util.find_spec("onnx") is not None:
        onnx_file(root / "net.onnx")
    if importlib.util.find_spec("av") is None:
        return
    import av

    for name, codec in (("clip.mp4", "libx264"), ("clip.mkv", "ffv1")):
        with av.open(str(root / name), "w") as container:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height, stream.pix_fmt = 56, 40, "yuv420p"
            for level in (40, 90, 200):
                pixels = np.full((40, 56, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def give(root: Path, folder: Path, *names: str) -> None:
    """Copy some of it into the folder of a case."""
    for name in names:
        source, target = root / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
