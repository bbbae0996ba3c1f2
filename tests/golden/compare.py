"""Recorded values against those of now.

Values are those of JSON. Texts, whole numbers, keys and lengths have to be equal, other numbers to
a relative 1e-6. Three kinds of dictionary, marked by ``$``, say that something else is meant.
"""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

MOST_DIFFERENT = 1e-3  # share of the pixels of a mask


def near(values: Any, *, rtol: float | list[float] = 1e-4, atol: float = 0.0) -> dict[str, Any]:
    """Numbers with a tolerance: ``|now - recorded| <= atol + rtol * |recorded|``.

    Args:
        values: one number, or lists or dictionaries of them.
        rtol: relative tolerance, or one for each entry of a list.
        atol: absolute tolerance.
    """
    return {"$": "near", "values": values, "rtol": rtol, "atol": atol}


def mask(array: Any) -> dict[str, Any]:
    """Class ids (H, W), of which a thousandth may differ on another processor."""
    ids = np.ascontiguousarray(array, dtype=np.uint8)
    content = ids.tobytes()
    return {
        "$": "mask",
        "shape": list(ids.shape),
        "sha256": hashlib.sha256(content).hexdigest(),
        "ids": base64.b64encode(zlib.compress(content, 9)).decode(),
    }


def at_least(values: dict[str, Any]) -> dict[str, Any]:
    """A dictionary to which later versions may add."""
    return {"$": "at_least", "values": values}


def growing(values: Any) -> Any:
    """A tree of options to which later versions may add anywhere."""
    if not isinstance(values, dict):
        return values
    return at_least({key: growing(value) for key, value in values.items()})


def differences(
    recorded: Any, now: Any, where: str = "", *, rtol: Any = None, atol: float = 0.0
) -> Iterator[str]:
    """One line for each value of ``now`` that is not as recorded.

    Args:
        recorded: what should be there.
        now: what is there.
        where: path of the values, for the lines.
        rtol: relative tolerance of all numbers below, or one per entry; None: of floats only.
        atol: absolute tolerance.
    """
    kind = recorded.get("$") if isinstance(recorded, dict) else None
    if kind != (now.get("$") if isinstance(now, dict) else None):
        yield f"{where}: {_short(recorded)} became {_short(now)}"
    elif kind == "near":
        tolerance = {"rtol": recorded["rtol"], "atol": recorded["atol"]}
        yield from differences(recorded["values"], now["values"], where, **tolerance)
    elif kind == "at_least":
        kept = {key: value for key, value in now["values"].items() if key in recorded["values"]}
        yield from differences(recorded["values"], kept, where, rtol=rtol, atol=atol)
    elif kind == "mask":
        yield from _mask_differences(recorded, now, where)
    elif isinstance(recorded, dict) and isinstance(now, dict):
        for key in sorted(recorded.keys() ^ now.keys()):
            yield f"{where}/{key}: {'missing' if key in recorded else 'new'}"
        for key in (key for key in recorded if key in now):
            yield from differences(recorded[key], now[key], f"{where}/{key}", rtol=rtol, atol=atol)
    elif isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        each = rtol if isinstance(rtol, list) else [rtol] * len(recorded)
        for i, (one, other, own) in enumerate(zip(recorded, now, each, strict=True)):
            yield from differences(one, other, f"{where}/{i}", rtol=own, atol=atol)
    elif not _agree(recorded, now, rtol, atol):
        yield f"{where}: {_short(recorded)} became {_short(now)}"


def _agree(recorded: Any, now: Any, rtol: float | None, atol: float) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (recorded, now))
    if not numbers or (rtol is None and isinstance(recorded, int)):
        return type(recorded) is type(now) and recorded == now
    if math.isnan(recorded) or math.isnan(now):
        return math.isnan(recorded) and math.isnan(now)
    return abs(now - recorded) <= atol + (1e-6 if rtol is None else rtol) * abs(recorded)


def _mask_differences(recorded: dict[str, Any], now: dict[str, Any], where: str) -> Iterator[str]:
    if recorded["shape"] != now["shape"]:
        yield f"{where}: {recorded['shape']} became {now['shape']}"
    elif recorded["sha256"] != now["sha256"]:
        share = float((_ids(recorded) != _ids(now)).mean())
        if share > MOST_DIFFERENT:
            yield f"{where}: {100 * share:.2f} % of the pixels differ"


def _ids(recorded: dict[str, Any]) -> Any:
    return np.frombuffer(zlib.decompress(base64.b64decode(recorded["ids"])), dtype=np.uint8)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
