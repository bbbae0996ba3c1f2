"""What a user relies on is as version 0.1 gave it: golden/values.json, item by item."""

import json

import numpy as np
import pytest
import torch
from golden import items
from golden.compare import at_least, differences, mask, near

RECORDED = json.loads((items.HERE / "values.json").read_text())
SLOW = {
    *(f"train/{name}" for name in ("ccnet", "spatial", "segformer", "instances", "linear_softmax")),
    "run/sweep",
}


def test_each_item_is_recorded():
    assert list(RECORDED) == list(items.ITEMS)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in items.ITEMS]
)
def test_as_recorded(name):
    if name == "predict/fingerprint" and "bias=True" not in repr(torch.nn.BatchNorm2d(1)):
        pytest.skip("fingerprints cover the printed modules, and this torch prints norms otherwise")
    assert not list(differences(RECORDED[name], items.measured(name)))[:20]


IDS = np.arange(4000, dtype=np.uint8).reshape(40, 100)


def changed_ids(count):
    ids = IDS.copy()
    ids.flat[:count] += 1
    return mask(ids)


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        ([1, 2.0, None, "a", True], [1, 2.0000001, None, "a", True]),
        (near([1.0, 200]), near([1.00009, 200.01])),
        (near([1.0, 1.0], rtol=[1e-6, 1e-1]), near([1.0, 1.09])),
        (near({"a": [0.0]}, atol=0.1), near({"a": [0.09]})),
        (near([float("nan")]), near([float("nan")])),
        (at_least({"a": 1}), at_least({"a": 1, "b": 2})),
        (mask(IDS), changed_ids(4)),
    ],
)
def test_what_counts_as_the_same(recorded, now):
    assert not list(differences({"x": recorded}, {"x": now}))


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": []}, {"a": [1]}),
        ({"a": 1.0}, {"a": 1.00001}),
        ({"a": "text"}, {"a": "test"}),
        ({"a": None}, {"a": 0.0}),
        (near([1.0]), near([1.0002])),
        (near([1.0, 1.0], rtol=[1e-6, 1e-1]), near([1.09, 1.0])),
        (near([1.0]), near([1.0, 1.0])),
        (near([1.0]), near([float("nan")])),
        (near([float("nan")]), near([1.0])),
        (near([1.0]), near([None])),
        (near({"a": 1.0}), near({})),
        (near([1.0]), [1.0]),
        (at_least({"a": 1, "b": 2}), at_least({"a": 1})),
        (mask(IDS), changed_ids(5)),
        (mask(IDS), mask(IDS.T)),
    ],
)
def test_what_counts_as_different(recorded, now):
    assert len(list(differences({"x": recorded}, {"x": now}))) == 1
