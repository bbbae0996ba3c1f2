"""What several areas of inputs share."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import yaml

from campaign.mutate import SPECIAL, damaged_bytes, make_special, words

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


def damage(rng: Random, path: Path) -> str:
    """Damage the bytes of a file; what was done."""
    what, content = damaged_bytes(rng, path.read_bytes())
    path.write_bytes(content)
    return what


def as_yaml(tree: Any) -> bytes:
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:
        text = repr(tree)
    return text.encode("utf-8", "surrogatepass")
