"""Annotations, and folders of data sets."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from campaign.case import Case
from campaign.inputs.common import ODD_NAMES, damage, remove, replace_by_special
from campaign.material import give
from campaign.mutate import HOSTILE, damaged_tree, short, words

NAN = float("nan")
_SMALL_RCNN = words(
    "--model.backbone resnet18 --model.fpn_channels 8 --model.box_channels 16 --model.k 3 "
    "--model.mask_channels 8 --model.min_size 48 --model.max_size 64 --model.backbone_options "
    '{"channels":[8,8,8,16],"stem_width":8}'
)
_SEGMENTATIONS = (
    *([[1, 2, 3]], [[1, 2]], [[]], [list("abcdef")], [[None] * 6], "text", [[0] * 200_001]),
    *([[1e30] * 8], [[NAN] * 8], [[-5, -5, 900, -5, 900, 900]]),
    {"counts": "abc", "size": [64, 80]},
    {"counts": [1, 2, 3], "size": [64, 80]},
    {"counts": [64 * 80], "size": [64, 80]},
    {"counts": [-1, 2**40], "size": [64, 80]},
    {"counts": [2**62, 2**62], "size": [2**31, 2**31]},
    {"counts": [5120], "size": [-64, 80]},
    {"counts": "\x00\xff", "size": ["a", "b"]},
    {"counts": None, "size": None},
    {"size": [64, 80]},
    {"counts": [0] * 100_000, "size": [64, 80]},
)
_KEYS = words("segmentation segmentation bbox area category_id image_id iscrowd id")


def annotations(rng: Random, root: Path, folder: Path) -> Case:
    """Damaged COCO annotations, checked, evaluated on or trained on."""
    give(root, folder, "coco", "rcnn")
    how = rng.choice(("check", "check", "eval", "train"))
    split = "train" if how == "train" else "val"
    path = folder / "coco" / "annotations" / f"instances_{split}2017.json"
    tree = json.loads(path.read_text())
    name = ""
    choice = rng.random()
    if choice < 0.06:
        what = replace_by_special(rng, path)
    elif choice < 0.2:
        what = damage(rng, path)
    elif choice < 0.6:
        name = rng.choice(_KEYS)
        more = _SEGMENTATIONS * 3 if name == "segmentation" else ()
        value = rng.choice((*HOSTILE, *more))
        rng.choice(tree["annotations"])[name] = value
        what = f"{name} became {short(value)}"
        path.write_text(json.dumps(tree))
    else:
        part = rng.choice(("images", "annotations", "categories"))
        what, name, tree[part] = damaged_tree(rng, tree[part])
        what = f"{part}: {what}"
        path.write_text(json.dumps(tree))
    on_coco = words("--data CocoData --data.root coco --data.workers 0 --accelerator cpu")
    if how == "check":
        command = words("data check coco --layout coco --subset --workers 0 --json r.json")
    elif how == "eval":
        command = ["eval", "rcnn", *on_coco, "--split", "val"]
    else:
        small = words(
            "--data.batch_size 1 --data.size [48,64] --steps 1 --task.warmup_steps 0 --out out"
        )
        command = ["train", *on_coco, *small, *_SMALL_RCNN]
    return Case(
        folder,
        command,
        f"{path.name}: {what}, {how}",
        names=(path.name, "coco", name) if name else (path.name, "coco"),
        outputs=("out", "r.json"),
    )


def datasets(rng: Random, root: Path, folder: Path) -> Case:
    """`data check` of a published layout in which something is amiss."""
    kind = rng.choice(words("cityscapes ade20k voc camvid blocks coco"))
    give(root, folder, kind)
    paths = sorted((folder / kind).rglob("*"))
    files = [path for path in paths if path.is_file()]
    path, file = rng.choice(paths), rng.choice(files)
    match rng.choice(words("remove rename special damage damage empty odd cross")):
        case "remove":
            remove(path)
            what = f"{path.name} missing"
        case "rename":
            name = rng.choice((f"{path.name}x", "\udcff", "x" * 255, "a\nb", ".hidden"))
            path.rename(path.with_name(name))
            what = f"{path.name} renamed {name!r}"
        case "special":
            what = f"{path.name}: {replace_by_special(rng, path)}"
        case "damage":
            what = f"{file.name}: {damage(rng, file)}"
        case "empty":
            for one in list(path.parent.iterdir()):
                remove(one)
            what = f"nothing in {path.parent.name}"
        case "odd":
            new = path.parent / rng.choice(ODD_NAMES)
            if rng.random() < 0.3:
                new.write_bytes(b"hello")
                what = f"{new.name!r}: text"
            else:
                what = f"{new.name!r}: {replace_by_special(rng, new)}"
        case _:
            other = rng.choice(files)
            file.write_bytes(other.read_bytes())
            what = f"{file.name} is {other.name}"
    quick = ["--quick"] if rng.random() < 0.2 else []
    layout = ["--layout", "folder" if kind == "blocks" else kind] if rng.random() < 0.7 else []
    command = words(f"data check {kind} --workers 0 --subset --json r.json")
    return Case(
        folder,
        [*command, *quick, *layout],
        f"{kind}: {what}",
        names=(kind,),
        outputs=("r.json",),
    )
