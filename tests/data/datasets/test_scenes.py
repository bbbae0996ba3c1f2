import numpy as np
import pytest
import torch

from fsanet.data.datasets.scene_drawing import render_scene
from fsanet.data.datasets.scenes import AMBIGUOUS_PAIRS, CLASSES, PALETTE, ProceduralScenes
from fsanet.errors import InputError

LIGHT = CLASSES.index("light")


class Flipped:
    """A generator whose n-th coin toss comes out the other way; all else is the same."""

    def __init__(self, seed: int, toss: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.toss = toss

    def integers(self, *bounds):
        value = self.rng.integers(*bounds)
        if bounds == (2,):
            self.toss -= 1
            return 1 - value if self.toss == -1 else value
        return value

    def __getattr__(self, name):
        return getattr(self.rng, name)


# Tosses in order: end of the sky sign, day or night, end of the traffic light, go or stop.
@pytest.mark.parametrize(("toss", "pair"), [(1, AMBIGUOUS_PAIRS[0]), (3, AMBIGUOUS_PAIRS[1])])
@pytest.mark.parametrize("size", [(96, 256), (64, 128), (128, 400)])
def test_only_a_far_and_small_sign_tells_a_pair_apart(toss, pair, size):
    other_pair = next(p for p in AMBIGUOUS_PAIRS if p != pair)
    for seed in range(8):
        picture, labels = render_scene(np.random.default_rng(seed), size)
        flipped, other = render_scene(Flipped(seed, toss), size)
        objects = np.isin(labels, pair)
        assert objects.any()
        # Every object of the pair changes its class, and none of the other pair does.
        a, b = pair
        assert set(np.unique(labels[objects])) in ({a}, {b})
        assert np.array_equal(np.where(objects, a + b - labels, labels)[objects], other[objects])
        assert np.array_equal(np.isin(labels, other_pair), np.isin(other, other_pair))
        # All pixels that differ lie far away from all pixels of the pair, and are few.
        changed = np.flatnonzero((picture != flipped).any((0, 1)))
        assert changed.size > 0
        gaps = np.abs(changed[:, None] - np.flatnonzero(objects.any(0))[None])
        assert gaps.min() >= 0.3 * size[1]
        assert changed.size < 0.2 * size[1]


def test_far_sign_of_the_default_size_is_80_pixels_away():
    for toss, pair in ((1, AMBIGUOUS_PAIRS[0]), (3, AMBIGUOUS_PAIRS[1])):
        gaps = []
        for seed in range(25):
            picture, labels = render_scene(np.random.default_rng(seed), (96, 256))
            flipped, _ = render_scene(Flipped(seed, toss), (96, 256))
            changed = np.flatnonzero((picture != flipped).any((0, 1)))
            columns = np.flatnonzero(np.isin(labels, pair).any(0))
            gaps.append(np.abs(changed[:, None] - columns[None]).min())
        assert min(gaps) >= 80


def test_states_are_balanced_and_independent():
    """Four combinations of the two pairs, each in about a quarter of the scenes."""
    data = ProceduralScenes(120)
    counts = np.zeros((2, 2))
    for _, mask in (data[i] for i in range(120)):
        present = set(mask.unique().tolist())
        assert LIGHT in present
        states = [[i for i, c in enumerate(pair) if c in present] for pair in AMBIGUOUS_PAIRS]
        assert [len(s) for s in states] == [1, 1]
        counts[states[0][0], states[1][0]] += 1
    # Four standard deviations of a binomial with n=120, p=1/4.
    assert np.all(np.abs(counts - 30) < 19)


def test_depends_on_seed_split_and_index_alone():
    data = ProceduralScenes(5, seed=3)
    torch.manual_seed(1)
    first = data[2]
    torch.manual_seed(2)
    np.random.seed(0)  # noqa: NPY002
    again = ProceduralScenes(50, seed=3)[2]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    for other in (
        data[3],
        ProceduralScenes(5, seed=4)[2],
        ProceduralScenes(5, seed=3, split="val")[2],
    ):
        assert not torch.equal(first[0], other[0])


def test_item_shapes_and_ids():
    image, mask = ProceduralScenes(1, size=(48, 130))[0]
    assert image.shape == (3, 48, 130)
    assert image.dtype is torch.uint8
    assert mask.shape == (48, 130)
    assert mask.dtype is torch.int64
    seen = torch.cat([m.unique() for _, m in map(ProceduralScenes(30).__getitem__, range(30))])
    assert set(seen.tolist()) == set(range(7))
    assert len(CLASSES) == len(PALETTE) == 7


def test_golden_pixels():
    """The data set stays the same from version to version: numbers are compared over time."""
    image, mask = ProceduralScenes(1)[0]
    assert torch.bincount(mask.flatten(), minlength=7).tolist() == [
        11368,
        8437,
        689,
        2449,
        0,
        1633,
        0,
    ]
    assert abs(float(image.double().mean()) - 123.0802) < 0.01


def test_length():
    data = ProceduralScenes(3)
    assert len(list(data)) == 3
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"split": "trian"}, "'trian'.*train, val, test"),
        ({"size": (32, 256)}, r"size=\(32, 256\)"),
        ({"size": (96, 150)}, "W >= 2 H"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        ProceduralScenes(**{"length": 1, **options})
