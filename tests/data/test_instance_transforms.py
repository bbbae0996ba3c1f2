"""Joint transforms: image, boxes, masks and labels stay together."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from fsanet.data.augment import MEAN_COLOUR
from fsanet.data.instance_transforms import (
    BoxesAroundMasks,
    boxes_around,
    instance_train_transform,
)
from fsanet.errors import InputError

SHADES = (60, 140, 220)


def item(size=(60, 90)):
    """Three boxes, each of its own shade; the third is a crowd."""
    height, width = size
    boxes = torch.tensor([[5.0, 5, 35, 25], [40, 10, 80, 50], [0, 40, 30, 60]])
    masks = torch.zeros(3, height, width, dtype=torch.uint8)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for mask, box, shade in zip(masks, boxes.int().tolist(), SHADES, strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
        image[:, box[1] : box[3], box[0] : box[2]] = shade
    return tv_tensors.Image(image), {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.tensor([1, 2, 3]),
        "iscrowd": torch.tensor([0, 0, 1]),
        "area": torch.tensor([600.0, 1600.0, 600.0]),
        "image_id": 1,
    }


def transformed(seed, **options):
    torch.manual_seed(seed)
    options = {"size": (48, 64), "photometric": False, **options}
    return instance_train_transform(**options)(*item())


def test_masks_boxes_and_labels_stay_together():
    counts = set()
    for seed in range(30):
        image, target = transformed(seed, scale=(0.5, 3.0))
        assert image.shape == (3, 48, 64)
        count = len(target["labels"])
        assert target["boxes"].shape == (count, 4)
        assert target["masks"].shape == (count, 48, 64)
        counts.add(count)
        for box, mask, label in zip(
            target["boxes"].tolist(), target["masks"].bool(), target["labels"].tolist(), strict=True
        ):
            rows, columns = mask.nonzero().T
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert image[0][mask].float().median() == SHADES[label - 1]
    assert 2 in counts  # both are seen at times
    assert counts <= {0, 1, 2}  # the crowd never
    assert counts & {0, 1}  # and sometimes one is cropped away


def test_padding_has_the_mean_colour():
    image, _ = transformed(0, scale=(0.3, 0.3), flip=False)
    padded = (image == torch.tensor(MEAN_COLOUR)[:, None, None]).all(0)
    assert padded.sum() == 48 * 64 - 12 * 19  # 60 x 90 fitted to 42.7 x 64, times 0.3


def test_mirror():
    plain, target = transformed(0, size=None, flip=False)
    assert torch.equal(plain, item()[0])
    for seed in range(20):
        image, mirrored = transformed(seed, size=None)
        if not torch.equal(image, plain):
            assert torch.equal(image, plain.flip(-1))
            assert torch.equal(mirrored["masks"], target["masks"].flip(-1))
            assert mirrored["boxes"][0].tolist() == [55, 5, 85, 25]
            break
    else:
        pytest.fail("never mirrored")


def test_colours_change_the_image_alone():
    plain, target = transformed(3, size=None, flip=False)
    images = [transformed(s, size=None, flip=False, photometric=True) for s in range(5)]
    assert any(not torch.equal(image, plain) for image, _ in images)
    assert all(torch.equal(t["masks"], target["masks"]) for _, t in images)


def test_slivers_are_dropped():
    _, target = transformed(0, size=None, flip=False, min_side=21)
    assert target["labels"].tolist() == [2]  # the other one is 20 pixels high


def test_boxes_are_those_of_torchvision_but_for_the_far_edge():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(40, 13, 17, generator=generator) > 0.993).to(torch.uint8)
    seen = masks.bool().flatten(1).any(1)
    assert 0 < int(seen.sum()) < 40
    boxes = boxes_around(masks)
    expected = masks_to_boxes(masks[seen]) + torch.tensor([0, 0, 1, 1])
    assert boxes.dtype is torch.float32
    assert torch.equal(boxes[seen], expected)
    assert not (boxes[~seen, 2:] - boxes[~seen, :2]).any()
    assert torch.equal(boxes_around(masks.transpose(1, 2))[:, [1, 0, 3, 2]][seen], expected)
    assert boxes_around(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("min_side", [0.0, 1.0, 2.0, 3.5, 30.0])
def test_what_is_dropped_is_what_torchvision_drops(min_side):
    """BoxesAroundMasks against torchvision's boxes and its SanitizeBoundingBoxes."""
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(60, 13, 17, generator=generator) > 0.985).to(torch.uint8)
    image, target = item((13, 17))
    canvas = target["boxes"]
    labels = torch.arange(60)
    boxes = tv_tensors.wrap(torch.zeros(60, 4), like=canvas)
    given = {"boxes": boxes, "masks": tv_tensors.Mask(masks), "labels": labels}
    _, found = BoxesAroundMasks(min_side)(image, given)
    around = torch.zeros(60, 4)
    seen = masks.bool().flatten(1).any(1)
    around[seen] = masks_to_boxes(masks[seen]) + torch.tensor([0, 0, 1, 1])
    given["boxes"] = tv_tensors.wrap(around, like=canvas)
    _, expected = v2.SanitizeBoundingBoxes(min_size=max(min_side, 1))(image, given)
    assert 0 < len(expected["labels"]) < 60 or min_side == 30
    for name in ("boxes", "masks", "labels"):
        assert torch.equal(found[name], expected[name])
        assert type(found[name]) is type(expected[name])


@pytest.mark.parametrize("options", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"size": (0, 5)}])
def test_options_that_make_no_sense(options):
    with pytest.raises(InputError):
        transformed(0, **options)
