"""Label Studio's JSON: what is read, and brushes there and back."""

import json

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval")

from fsanet.data.annotations import scan_annotations
from fsanet.data.label_studio import decode_brush, encode_brush
from fsanet.data.shapes import decode_masks
from fsanet.errors import InputError

SIZE = {"original_width": 30, "original_height": 20, "image_rotation": 0}


@pytest.fixture
def read(tmp_path):
    def read(content):
        (tmp_path / "export.json").write_text(json.dumps(content))
        return scan_annotations(tmp_path / "export.json")

    return read


def task(*results, image="/data/upload/1/0a1b2c3d-a.jpg", **annotation):
    return {"data": {"image": image}, "annotations": [{"result": list(results), **annotation}]}


def shape(kind, label, **value):
    return {"type": kind, "value": {**value, kind: [label]}, **SIZE}


def test_shapes(read):
    inside = np.zeros((20, 30), bool)
    inside[3:5, 6:9] = True
    polygon = [[0, 0], [50, 0], [50, 50], [0, 50]]
    content = [
        task(
            shape("polygonlabels", "road", points=polygon),
            shape("rectanglelabels", "car", x=50, y=50, width=20, height=10, rotation=0),
            shape("ellipselabels", "car", x=50, y=50, radiusX=20, radiusY=20),
            shape("brushlabels", "car", format="rle", rle=encode_brush(inside)),
            {"type": "choices", "value": {"choices": ["good"]}},
        ),
        {"data": {"image": "b.jpg"}, "annotations": []},
        task(shape("polygonlabels", "road", points=polygon), was_cancelled=True),
    ]
    found, faults, left_out = read(content)
    assert found.categories == {1: "car", 2: "road"}
    assert [image.file for image in found.images] == ["0a1b2c3d-a.jpg"]
    assert not faults
    assert any("1 results of type choices" in line for line in left_out)
    assert any("2 tasks without an annotation" in line for line in left_out)
    polygon, box, ellipse, brush = decode_masks(
        [a.rle for a in found.images[0].annotations], 20, 30
    )
    assert polygon[:10, :15].all()
    assert polygon.sum() == 150
    assert box[10:12, 15:21].all()
    assert box.sum() == 12
    assert abs(int(ellipse.sum()) - np.pi * 6 * 4) < 6
    assert np.array_equal(brush.bool().numpy(), inside)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([{"image": "a.jpg", "label": []}], "task 1 has no list 'annotations'; export"),
        ([task(shape("polygonlabels", "car", points=[1, 2]))], "not as Label Studio writes it"),
        ([task({"type": "polygonlabels", "value": {}})], "KeyError: 'original_height'"),
        ([task(shape("brushlabels", "car", format="png", rle=[]))], "brush of format 'png'"),
        ([task(shape("brushlabels", "car", format="rle", rle=[0] * 9))], "brush of 0 values"),
        ([task(shape("polygonlabels", "car", points=[[1, 2]]), image="a.txt")], "name no image"),
    ],
)
def test_wrong_files(read, content, line):
    with pytest.raises(InputError) as error:
        read(content)
    assert line in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_brushes_there_and_back_to_the_bit(share):
    mask = np.random.default_rng(0).random((37, 91)) < share
    code = encode_brush(mask)
    assert set(map(type, code)) == {int}
    assert np.array_equal(decode_brush(code, 37, 91), mask)


def test_a_brush_by_hand():
    # 8 values (one pixel row of two), a run of four 0 and four separate values 255.
    bits = f"{8:032b}{7:05b}" + f"{1:04b}{1:04b}{1:04b}{1:04b}"
    bits += "1" + "00" + "11" + f"{0:08b}" + "0" + "01" + "11" + f"{255:08b}" * 4
    bits += "0" * (-len(bits) % 8)
    code = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert decode_brush(code, 1, 2).tolist() == [[False, True]]


def test_a_damaged_brush():
    code = encode_brush(np.eye(9, dtype=bool))
    with pytest.raises(ValueError, match=r"ends after|invalid literal"):
        decode_brush(code[: len(code) // 2], 9, 9)


def test_brushes_as_label_studio_reads_them():
    """With its own library: `uv run --with label-studio-converter pytest ...`."""
    brush = pytest.importorskip("label_studio_converter.brush")
    mask = np.random.default_rng(0).random((17, 23)) > 0.8
    found = np.asarray(brush.decode_rle(encode_brush(mask))).reshape(17, 23, 4)[..., 3]
    assert np.array_equal(found > 0, mask)
