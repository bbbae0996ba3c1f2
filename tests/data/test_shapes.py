"""Masks as run lengths."""

import numpy as np
import pytest
import torch

pytest.importorskip("faster_coco_eval")

from fsanet.data.shapes import encode_box, encode_masks


@pytest.mark.parametrize("share", [-1, 0.02, 0.5, 0.9, 2])
def test_a_box_is_encoded_as_the_whole_image(share):
    """At the borders, and of full height, where runs go on in the next column."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 12, 2).tolist()
        top, left = int(rng.integers(height)), int(rng.integers(width))
        h, w = int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
        inside = rng.random((h, w)) < share
        whole = torch.zeros(1, height, width, dtype=torch.bool)
        whole[0, top : top + h, left : left + w] = torch.from_numpy(inside)
        assert encode_box(inside, top, left, height, width) == encode_masks(whole)[0]
