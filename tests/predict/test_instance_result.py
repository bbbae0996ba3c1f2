"""Drawing and saving of instances."""

import numpy as np
import pytest
import torch

from fsanet.errors import InputError
from fsanet.predict.instance_result import Instances


def result(**changes):
    """Two squares that overlap on a black image of 40 x 60; the first is the surer."""
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 5:25, 5:25] = True
    masks[1, 15:35, 15:45] = True
    values = {
        "boxes": torch.tensor([[5.0, 5, 25, 25], [15, 15, 45, 35]]),
        "masks": masks,
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.9, 0.4]),
        "classes": ("cat", "dog"),
        "category_ids": (17, 18),
        "image": torch.zeros(3, 40, 60, dtype=torch.uint8),
    }
    return Instances(**{**values, **changes})


def test_ids_of_the_surer_lie_on_top():
    ids = result().id_map()
    assert ids[20, 20] == 1  # in both
    assert ids[30, 30] == 2
    assert ids[0, 0] == 0
    assert np.array_equal(np.asarray(result().id_image()), ids.numpy())


def test_overlay_tints_masks_and_leaves_the_rest():
    pixels = np.asarray(result().overlay(alpha=0.5, names=False)).astype(int)
    first, second = (np.array(colour) for colour in result()._colours())
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert np.abs(pixels[10, 10] - first / 2).max() <= 1
    assert np.abs(pixels[30, 30] - second / 2).max() <= 1
    assert pixels[5, 15].tolist() == first.tolist()  # its box
    assert np.abs(pixels[20, 20] - (second / 4 + first / 2)).max() <= 1  # drawn after the other


def test_names_are_written_inside_the_image():
    plain = np.asarray(result().overlay(names=False))
    named = np.asarray(result().overlay(names=True))
    assert plain.shape == named.shape == (40, 60, 3)
    assert (plain != named).any()


def test_results_are_in_cocos_terms():
    entries = result().results(image_id=7)
    assert [e["category_id"] for e in entries] == [18, 17]
    assert entries[1]["bbox"] == [15, 15, 30, 20]
    assert entries[0]["segmentation"]["size"] == [40, 60]
    assert {e["image_id"] for e in entries} == {7}


def test_lowest_score():
    assert len(result().above(0.5)) == 1
    assert result().above(0.95).results(1) == []
    assert result().above(0.95).overlay().size == (60, 40)
    with pytest.raises(InputError, match=r"score is 1\.5"):
        result().above(1.5)


def test_more_instances_than_8_bits_hold():
    masks = torch.zeros(300, 40, 60, dtype=torch.bool)
    for index in range(300):
        masks[index, index // 60, index % 60] = True
    many = result(
        masks=masks,
        boxes=torch.rand(300, 4),
        labels=torch.ones(300, dtype=torch.long),
        scores=torch.linspace(1, 0, 300),
    )
    ids = np.asarray(many.id_image())
    assert ids.max() == 300
    assert np.array_equal(ids, many.id_map().numpy())


def test_saved_files(tmp_path):
    written = result().save(tmp_path, "a")
    assert {path.name for path in written.values()} == {
        *("a_instances.png", "a_overlay.png", "a.json"),
    }
    with pytest.raises(InputError, match="alpha is 2"):
        result().save(tmp_path, "b", alpha=2)


def test_parts_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"masks are .*expected bool \(2, 40, 60\)"):
        result(masks=torch.zeros(2, 40, 50, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        result(labels=torch.tensor([1]))
