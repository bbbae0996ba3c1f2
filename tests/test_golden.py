"""What a user relies on is as it was before the redesign: golden/values.json, item by item.

`python tests/golden/record.py --compare` prints the same as a table.
"""

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from golden import items
from golden.compare import at_least, compare, mask, near, note

RECORDED = json.loads((items.HERE / "values.json").read_text())


def test_each_item_is_recorded():
    assert list(RECORDED) == list(items.ITEMS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(item.name, marks=pytest.mark.slow if item.slow else ())
        for item in items.ITEMS.values()
    ],
)
def test_as_recorded(name):
    outcome = compare(RECORDED[name], items.measured(name))
    assert not outcome.problems, "\n".join(outcome.problems[:20])


# --- the comparison notices ------------------------------------------------------------------


@pytest.mark.parametrize("name", items.ITEMS)
def test_any_changed_value_is_noticed(name):
    """Each value of each item, changed by more than its tolerance, alone."""
    recorded = RECORDED[name]
    assert not compare(recorded, copy.deepcopy(recorded)).problems
    places = list(changes(recorded))
    assert places
    for path, value in places[:: max(1, len(places) // 50)]:
        changed = copy.deepcopy(recorded)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        assert compare(recorded, changed).problems, (path, value)


def changes(value, path=(), rtol=1e-6, atol=0.0):
    """(path, other value) of all that is compared in a value."""
    kind = value.get("$") if isinstance(value, dict) else None
    if kind == "note":
        return
    if kind == "mask":
        ids = np.zeros(value["shape"], np.uint8)
        yield path, mask(ids + 9)
    elif kind == "near":
        largest = value["rtol"] if isinstance(value["rtol"], float) else max(value["rtol"])
        yield from changes(value["values"], (*path, "values"), largest, value["atol"])
    elif kind == "at_least":
        yield from changes(value["values"], (*path, "values"), rtol, atol)
    elif isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from changes(entry, (*path, key), rtol, atol)
    elif isinstance(value, bool) or value is None:
        yield path, "other"
    elif isinstance(value, int | float):
        more = value + 1.01 * (atol + rtol * abs(value)) + 1e-9
        yield path, 0.0 if math.isnan(value) else more
    else:
        yield path, f"{value}!"


def test_kinds_of_tolerance():
    ids = np.arange(4000, dtype=np.uint8).reshape(40, 100)
    few, many = ids.copy(), ids.copy()
    few.flat[:4] += 1
    many.flat[:5] += 1
    assert compare({"a": mask(ids)}, {"a": mask(few)}).verdict.startswith("within tolerance")
    assert compare({"a": mask(ids)}, {"a": mask(many)}).problems
    assert compare({"a": mask(ids)}, {"a": mask(ids.T)}).problems
    assert not compare(near([1.0, 2.0]), near([1.00009, 2.0])).problems
    assert compare(near([1.0, 2.0]), near([1.0, 2.0, 3.0])).problems
    assert compare(near([1.0]), near([float("nan")])).problems
    assert compare(near([1.0]), near([None])).problems
    assert compare(near({"a": 1.0}), near({})).problems
    assert compare(at_least({"a": 1}), at_least({"a": 1, "b": 2})).verdict.endswith("new: b")
    assert compare(at_least({"a": 1, "b": 2}), at_least({"a": 1})).problems
    assert compare({"a": [], "b": note("x")}, {"a": [1], "b": note("x")}).problems
    assert compare({"a": 1}, {"a": 1, "b": 2}).problems
    assert compare({"a": 1}, {"a": True}).problems
    assert compare({"a": note("x")}, {"a": note("x")}).problems  # nothing was compared
