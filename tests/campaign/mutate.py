"""Damage to bytes, to trees of values and to places in a file system, at random but repeatable."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from random import Random
from typing import Any

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31, -(2**31), 2**63, 2**64, 10**30, 0.5, -0.5),
    *(float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 1e-9),
    *("", " ", "nan", "1e999", "true", "null", "x" * 100_000, "a\nb", "\x1b[31mred\x1b[0m", "\0"),
    *("\ud800", "é́", "🙂", "../../../../etc/passwd", "/dev/zero", "/etc", "none", "../canary"),
    *([], {}, [[]], [None], [1, "a"], list(range(5000)), {"a": {"b": {"c": 1}}}, DEEP),
    *([0, 0], [-1, -1], [1, 2, 3, 4], [[0, 0], [0, 0]], [2**40, 2**40], [float("nan")] * 2),
    {"class_path": "os.system", "init_args": {"command": "touch ../pwned"}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "../pwned"]}},
    {"class_path": "fsanet.files.write_text", "init_args": {"path": "../pwned", "text": "x"}},
)


def damaged_bytes(rng: Random, content: bytes, others: tuple[bytes, ...] = ()) -> tuple[str, bytes]:
    """What was done, and the bytes after it."""
    size = len(content)
    place = rng.randrange(size + 1)
    if rng.random() < 0.4:
        place = min(place, rng.randrange(1, 200))  # headers
    changed = bytearray(content)
    match rng.choice(words("cut flip zero insert repeat splice ends numbers text")):
        case "cut":
            return f"cut off at {place} of {size}", content[:place]
        case "flip":
            count = rng.choice((1, 3, 20, 300))
            for _ in range(count if size else 0):
                at = rng.randrange(size) if rng.random() < 0.5 else rng.randrange(min(size, 100))
                changed[at] ^= 1 << rng.randrange(8)
            return f"{count} bits flipped", bytes(changed)
        case "zero":
            length = rng.choice((1, 8, 100, size))
            changed[place : place + length] = bytes(len(changed[place : place + length]))
            return f"{length} zeros at {place}", bytes(changed)
        case "insert":
            more = rng.randbytes(rng.choice((1, 7, 1000)))
            return f"{len(more)} bytes inserted at {place}", content[:place] + more + content[
                place:
            ]
        case "repeat":
            return f"from {place} on twice", content + content[place:]
        case "splice":
            other = rng.choice(others) if others else rng.randbytes(500)
            cut = rng.choice((4, 8, 16, 64, 500))
            return f"{cut} bytes of another file before it", other[:cut] + content[cut:]
        case "ends":
            choices = {"empty": b"", "one byte": content[:1], "noise": rng.randbytes(size or 9)}
            what = rng.choice(list(choices))
            return what, choices[what]
        case "numbers":
            value = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\xff" * 8))
            changed[place : place + len(value)] = value
            return f"{value.hex()} at {place}", bytes(changed)
        case _:
            texts = (b"hello\n", b"<html>404</html>", b"{}", b"PK\x03\x04", b"\x80\x04.")
            return "text", rng.choice(texts)


def damaged_tree(rng: Random, tree: Any) -> tuple[str, str, Any]:
    """What was done, the key at which, and the tree after it; the given one stays as it is."""
    import copy

    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list) and node[key]:
                walk(node[key])

    walk(tree)
    if not places or rng.random() < 0.02:
        value = rng.choice(HOSTILE)
        return f"all of it became {short(value)}", "", value
    holder, key = rng.choice(places)
    name = _name(places, holder, key)
    match rng.choice(("replace",) * 6 + ("delete", "rename", "wrap", "add", "swap", "copy")):
        case "delete":
            del holder[key]
            return f"{name} left out", name, tree
        case "rename" if isinstance(holder, dict):
            other = rng.choice(
                ("", "x", f"{key}s", str(key).upper(), "auto_map", "__class__", "a\nb")
            )
            holder[other] = holder.pop(key)
            return f"{name} renamed {short(other)}", other if other.isprintable() else "", tree
        case "wrap":
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}
            return f"{name} wrapped", name, tree
        case "add" if isinstance(holder, dict):
            holder["surplus"] = rng.choice(HOSTILE)
            return f"surplus beside {name}", "surplus", tree
        case "swap":
            other_holder, other_key = rng.choice(places)
            value = copy.deepcopy(other_holder[other_key])
            holder[key] = value
            return f"{name} became {short(value)}", name, tree
        case "copy" if isinstance(holder, list):
            holder.extend(copy.deepcopy(holder) * rng.choice((1, 50)))
            return f"the list of {name} longer", name, tree
        case _:
            value = rng.choice(HOSTILE)
            holder[key] = value
            return f"{name} became {short(value)}", name, tree


def _name(places: list[tuple[Any, Any]], holder: Any, key: Any) -> str:
    """The nearest key that is a name."""
    while not isinstance(key, str):
        above = next(((h, k) for h, k in places if h[k] is holder), None)
        if above is None:
            return ""
        holder, key = above
    return key


def keys(tree: Any) -> list[str]:
    """All names in a tree."""
    if not isinstance(tree, dict):
        return [key for node in tree for key in keys(node)] if isinstance(tree, list) else []
    return [key for name, node in tree.items() for key in (name, *keys(node))]


def words(text: str) -> list[str]:
    return text.split()


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}... ({len(text)})"


#: Places that are no ordinary file, and how to make them.
SPECIAL = ("fifo", "socket", "zero", "full", "dangling", "loop", "folder", "self", "null")


def make_special(path: Path, kind: str) -> None:
    """Make a FIFO, a socket, a link to a device, a broken link or a folder at ``path``."""
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "socket":
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                with socket.socket(socket.AF_UNIX) as one:
                    one.bind(path.name)
            finally:
                os.chdir(here)
        case "zero" | "full" | "null":
            path.symlink_to(f"/dev/{kind}")
        case "dangling":
            path.symlink_to("nowhere/at/all")
        case "loop":
            path.symlink_to(path.name)
        case "self":
            path.symlink_to(".")
        case _:
            path.mkdir()
