"""Calibration: the smallest k that is good enough, by error and by metric."""

import json

import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn

from fsanet import SpatialSelfAttention, calibrate, convert_attention
from fsanet.convert import compare_grids
from fsanet.errors import InputError


def limited(x, k):
    """``x`` without all but its k x k lowest frequencies."""
    spectrum = scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(-2, -1))
    spectrum[..., k:, :] = 0
    spectrum[..., k:] = 0
    return torch.from_numpy(scipy.fft.idctn(spectrum, type=2, norm="ortho", axes=(-2, -1)))


class Two(nn.Module):
    """Attention over inputs of 3 x 3 and of 5 x 5 frequencies."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layer(), layer()

    def forward(self, x):
        return self.first(limited(x, 3)) + self.second(limited(x, 5))


def layer(**options):
    made = SpatialSelfAttention(4, similarity="softmax", zero_init=False, **options)
    with torch.no_grad():
        made.query.weight.mul_(4)
    return made.double().eval().requires_grad_(False)


def network():
    torch.manual_seed(0)
    return Two()


IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4, 12, 10)))


def test_smallest_k_is_the_band_of_the_input():
    model = network()
    found = calibrate(model, IMAGES, tolerance=1e-9, candidates=(1, 2, 3, 4, 5, 6))
    assert found.k == {"first": 3, "second": 5}
    for name, k in found.k.items():
        assert found.errors[name][k - 1] > 1e-3
        assert found.energy[name][k] == pytest.approx(1, abs=1e-12)
        assert found.energy[name][k - 1] < 0.999
    converted = convert_attention(model, k=found.k).model
    torch.testing.assert_close(converted(IMAGES), model(IMAGES), rtol=0, atol=1e-9)


def test_errors_and_energy_by_hand():
    model = nn.Sequential(layer())
    found = calibrate(model, [IMAGES[:1], IMAGES[1]], candidates=(2, 20))
    converted = convert_attention(model, k=2).model
    added, exact = converted(IMAGES) - IMAGES, model(IMAGES) - IMAGES  # the contribution
    expected = ((added - exact).norm() / exact.norm()).item()
    assert found.errors["0"][2] == pytest.approx(expected, rel=1e-9)
    power = scipy.fft.dctn(IMAGES.numpy(), type=2, norm="ortho", axes=(-2, -1)) ** 2
    assert found.energy["0"][2] == pytest.approx(power[..., :2, :2].sum() / power.sum())
    assert found.energy["0"][20] == 1


def test_left_as_it_is_where_no_candidate_will_do():
    found = calibrate(network(), IMAGES, tolerance=1e-9, candidates=(1, 3))
    assert found.k == {"first": 3}
    assert "none" in found.table().splitlines()[2]


def test_by_metric_counts_what_was_converted_before():
    model = network()
    exact = model(IMAGES)
    seen = []

    def metric(candidate):
        seen.append([type(layer).__name__ for layer in (candidate.first, candidate.second)])
        return -(candidate(IMAGES) - exact).abs().max().item()

    found = calibrate(model, IMAGES, tolerance=1e-9, metric=metric, candidates=(1, 3, 5))
    assert found.k == {"first": 3, "second": 5}
    assert found.baseline == 0
    assert found.final >= -1e-9
    assert list(found.metrics["first"]) == [1, 3]
    assert list(found.metrics["second"]) == [1, 3, 5]
    assert found.metrics["first"][1] < -1e-3
    assert seen[0] == ["SpatialSelfAttention", "SpatialSelfAttention"]
    assert seen[2] == ["FrequencySelfAttention", "SpatialSelfAttention"]
    assert seen[-1] == ["FrequencySelfAttention", "FrequencySelfAttention"]
    assert type(model.first) is SpatialSelfAttention


def test_grid_errors_at_the_chosen_k():
    model = network()
    options = {"tolerance": 1e-9, "candidates": (3, 5), "match": "second", "route": "grid"}
    found = calibrate(model, IMAGES, grids=(3, 12), grid=12, **options)
    assert found.grid_errors == compare_grids(model, IMAGES, 5, (3, 12), match="second")
    given = limited(IMAGES, 5)
    exact, coarse = (
        convert_attention(model.second, 5, **route).model(given)
        for route in ({"route": "tokens"}, {"route": "grid", "grid": 3})
    )
    expected = ((coarse - exact).norm() / (exact - given).norm()).item()
    assert found.grid_errors["second"][3] == pytest.approx(expected, rel=1e-9)
    assert found.grid_errors["second"][12] < 1e-12
    assert f"{expected:.1e}" in found.table()


def test_json():
    found = calibrate(network(), IMAGES, tolerance=0.01, candidates=(1, 3, 5))
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert read["k"] == found.k
    assert read["errors"]["first"]["1"] == found.errors["first"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"candidates": ()}, "give one or more k"),
        ({"candidates": (0, 4)}, "give one or more k"),
        ({"k": 4}, "calibrate chooses k itself"),
        ({"match": "9"}, "'9' matches no attention to convert; there are first, second"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        calibrate(network(), IMAGES, **arguments)


def test_no_image_and_a_module_that_is_not_used():
    with pytest.raises(InputError, match="no images given"):
        calibrate(network(), [])

    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = layer(), layer()

        def forward(self, x):
            return self.used(x)

    with pytest.raises(InputError, match="spare: not called"):
        calibrate(Spare(), IMAGES)


def test_network_that_changes_its_tensors_in_place():
    """The error is relative to what the module returned, whatever becomes of it afterwards."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = layer()

        def forward(self, x):
            return self.attention(x).mul_(0)

    torch.manual_seed(0)
    changed = InPlace()
    found = calibrate(changed, IMAGES, candidates=(2,))
    kept = calibrate(changed.attention, IMAGES, candidates=(2,))
    assert found.errors["attention"] == kept.errors[""]
