"""Recorded values against those of now: a verdict for each item, and where they differ.

Values are those of JSON. Texts, whole numbers, keys and lengths have to be equal. Four kinds of
dictionary say that something else is meant:

* ``near``: numbers with a tolerance, ``|now - recorded| <= atol + rtol * |recorded|``;
* ``mask``: an array of class ids, of which a thousandth of the pixels may differ;
* ``at_least``: a dictionary that may have more keys now than it had;
* ``note``: shown, not compared.

Numbers with a fraction that are not in ``near`` have a relative tolerance of 1e-6.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PIXELS = 1e-3  # share of a mask that may differ


def near(values: Any, *, rtol: float | list[float] = 1e-4, atol: float = 0.0) -> dict[str, Any]:
    """Numbers (one, or lists or dictionaries of them), and how far off those of now may be.

    Args:
        values: what was measured.
        rtol: relative tolerance, or one for each entry of a list.
        atol: absolute tolerance.
    """
    return {"$": "near", "values": values, "rtol": rtol, "atol": atol}


def mask(array: Any) -> dict[str, Any]:
    """Class ids (H, W), of which few may differ on another processor."""
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


def note(text: str) -> dict[str, Any]:
    """What a reader of the table wants to see."""
    return {"$": "note", "text": text}


def rounded(value: float) -> float:
    """As many digits as a float32 has."""
    return float(f"{float(value):.9g}")


@dataclass
class Outcome:
    """What a comparison found.

    Attributes:
        compared: number of values.
        inexact: number of values that are not equal, but within their tolerance.
        largest: largest relative difference among those, for masks the share of pixels.
        problems: a line for each value outside its tolerance.
        additions: keys that are new where they may be.
        recorded, now: what a reader wants to see of both.
    """

    compared: int = 0
    inexact: int = 0
    largest: float = 0.0
    problems: list[str] = field(default_factory=list)
    additions: list[str] = field(default_factory=list)
    recorded: str = ""
    now: str = ""

    @property
    def verdict(self) -> str:
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"DIFFERENT: {self.problems[0]}{more}"
        new = f"; new: {_short(', '.join(self.additions))}" if self.additions else ""
        if self.inexact:
            found = f"{self.inexact} of {self.compared}, to {self.largest:.1e}"
            return f"within tolerance ({found}){new}"
        return f"equal ({self.compared} values){new}"

    def shows(self, where: str, recorded: Any, now: Any) -> None:
        """Let the first number, or mask, stand for an item that says nothing of itself."""
        if not self.recorded:
            name = re.sub(r"/(numbers|output|values|\d+)(?=/|$)", "", where).lstrip("/")
            self.recorded, self.now = f"{name} {recorded}", f"{name} {now}"

    def differs(self, where: str, recorded: Any, now: Any) -> None:
        self.problems.append(f"{where}: {_short(recorded)} became {_short(now)}")


def compare(recorded: Any, now: Any) -> Outcome:
    """All of an item."""
    outcome = Outcome()
    _any(outcome, "", recorded, now)
    if not outcome.compared:
        outcome.problems.append("nothing was compared")
    return outcome


def _any(outcome: Outcome, where: str, recorded: Any, now: Any) -> None:
    kind = recorded.get("$") if isinstance(recorded, dict) else None
    of_now = now.get("$") if isinstance(now, dict) else None
    if kind != of_now:
        outcome.compared += 1
        outcome.differs(where, recorded, now)
    elif kind == "note":
        outcome.recorded, outcome.now = recorded["text"], now["text"]
    elif kind == "near":
        _near(outcome, where, recorded["values"], now["values"], recorded["rtol"], recorded["atol"])
    elif kind == "mask":
        _mask(outcome, where, recorded, now)
    elif kind == "at_least":
        kept = {key: value for key, value in now["values"].items() if key in recorded["values"]}
        outcome.additions += [key for key in now["values"] if key not in kept]
        _any(outcome, where, recorded["values"], kept)
    elif isinstance(recorded, dict):
        if not isinstance(now, dict):
            outcome.compared += 1
            outcome.differs(where, recorded, now)
            return
        _keys(outcome, where, recorded, now)
        for key in (key for key in recorded if key in now):
            _any(outcome, f"{where}/{key}", recorded[key], now[key])
    elif isinstance(recorded, list):
        if not isinstance(now, list) or len(now) != len(recorded):
            outcome.compared += 1
            outcome.differs(where, recorded, now)
            return
        outcome.compared += not recorded
        for index, (one, other) in enumerate(zip(recorded, now, strict=True)):
            _any(outcome, f"{where}/{index}", one, other)
    elif isinstance(recorded, float):
        _number(outcome, where, recorded, now, 1e-6, 0.0)
    else:
        outcome.compared += 1
        if type(recorded) is not type(now) or recorded != now:
            outcome.differs(where, recorded, now)


def _keys(outcome: Outcome, where: str, recorded: dict, now: dict) -> None:
    outcome.compared += not recorded
    gone = sorted(recorded.keys() - now.keys())
    new = sorted(now.keys() - recorded.keys())
    if gone:
        outcome.problems.append(f"{where}: without {_short(gone)}")
    if new:
        outcome.problems.append(f"{where}: has {_short(new)} in addition")


def _near(outcome: Outcome, where: str, recorded: Any, now: Any, rtol: Any, atol: float) -> None:
    if isinstance(recorded, dict):
        now = now if isinstance(now, dict) else {}
        _keys(outcome, where, recorded, now)
        for key in (key for key in recorded if key in now):
            _near(outcome, f"{where}/{key}", recorded[key], now[key], rtol, atol)
    elif isinstance(recorded, list):
        if not isinstance(now, list) or len(now) != len(recorded):
            outcome.compared += 1
            outcome.differs(where, recorded, now)
            return
        each = rtol if isinstance(rtol, list) else [rtol] * len(recorded)
        for index, (one, other, share) in enumerate(zip(recorded, now, each, strict=True)):
            _near(outcome, f"{where}/{index}", one, other, share, atol)
    else:
        _number(outcome, where, recorded, now, rtol, atol)


def _number(
    outcome: Outcome, where: str, recorded: Any, now: Any, rtol: float, atol: float
) -> None:
    outcome.compared += 1
    outcome.shows(where, recorded, now)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (recorded, now))
    if not numbers:
        if recorded is not now:  # both None: a class without a label
            outcome.differs(where, recorded, now)
        return
    if recorded == now or (math.isnan(recorded) and math.isnan(now)):
        return
    off = abs(now - recorded)
    if not off <= atol + rtol * abs(recorded):
        outcome.differs(where, recorded, now)
        return
    outcome.inexact += 1
    outcome.largest = max(outcome.largest, off / max(abs(recorded), 1e-12))


def _mask(outcome: Outcome, where: str, recorded: dict[str, Any], now: dict[str, Any]) -> None:
    outcome.compared += 1
    outcome.shows(where, recorded["sha256"][:8], now["sha256"][:8])
    if recorded["shape"] != now["shape"]:
        outcome.differs(where, recorded["shape"], now["shape"])
    elif recorded["sha256"] != now["sha256"]:
        share = float((_ids(recorded) != _ids(now)).mean())
        if share > PIXELS:
            outcome.problems.append(f"{where}: {100 * share:.2f} % of the pixels differ")
        else:
            outcome.inexact += 1
            outcome.largest = max(outcome.largest, share)


def _ids(one: dict[str, Any]) -> Any:
    content = zlib.decompress(base64.b64decode(one["ids"]))
    assert hashlib.sha256(content).hexdigest() == one["sha256"], "ids and sha256 do not belong"
    return np.frombuffer(content, dtype=np.uint8)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
