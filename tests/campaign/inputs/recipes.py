"""Recipes."""

from __future__ import annotations

from pathlib import Path
from random import Random

from campaign.case import Case, anything
from campaign.inputs.common import as_yaml, damage, replace_by_special
from campaign.judge import check_run
from campaign.material import RECIPE, give
from campaign.mutate import damaged_tree, keys

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
_ODD = {
    "anchors that explode": _BOMB,
    "an anchor of itself": "model: &m\n  k: *m\n",
    "an anchor of itself, as a list": "&a [*a]\n",
    "2 MB": "# " + "x" * 2**21 + "\nsteps: 1\n",
    "deep flow": "model: " + "[" * 5000 + "]" * 5000,
    "deep maps": "model: " + "{a: " * 3000 + "1" + "}" * 3000,
    "python object": "model: !!python/object/apply:os.system ['touch ../pwned']\n",
    "python name": "data: !!python/name:os.system\n",
    "not UTF-8": b"model:\n  encoder: \xff\xfe\n",
    "UTF-16": "steps: 2\n".encode("utf-16"),
    "tabs": "model:\n\tk: 3\n",
    "two documents": "steps: 1\n---\nsteps: 2\n",
    "the same key twice": "steps: 1\nsteps: 2\nmodel: {k: 2, k: 3}\n",
    "a date": "steps: 2026-11-28\n",
    "sexagesimal": "steps: 1:30:00\nmodel: {k: 4:8}\n",
    "a set": "model: !!set {a, b}\n",
    "binary": "model: !!binary aGVsbG8=\n",
    "control characters": 'model:\n  encoder: "a\\x00\\x1b[31m"\n',
    "keys that are no text": "1: 2\nnull: 3\n[1, 2]: 4\n",
    "a merge of no map": "<<: 3\nsteps: 1\n",
    "a file of the system": "config: /etc/passwd\n",
    "interpolation": "steps: ${oc.env:HOME}\nmodel: {encoder: '${model}'}\n",
}
_MORE = {"precision": "32-true", "val_every": 1, "gradient_clip": 1.0, "log_every": 1, "devices": 1}
_MORE |= {"strategy": "auto", "num_nodes": 1, "progress": True, "deterministic": False}
_TEST = {"test": {"window": [32, 32], "stride": 16, "scales": [1.0], "flip": True}}


def recipes(rng: Random, root: Path, folder: Path) -> Case:
    """`fsanet train` with a damaged recipe."""
    give(root, folder, "blocks", "recipe.yaml")
    path = folder / "recipe.yaml"
    name, missing = "", ()
    choice = rng.random()
    if choice < 0.1:
        what = rng.choice(list(_ODD))
        text = _ODD[what]
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    elif choice < 0.15:
        what = replace_by_special(rng, path)
    elif choice < 0.3:
        what = damage(rng, path)
    else:
        more = rng.choice(({}, {}, _MORE, _TEST))
        what, name, tree = damaged_tree(rng, RECIPE | more)
        missing = (
            ("following arguments are required: root",) if what == "init_args left out" else ()
        )
        path.write_bytes(as_yaml(tree))
    printed = ["--print-config"] if rng.random() < 0.15 else []
    return Case(
        folder,
        ["train", "--config", "recipe.yaml", "--out", "out", *printed],
        what,
        names=("recipe.yaml", name, *missing) if name else ("recipe.yaml", *keys(RECIPE)),
        check=anything if printed else check_run,
    )
