"""Files of other programs: annotations of CVAT and Label Studio, exported networks, videos."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from random import Random

from campaign.case import Case, anything
from campaign.inputs.common import PREDICT, damage_values, spoil
from campaign.judge import check_prediction
from campaign.material import give
from campaign.mutate import words

_NUMBERS = words("nan inf -1 0 1e308 1e400 999999999999999999999999999999 , ; 1;2 1,2 1_0 0x5 5.5")
_NUMBERS += [
    "",
    "9223372036854775807,9223372036854775807,2",
    "a\x85b",
    "٣",
    *map(str, (2**31, 2e8)),
]


def foreign(rng: Random, root: Path, folder: Path) -> Case:
    """A damaged file of another program, checked or predicted."""
    packages = {"videos": "av", "exported": "onnxruntime"}
    installed = [name for name, one in packages.items() if importlib.util.find_spec(one)]
    kind = rng.choice(["cvat", "labelstudio", *installed])
    if kind in ("cvat", "labelstudio"):
        give(root, folder, "labelled")
        path = folder / "labelled" / ("a.xml" if kind == "cvat" else "a.json")
        what = spoil(rng, path, _odd_number if kind == "cvat" else damage_values, share=0.6)
        action = rng.choice(("check", "stats"))
        given = words(f"data {action} labelled --data.annotations {path.name} --json r.json")
        command, names = [*given, "--workers", "1"], ("labelled", path.name)
        return Case(folder, command, f"{path.name}: {what}", names=names, outputs=("r.json",))
    if kind == "exported":
        give(root, folder, "images", "net.onnx")
        path = folder / "net.onnx"
        what = spoil(rng, path, _odd_text, share=0.4)
        more = rng.choice(("", "--confidence", "--window 64", "--uncertain 2", "--format cvat"))
        command = ["predict", "images", "--model", path.name, *PREDICT, *more.split()]
        check = check_prediction if not more else anything
        return Case(
            folder, command, f"{path.name}: {what}, {more}", names=("net.onnx",), check=check
        )
    name = rng.choice(("clip.mp4", "clip.mkv"))
    give(root, folder, "net", name)
    what = spoil(rng, folder / name, lambda *_: "whole", share=0.1)
    target = rng.choice(("out", "out/drawn.mkv"))
    command = ["predict", name, "--model", "net", "--device", "cpu", "--out", target]
    command += rng.choice(("", "--smooth 0.5", "--window 32")).split()
    return Case(folder, command, f"{name}: {what}", names=(name,))


def _odd_number(rng: Random, path: Path) -> str:
    """Put something else in the place of an attribute of an XML file; what."""
    text = path.read_text()
    found = rng.choice([*re.finditer(r'(\w+)="([^"]*)"', text)])
    value = rng.choice(_NUMBERS)
    path.write_text(text[: found.start(2)] + value + text[found.end(2) :])
    return f"{found[1]} became {value!r}"


def _odd_text(rng: Random, path: Path) -> str:
    """Put something else in the place of a text of an exported network; what."""
    import onnx

    model = onnx.load(path)
    entry = rng.choice(model.metadata_props)
    if rng.random() < 0.3:
        axis = rng.choice(model.graph.input[0].type.tensor_type.shape.dim)
        axis.dim_value = rng.choice((-1, 1, 3, 64, 2**20, 2**62))
        what = f"an axis became {axis.dim_value}"
    else:
        entry.value = rng.choice(
            ("", "[]", "null", "nan", "[1e999]", "[" * 5000, '["a","a","b"]', "x")
        )
        what = f"{entry.key} became {entry.value[:20]!r}"
    path.write_bytes(model.SerializeToString())
    return what
