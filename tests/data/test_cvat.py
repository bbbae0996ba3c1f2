"""CVAT's XML: what is read, in which order, and masks there and back."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faster_coco_eval")

from fsanet.data.annotations import read_annotations, scan_annotations
from fsanet.data.cvat import CvatImage, cvat_document
from fsanet.data.shapes import decode_masks
from fsanet.errors import InputError

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>road</name></label><label><name>car</name></label></labels></task></meta>
"""


@pytest.fixture
def read(tmp_path):
    def read(text, head=HEAD):
        (tmp_path / "annotations.xml").write_text(f"{head}{text}</annotations>")
        return scan_annotations(tmp_path / "annotations.xml")

    return read


def image(*shapes, name="a.jpg"):
    return f'<image id="0" name="{name}" width="30" height="20">{"".join(shapes)}</image>'


def masks(found):
    (entry,) = found.images
    rles = [annotation.rle for annotation in entry.annotations]
    return decode_masks(rles, entry.height, entry.width).numpy()


def test_shapes(read):
    found, faults, left_out = read(
        image(
            '<polygon label="car" points="2,4;12,4;12,10;2,10" occluded="0"/>',
            '<box label="road" xtl="0" ytl="0" xbr="30" ybr="5"/>',
            '<ellipse label="car" cx="15" cy="10" rx="10" ry="5"/>',
            '<mask label="car" rle="1, 2, 3" left="4" top="5" width="3" height="2"/>',
            '<polyline label="road" points="0,0;1,1"/>',
        )
    )
    assert found.categories == {1: "road", 2: "car"}
    assert [a.category for a in found.images[0].annotations] == [2, 1, 2, 2]
    assert not faults
    assert "1 x polyline, without area" in left_out[0]
    polygon, box, ellipse, mask = masks(found)
    assert polygon[4:10, 2:12].all()
    assert polygon.sum() == 60
    assert box[:5].all()
    assert box.sum() == 150
    assert abs(int(ellipse.sum()) - np.pi * 50) < 8
    assert np.argwhere(mask).tolist() == [[5, 5], [5, 6]]


def test_a_turned_box(read):
    box = '<box label="car" xtl="5" ytl="8" xbr="25" ybr="12" rotation="90"/>'
    (mask,) = masks(read(image(box))[0])
    assert mask[0:20, 13:17].all()
    assert mask.sum() == 80


def test_z_order_then_the_order_of_the_file(read):
    box = '<box label="{}" xtl="0" ytl="0" xbr="4" ybr="4" z_order="{}"/>'
    shapes = [box.format("road", 2), box.format("car", 1), box.format("car", 2)]
    found, _, _ = read(image(*shapes))
    assert [a.category for a in found.images[0].annotations] == [2, 1, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            image('<mask label="car" rle="1, 2" left="0" top="0" width="3" height="2"/>'),
            "3 pixels of 6",
        ),
        # The sum of these runs is 6 modulo 2**64, which led compiled code beyond its memory.
        (
            image(
                '<mask label="car" rle="9223372036854775807, 9223372036854775807, 8" left="0" '
                'top="0" width="3" height="2"/>'
            ),
            "rle counts 18446744073709551622 pixels of 6",
        ),
        (image('<mask label="car" rle="6" left="29" top="0" width="3" height="2"/>'), "out of the"),
        (image('<polygon label="car" points="1,2;x,3;4,5"/>'), "could not convert"),
        (image('<box label="car" xtl="nan" ytl="0" xbr="4" ybr="4"/>'), "xtl=nan"),
        ('<image name="a.jpg" width="x" height="2"/>', "no height or width"),
        ("<track/>", "export the task as 'CVAT for images 1.1'"),
        ("<image", "is not XML"),
    ],
)
def test_wrong_files(read, text, line):
    with pytest.raises(InputError) as error:
        read(text)
    assert line in str(error.value)
    assert "annotations.xml" in str(error.value)


def test_masks_are_counted_before_they_are_drawn(read, monkeypatch):
    """A line of XML may stand for a mask of 200 megapixels."""
    monkeypatch.setattr("fsanet.data.cvat.encode_box", lambda *_: pytest.fail("drawn"))
    mask = '<mask label="car" rle="200000000" left="0" top="0" width="20000" height="10000"/>'
    with pytest.raises(InputError, match=r"a\.jpg: 21 masks of 20000x10000 pixels take 4 GB"):
        read(f'<image name="a.jpg" width="20000" height="10000">{21 * mask}</image>')


def test_no_document_type(read):
    bomb = '<!DOCTYPE a [<!ENTITY b "b">]>'
    with pytest.raises(InputError, match="document type"):
        read(image(), head=f"{bomb}<annotations>")


def test_masks_there_and_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    given = [rng.random((17, 23)) > share for share in (0.5, 0.97, 0.03)]
    given[1][0, 0] = given[2][0, 0] = True
    names = ["car", "road", "car"]
    content = cvat_document(
        [CvatImage("x/a.jpg", 17, 23, list(zip(names, given, strict=True)))], ["road", "car"]
    )
    meta = ElementTree.fromstring(content).find("meta")  # datumaro, CVAT's reader, needs "task"
    assert [one.text for one in meta.iterfind("task/labels/label/name")] == ["road", "car"]
    (tmp_path / "a.xml").write_bytes(content)
    found = read_annotations(tmp_path / "a.xml")
    assert found.images[0].file == "x/a.jpg"
    assert [found.categories[a.category] for a in found.images[0].annotations] == names
    assert np.array_equal(masks(found).astype(bool), np.stack(given))


def test_masks_as_datumaro_reads_them(tmp_path):
    """With CVAT's own library, which is no dependency: `uv run --with datumaro pytest ...`."""
    datumaro = pytest.importorskip("datumaro")
    rng = np.random.default_rng(0)
    given = [("car", rng.random((17, 23)) > 0.5), ("road", rng.random((17, 23)) > 0.9)]
    (tmp_path / "images").mkdir()
    Image.new("RGB", (23, 17)).save(tmp_path / "images" / "a.png")
    content = cvat_document([CvatImage("a.png", 17, 23, given)], ["road", "car"])
    (tmp_path / "a.xml").write_bytes(content)
    data = datumaro.Dataset.import_from(str(tmp_path), "cvat")
    labels = data.categories()[datumaro.AnnotationType.label]
    (item,) = data
    for shape, (name, mask) in zip(item.annotations, given, strict=True):
        assert labels[shape.label].name == name
        assert np.array_equal(np.asarray(shape.image).astype(bool), mask)
