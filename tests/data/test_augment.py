from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from fsanet.data.augment import (
    MEAN_COLOUR,
    PadTo,
    PhotometricDistortion,
    ScaleAndCrop,
    ValidInstances,
    boxes_around,
)
from fsanet.data.batches import InstanceData, SegmentationData
from fsanet.errors import InputError

PALETTE = torch.tensor(
    [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8
)


def train_transform(crop, **options):
    return SegmentationData(classes=["a", "b", "c", "d", "e"], crop=crop, **options).train_transform


def painted(mask: torch.Tensor) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image in the colours of its mask."""
    return tv_tensors.Image(PALETTE[mask].permute(2, 0, 1)), tv_tensors.Mask(mask)


def blocks(height: int = 60, width: int = 80, block: int = 20) -> torch.Tensor:
    ids = torch.randint(5, (height // block, width // block))
    return ids.repeat_interleave(block, 0).repeat_interleave(block, 1)


def interior(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Pixels whose neighbourhood is of one id."""
    x = mask.float()[None, None]
    window = 2 * reach + 1
    high = torch.nn.functional.max_pool2d(x, window, 1, reach)
    low = -torch.nn.functional.max_pool2d(-x, window, 1, reach)
    return (high == low)[0, 0]


def nearest_colour(image: torch.Tensor) -> torch.Tensor:
    distance = (image.permute(1, 2, 0)[:, :, None].float() - PALETTE.float()).square().sum(-1)
    return distance.argmin(-1)


@pytest.mark.parametrize("crop", [(40, 48), (90, 33), (100, 120), None])
@pytest.mark.parametrize("scale", [(0.5, 2.0), (1.0, 1.0)])
def test_image_and_mask_stay_aligned_through_all_geometry(crop, scale):
    torch.manual_seed(0)
    transform = train_transform(
        crop, scale=scale, flip=True, photometric=False, class_ratio=0.9, fill=(255, 255, 255)
    )
    flips = set()
    for _ in range(15):
        source = blocks()
        image, mask = transform(*painted(source))
        assert image.shape[1:] == mask.shape
        assert crop is None or mask.shape == crop
        assert image.dtype is torch.uint8
        assert mask.dtype is torch.int64
        assert type(image) is tv_tensors.Image
        assert type(mask) is tv_tensors.Mask
        # No id comes into being by mixing.
        assert set(mask.unique().tolist()) <= {*source.unique().tolist(), 255}
        valid = mask != 255
        assert torch.all(image.permute(1, 2, 0)[~valid] == 255)
        # Colours blend across borders alone.
        inner = valid & interior(mask, 2)
        assert inner.sum() > 100
        assert torch.equal(nearest_colour(image)[inner], mask[inner])
        flips.add(torch.equal(mask, source))
    if crop is None and scale == (1.0, 1.0):
        assert flips == {True, False}


@pytest.mark.parametrize("factor", [1 / 5, 1 / 3, 0.7, 1.5, 2.0])
def test_scaled_mask_has_no_offset_against_the_image(factor):
    """A ramp: the mask's id must be the image's value, not that of half a pixel to the left."""
    ramp = torch.arange(60).expand(30, 60)
    image = tv_tensors.Image((4 * ramp).to(torch.uint8).expand(3, 30, 60))
    scaled, mask = ScaleAndCrop(None, scale=(factor, factor))(image, tv_tensors.Mask(ramp.clone()))
    assert mask.shape == (round(30 * factor), round(60 * factor))
    inside = slice(3, -3)
    difference = scaled[0, :, inside].float() / 4 - mask[:, inside]
    assert abs(float(difference.mean())) < 0.2
    assert float(difference.abs().max()) <= 0.5


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((512, 683), 1.0, (512, 683)),  # ADE20K: the shorter side is 512 already
        ((375, 500), 1.0, (512, 683)),  # VOC: 375 becomes 512
        ((300, 3000), 1.0, (205, 2048)),  # the longer side is the limit
        ((1024, 2048), 0.5, (256, 512)),
    ],
)
def test_factor_one_can_stand_for_a_size(size, factor, expected):
    transform = train_transform(
        None, resize=(2048, 512), scale=(factor, factor), flip=False, photometric=False
    )
    image, mask = tv_tensors.Image(torch.zeros(3, *size)), tv_tensors.Mask(torch.zeros(size))
    scaled, ids = transform(image, mask)
    assert tuple(scaled.shape[-2:]) == tuple(ids.shape) == expected


def test_scale_range_is_used_evenly():
    torch.manual_seed(0)
    pair = painted(blocks(100, 100))
    transform = ScaleAndCrop(None, scale=(0.5, 2.0))
    factors = np.array([transform(*pair)[1].shape[0] / 100 for _ in range(200)])
    assert factors.min() >= 0.5
    assert factors.max() <= 2.0
    assert abs(factors.mean() - 1.25) < 0.1
    assert abs(factors.std() - 1.5 / 12**0.5) < 0.06


def test_scale_steps_are_drawn_evenly_and_reach_both_ends():
    torch.manual_seed(0)
    pair = painted(torch.zeros(10, 10, dtype=torch.long))
    transform = ScaleAndCrop(None, scale=(0.7, 2.1), scale_step=0.1)
    sides = Counter(transform(*pair)[1].shape[0] for _ in range(600))
    assert sorted(sides) == list(range(7, 22))  # 0.7, 0.8, ... 2.1
    assert min(sides.values()) > 15  # 40 each
    with pytest.raises(InputError, match="scale_step=-1"):
        ScaleAndCrop(None, scale_step=-1)


def test_class_ratio_crop_avoids_crops_of_one_class():
    """Class 1 is a thin stripe: about 1 crop of 8 holds enough of it."""
    mask = torch.zeros(64, 640, dtype=torch.long)
    mask[:, 300:350] = 1
    pair = painted(mask)
    torch.manual_seed(0)

    def share_of_mixed(class_ratio: float) -> float:
        crop = ScaleAndCrop((64, 64), class_ratio=class_ratio)
        masks = [crop(*pair)[1] for _ in range(200)]
        return sum(0.25 <= float((m == 1).float().mean()) <= 0.75 for m in masks) / 200

    single = share_of_mixed(1.0)
    assert 0.05 < single < 0.25
    # 10 draws instead of one: 1 - (1 - p)^10
    assert abs(share_of_mixed(0.75) - (1 - (1 - single) ** 10)) < 0.15


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("resize", [None, (90, 45)])
def test_crop_is_a_part_of_the_whole_scaled_image(resize, dtype):
    """Cropping does not change the factor drawn, nor any pixel."""
    options = {"scale": (0.5, 2.0), "resize": resize}
    for seed in range(10):
        torch.manual_seed(seed)
        image, mask = painted(blocks())
        pair = image, tv_tensors.Mask(mask.to(dtype))
        torch.manual_seed(seed)
        whole, whole_ids = ScaleAndCrop(None, **options)(*pair)
        torch.manual_seed(seed)
        part, ids = ScaleAndCrop((40, 48), class_ratio=1.0, **options)(*pair)
        assert ids.dtype is dtype
        height, width = min(40, whole.shape[1]), min(48, whole.shape[2])
        assert tuple(ids.shape) == tuple(part.shape[1:]) == (height, width)
        windows = whole_ids.unfold(0, height, 1).unfold(1, width, 1)
        places = (windows == ids).all(-1).all(-1).nonzero().tolist()
        crops = [whole[:, y : y + height, x : x + width].int() for y, x in places]
        # Rounded once more where torch cannot resize uint8 natively.
        assert any((part.int() - crop).abs().max() <= 1 for crop in crops)


def test_class_ratio_counts_labelled_pixels_only():
    """Half class 0, half class 1, but ignored pixels are the most."""
    mask = torch.full((40, 40), 255)
    mask[:, :2], mask[:, 38:] = 0, 1
    crop = ScaleAndCrop((40, 40), class_ratio=0.5)
    assert crop.is_mixed(mask)
    mask[:, 38:] = 255
    assert not crop.is_mixed(mask)  # one class alone
    assert not crop.is_mixed(torch.full((40, 40), 255))  # nothing at all


def test_class_ratio_crop_gives_up_after_its_attempts(monkeypatch):
    crop = ScaleAndCrop((8, 8))
    calls = []
    monkeypatch.setattr(crop, "is_mixed", lambda ids: bool(calls.append(tuple(ids.shape))))
    assert crop(*painted(torch.zeros(32, 32, dtype=torch.long)))[1].shape == (8, 8)
    assert calls == [(8, 8)] * 10


def test_crop_reaches_every_position():
    torch.manual_seed(0)
    mask = torch.arange(30).reshape(5, 6)
    image = tv_tensors.Image(torch.zeros(3, 5, 6, dtype=torch.uint8))
    crop = ScaleAndCrop((4, 5), class_ratio=1.0)
    corners = {int(crop(image, tv_tensors.Mask(mask))[1][0, 0]) for _ in range(60)}
    assert corners == {0, 1, 6, 7}


def test_pad_uses_mean_colour_and_ignore():
    image, mask = PadTo((70, 100), ignore_index=254)(*painted(torch.zeros(60, 80).long()))
    assert mask.shape == (70, 100)
    assert torch.all(mask[:60, :80] == 0)
    assert torch.all(mask[60:] == 254)
    assert torch.all(mask[:, 80:] == 254)
    assert image[:, 65, 5].tolist() == list(MEAN_COLOUR)
    assert image[:, 5, 95].tolist() == list(MEAN_COLOUR)
    assert torch.all(image[:, :60, :80] == 0)
    # Larger than asked along one axis: only the other is padded.
    assert PadTo((20, 100))(*painted(torch.zeros(60, 80).long()))[1].shape == (60, 100)


def test_photometric_leaves_masks_and_padding_alone():
    torch.manual_seed(0)
    transform = train_transform((100, 100), scale=(1, 1), flip=False, class_ratio=1.0)
    source = blocks()
    changed = 0
    for _ in range(20):
        image, mask = transform(*painted(source))
        assert torch.equal(mask[:60, :80], source)
        assert image[:, 80, 90].tolist() == list(MEAN_COLOUR)
        changed += not torch.equal(image[:, :60, :80], painted(source)[0])
    assert 10 < changed <= 20


def test_photometric_ranges():
    torch.manual_seed(0)
    grey = tv_tensors.Image(torch.full((3, 8, 8), 100, dtype=torch.uint8))
    values = []
    for _ in range(300):
        out = PhotometricDistortion()(grey)
        assert out.dtype is torch.uint8
        # Saturation and hue do nothing to grey; no channel is treated by itself.
        assert int(out.float().std() * 1000) == 0
        values.append(int(out[0, 0, 0]))
    # (100 +- 32) * 0.5..1.5 in either order
    assert min(values) >= round((100 - 32) * 0.5)
    assert max(values) <= round((100 + 32) * 1.5)
    assert min(values) < 55
    assert max(values) > 160
    # Neither brightness nor contrast in a quarter of all cases.
    assert abs(values.count(100) / 300 - 0.25) < 0.1


def test_photometric_turns_hue_but_never_swaps_channels():
    torch.manual_seed(0)
    red = tv_tensors.Image(torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None])
    outs = torch.stack([PhotometricDistortion()(red)[:, 0, 0] for _ in range(200)]).int()
    assert torch.all(outs[:, 0] >= outs[:, 1])
    assert torch.all(outs[:, 0] >= outs[:, 2])
    assert (outs[:, 1] - outs[:, 2]).abs().max() > 30


def test_no_step_at_all():
    pair = painted(blocks())
    out = train_transform(None, scale=(1, 1), flip=False, photometric=False)(*pair)
    assert torch.equal(out[0], pair[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0, 1)}, r"scale=\(0, 1\)"),
        ({"scale": (2, 1)}, r"scale=\(2, 1\)"),
        ({"scale": (float("nan"), 1)}, r"scale=\(nan, 1\)"),
        ({"scale": (1, float("inf"))}, r"scale=\(1, inf\)"),
        ({"crop": (10**6, 10**6)}, r"crop=\(1000000, 1000000\): .* more than the limit"),
        ({"resize": (0, 512)}, r"resize=\(0, 512\)"),
        ({"crop": (0, 5)}, r"crop=\(0, 5\)"),
        ({"class_ratio": 0}, "class_ratio=0"),
        ({"class_ratio": 1.2}, "class_ratio=1.2"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        train_transform(**{"crop": (8, 8), **options})


# ---- instances

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
    return InstanceData(**options).train_transform(*item())


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
    _, target = ValidInstances(21)(*item())
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
    """ValidInstances against torchvision's boxes and its SanitizeBoundingBoxes."""
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(60, 13, 17, generator=generator) > 0.985).to(torch.uint8)
    image, target = item((13, 17))
    boxes = tv_tensors.wrap(torch.zeros(60, 4), like=target["boxes"])
    given = {"boxes": boxes, "masks": tv_tensors.Mask(masks), "labels": torch.arange(60)}
    crowds = torch.arange(60) % 7 == 0
    _, found = ValidInstances(min_side)(image, {**given, "iscrowd": crowds.long(), "image_id": 3})
    around = torch.zeros(60, 4)
    seen = masks.bool().flatten(1).any(1)
    around[seen] = masks_to_boxes(masks[seen]) + torch.tensor([0, 0, 1, 1])
    given["boxes"] = tv_tensors.wrap(around, like=boxes)
    _, expected = v2.SanitizeBoundingBoxes(min_size=max(min_side, 1))(image, given)
    kept = ~crowds[expected["labels"]]
    assert 0 < int(kept.sum()) < 60 or min_side == 30
    assert list(found) == ["boxes", "masks", "labels"]
    for name, value in found.items():
        assert torch.equal(value, expected[name][kept])
        assert type(value) is type(given[name])


@pytest.mark.parametrize("options", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"size": (0, 5)}])
def test_options_that_make_no_sense(options):
    with pytest.raises(InputError):
        transformed(0, **options)
