"""What several areas of inputs share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from campaign.mutate import SPECIAL, damaged_bytes, damaged_tree, make_special, words

PREDICT = words("--device cpu --out out")

ODD_NAMES = [
    *words("-x.png $(id).png a;b.png %s.png [red]x.png ..png *.png '\".png é🙂.png"),
    *words("summary.png results.png x_mask.png x.tar.png CON.png"),
    *("a\nb.png", "\x1b[31m.png", "\udcff\udcfe.png", "x" * 250 + ".png", " .png", "a b\t.png"),
]


def printable_part(name: str) -> str:
    """The longest part of a name that can be printed as it is."""
    shown = "".join(c if c.isprintable() and c.isascii() else "\n" for c in name)
    return max(shown.split("\n"), key=len)[:40]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_by_special(rng: Random, path: Path) -> str:
    """Put something in the place of a file that is none; what it is."""
    remove(path)
    kind = rng.choice(SPECIAL)
    make_special(path, kind)
    return kind


def damage(rng: Random, path: Path, others: tuple[bytes, ...] = ()) -> str:
    """Damage the bytes of a file; what was done."""
    what, content = damaged_bytes(rng, path.read_bytes(), others)
    path.write_bytes(content)
    return what


def spoil(
    rng: Random,
    path: Path,
    odd: Callable[[Random, Path], str],
    *,
    special: float = 0.1,
    share: float = 0.4,
    others: tuple[bytes, ...] = (),
) -> str:
    """Harm a file in one of three ways; which.

    Args:
        rng: chooses.
        path: a valid file.
        odd: writes a valid file of another content; its share is ``share``.
        special: share of what is no file.
        others: see `damaged_bytes`, by which the rest is damaged.
    """
    choice = rng.random()
    if choice < special:
        return replace_by_special(rng, path)
    return odd(rng, path) if choice < special + share else damage(rng, path, others)


def damage_values(rng: Random, path: Path) -> str:
    """Damage the values of a JSON or YAML file; what was done."""
    text = path.read_text()
    is_json = path.suffix == ".json"
    what, _, tree = damaged_tree(rng, json.loads(text) if is_json else yaml.safe_load(text))
    path.write_bytes(json.dumps(tree).encode() if is_json else as_yaml(tree))
    return what


def as_yaml(tree: Any) -> bytes:
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:
        text = repr(tree)
    return text.encode("utf-8", "surrogatepass")
