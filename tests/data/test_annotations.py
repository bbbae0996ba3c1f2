"""Annotation files: what is read from them, and the message for each fault."""

import json

import pytest
import torch

pytest.importorskip("faster_coco_eval")

from fsanet.data.annotations import read_annotations
from fsanet.data.shapes import decode_masks, encode_masks
from fsanet.errors import InputError


@pytest.fixture
def write(tmp_path):
    def write(value):
        file = tmp_path / "instances.json"
        file.write_text(json.dumps(value))
        return file

    return write


def test_rle_there_and_back():
    masks = torch.rand(5, 17, 23, generator=torch.Generator().manual_seed(0)) > 0.6
    encoded = encode_masks(masks)
    json.dumps(encoded)
    assert encoded[0]["size"] == [17, 23]
    assert torch.equal(decode_masks(encoded, 17, 23).bool(), masks)
    assert decode_masks([], 4, 5).shape == (0, 4, 5)


def change(path, value):
    *parents, last = path

    def apply(whole):
        part = whole
        for key in parents:
            part = part[key]
        part[last] = value

    return apply


A0 = ("annotations", 0)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (change((*A0, "category_id"), 4), r"annotation 11: category_id 4 is not .*\(2, 5\)"),
        (change((*A0, "image_id"), 4), r"annotation 11: image_id 4 is not among the images"),
        (change((*A0, "bbox"), [2, 4, 0, 6]), r"annotation 11 \(image a.png\): bbox .* no area"),
        (change((*A0, "bbox"), [25, 4, 10, 6]), r"a.png.*reaches out of the 30x20 image"),
        (change((*A0, "bbox"), [2, 4, float("nan"), 6]), r"bbox .*nan.* is no box"),
        (change((*A0, "bbox"), [2, 4, 10]), r"annotation 11"),
        (change((*A0, "segmentation"), [[2, 4, 12, 4]]), r"three points or more"),
        (change((*A0, "segmentation"), [[2, 4, 2, 4, 2, 4]]), r"covers no pixel"),
        (change((*A0, "segmentation"), []), r"neither a list of polygons nor RLE"),
        (
            change(("annotations", 1, "segmentation", "size"), [30, 20]),
            r"annotation 12.*RLE of size \[30, 20\]",
        ),
        (
            change(("annotations", 1, "segmentation", "counts"), [0, 599]),
            r"annotation 12.*599 pixels of 600",
        ),
        (change(("categories", 0, "id"), 2), r"category id 2 is given twice"),
        (change(("categories", 0, "id"), -1), r"ids start at 1"),
        (change(("images", 0, "id"), 3), r"image id 3 is given twice"),
        (change(("images", 0, "height"), 0), r"image 7 is 30x0 pixels"),
        (lambda whole: whole["images"][0].pop("width"), r"image 7 has no height or width"),
        (change(("categories", 0, "name"), "a\ud800"), r"has no name \(Unicode text\)"),
        (lambda whole: whole.pop("categories"), r"no list 'categories'"),
    ],
)
def test_wrong_file_is_named_with_the_place(write, coco_content, edit, line):
    edit(coco_content)
    with pytest.raises(InputError, match=line) as raised:
        read_annotations(write(coco_content))
    assert "instances.json" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("counts", [[600], "hb0"])
def test_a_size_in_floats_is_that_size(write, coco_content, counts):
    coco_content["annotations"][1]["segmentation"] = {"size": [20.0, 30.0], "counts": counts}
    coco_content["annotations"][1] |= {"iscrowd": 0, "bbox": [0, 0, 30, 20]}
    text = json.dumps(coco_content)
    with pytest.raises(InputError, match="covers no pixel"):  # all 600 are outside
        read_annotations(write(json.loads(text)))


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"none.json: no such annotation file"):
        read_annotations(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad.json: annotation file is not JSON"):
        read_annotations(tmp_path / "bad.json")


def many(whole, count):
    """A file of ``count`` valid annotations and two boxes of height 0 as in COCO's train2017."""
    sound = whole["annotations"][0]
    whole["annotations"] = [{**sound, "id": number} for number in range(count)]
    flat = {"image_id": 7, "bbox": [2, 4, 1.03, 0.0], "segmentation": [[2, 4, 2, 4, 3, 4, 3, 4]]}
    whole["annotations"] += [{**sound, **flat, "id": count + i} for i in range(2)]
    return whole


def test_few_annotations_without_area_are_left_out_with_a_warning(write, coco_content):
    with pytest.warns(UserWarning, match=r"2 of 2000 annotations left out.*1998 \(image b.png\)"):
        file = read_annotations(write(many(coco_content, 1998)))
    assert [len(image.annotations) for image in file.images] == [1998, 0, 0]
    with pytest.raises(InputError, match=r"annotation 1997 .*has no area"):
        read_annotations(write(many(coco_content, 1997)))  # more than one in a thousand
