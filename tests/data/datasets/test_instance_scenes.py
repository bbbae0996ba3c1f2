import pytest
import torch

from fsanet.data import InstanceScenes
from fsanet.errors import InputError


def test_scenes_depend_on_seed_and_split_alone():
    first, again = InstanceScenes(3, size=(64, 64)), InstanceScenes(9, size=(64, 64))
    assert torch.equal(first[2][0], again[2][0])
    assert not torch.equal(first[2][0], InstanceScenes(3, size=(64, 64), split="val")[2][0])
    assert not torch.equal(first[2][0], InstanceScenes(3, size=(64, 64), seed=1)[2][0])


def test_scene_masks_do_not_overlap_and_are_in_sight():
    for index in range(20):
        _, target = InstanceScenes(20, size=(64, 80))[index]
        assert target["masks"].sum(0).max() == 1
        assert target["masks"].flatten(1).sum(1).min() >= 40


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"length": 0}, "length=0"),
        ({"size": (40, 80)}, "at least 48"),
        ({"split": "dev"}, "choose one of"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_scenes_refuse(options, match):
    with pytest.raises(InputError, match=match):
        InstanceScenes(**{"length": 1, **options})
