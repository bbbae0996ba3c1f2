"""Generated files: each is read rightly, or answered by one line that names it."""

import copy
import io
import json
import os
import socket
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fsanet.data.annotations import read_annotations
from fsanet.data.check import check_data
from fsanet.data.datasets.labelled_folder import SegmentationFolder
from fsanet.data.images import list_images, read_image
from fsanet.data.masks import read_mask
from fsanet.data.shapes import decode_masks
from fsanet.errors import InputError

pytest.importorskip("faster_coco_eval")

generated = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def refused(action: Any, *arguments: Any) -> tuple[Any, str]:
    """What an action returns, or the one line that it raises; no warning in either case."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return action(*arguments), ""
        except InputError as error:
            line = str(error)
    assert line
    assert line.isprintable()
    return None, line


# ---- bytes


@cache
def encoded() -> list[bytes]:
    """Small pictures in all formats and many modes."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    files = [
        (rgb, "PNG", {}),
        (rgb, "PNG", {"exif": exif}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(rng.integers(0, 2**16, (9, 13), dtype=np.uint16)), "PNG", {}),
        (rgb.convert("LA"), "PNG", {}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb.convert("P"), "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        (rgb.convert("L"), "TIFF", {"compression": "packbits"}),
        (rgb, "WEBP", {"lossless": True}),
        (rgb, "PPM", {}),
        (rgb.convert("1"), "PPM", {}),
        (rgb, "TGA", {}),
        (rgb, "JPEG2000", {}),
    ]
    contents = []
    for image, name, options in files:
        stream = io.BytesIO()
        image.save(stream, name, **options)
        contents.append(stream.getvalue())
    return contents


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(encoded())))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if change == "cut":
            del data[place:]
        elif change == "insert":
            data[place:place] = draw(st.binary(max_size=12))
        elif change == "repeat":
            data[place:place] = data[max(0, place - 40) : place]
        else:
            # Sizes and counts live in the first bytes.
            place = min(place, draw(st.sampled_from([40, 10**9])))
            data[place : place + 4] = draw(
                st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
            )
    return bytes(data)


@generated
@given(data=damaged())
def test_damaged_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str], data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    image, line = refused(read_image, path)
    if line:
        assert line.startswith(str(path))
    else:
        assert image.dtype is torch.uint8
        assert image.ndim == 3
        assert image.shape[0] == 3
        assert image.numel() > 0
    mask, line = refused(read_mask, path)
    if line:
        assert line.startswith(str(path))
    else:
        assert mask.dtype is torch.uint8
        assert mask.ndim == 2
    assert capfd.readouterr() == ("", "")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_bomb(tmp_path: Path, read: Any) -> None:
    """30000 x 30000 pixels in a few bytes are refused by their header."""
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 30001)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)
    path.write_bytes(content + chunk(b"IEND", b""))
    assert "30000x30000 pixels, more than the limit" in refused(read, path)[1]


@pytest.mark.parametrize("suffix", ["eps", "ico", "pcx", "psd", "fits", "sgi", "dds"])
def test_other_formats_are_not_opened(tmp_path: Path, suffix: str) -> None:
    starts = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "ico": b"\0\0\1\0\1\0\x09\x09\0\0\1\0\x18\0\x10\0\0\0\x16\0\0\0",
        "pcx": b"\x0a\x05\x01\x08" + b"\0" * 124,
        "psd": b"8BPS\0\1" + b"\0" * 40,
        "fits": b"SIMPLE  =                    T",
        "sgi": b"\x01\xda\0\1" + b"\0" * 600,
        "dds": b"DDS \x7c\0\0\0" + b"\0" * 200,
    }
    path = tmp_path / "a.png"
    path.write_bytes(starts[suffix])
    assert "not an image in a known format" in refused(read_image, path)[1]


# ---- annotations

junk = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 1e30, -1e308, float("nan"), float("inf"), 2**31, 10**400, 0.5]),
        st.sampled_from(["", "0", "PP0", "a\n\x1b[31m", "\ud800", "o" * 40, "`" * 8]),
        st.integers(-5, 700),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=7),
        st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside a value."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return []
    deeper = [places(part, (*path, key)) for key, part in value.items()]
    return [*((*path, key) for key in value), *(found for part in deeper for found in part)]


@settings(generated, max_examples=250)
@given(data=st.data())
def test_annotations_with_a_wrong_value(
    tmp_path: Path, coco_content: dict[str, Any], data: st.DataObject
) -> None:
    content = copy.deepcopy(coco_content)
    *parents, last = data.draw(st.sampled_from(places(content)))
    part: Any = content
    for key in parents:
        part = part[key]
    part[last] = data.draw(junk)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    file, line = refused(read_annotations, path)
    if line:
        assert line.startswith(str(path))
        return
    for image in file.images:
        masks = decode_masks([a.rle for a in image.annotations], image.height, image.width)
        assert masks.shape == (len(image.annotations), image.height, image.width)
        assert all(a.area >= 0 and a.category in file.categories for a in image.annotations)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"", "not JSON"),
        (b"[]", "no list 'images'"),
        (b"null", "no list 'images'"),
        (b'{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
        (b'{"images": [], "annotations": [], "categories": []}', "0 categories"),
        (b'{"images": [], "annotations": [], "categories": [7]}', "category number 0 has no id"),
        (b"1" * 5000, "not JSON"),
    ],
)
def test_annotation_files_of_another_kind(tmp_path: Path, text: bytes, line: str) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(text)
    found = refused(read_annotations, path)[1]
    assert found.startswith(str(path))
    assert line in found


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "reaches far out"),
        ([[0, 0, 29, 0, 29, 19] * 200_000], "outlines of the polygons are too long"),
        ({"size": [20, 30], "counts": "PPYo1" * 9}, "RLE"),
        ({"size": [20, 30], "counts": "1hb0"}, "RLE counts"),
        ({"size": [20, 30], "counts": [-1, 601]}, "RLE counts are not"),
        ({"size": [20, 30], "counts": ["600"]}, "RLE counts are not"),
        ({"size": ["20", 30], "counts": [600]}, "RLE of size"),
        ({"counts": [600]}, "RLE of size None"),
        ([[["x", "y"] * 3]], "three points"),
        ("M 0 0 L 3 3", "neither"),
    ],
)
def test_shapes_that_make_no_sense(
    tmp_path: Path, coco_content: dict[str, Any], shape: Any, line: str
) -> None:
    coco_content["annotations"][0]["segmentation"] = shape
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco_content))
    found = refused(read_annotations, path)[1]
    assert found.startswith(f"{path}: annotation 11 (image a.png): ")
    assert line in found


@generated
@given(seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40))
def test_compressed_masks_are_read_as_they_were_written(
    tmp_path: Path, seed: int, height: int, width: int
) -> None:
    from pycocotools import mask as reference

    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.random()
    mask[0, 0] = True
    rle = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, width, height]}
    annotation["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    content = {
        "images": [image],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    (found,) = read_annotations(path).images[0].annotations
    assert np.array_equal(decode_masks([found.rle], height, width)[0].numpy(), mask)


def test_sizes_that_do_not_fit_into_memory(
    tmp_path: Path, coco_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco_content))
    monkeypatch.setattr("fsanet.data.shapes.MASK_BYTES", 1199)
    assert "image 3: 2 masks of 30x20 pixels take" in refused(read_annotations, path)[1]
    coco_content["images"][0].update(height=10**9)
    path.write_text(json.dumps(coco_content))
    assert "image 7: 30x1000000000 pixels, more than" in refused(read_annotations, path)[1]


# ---- folders


def odd_files(folder: Path) -> list[str]:
    """Put everything that is no image into a folder of images, under their names."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "empty.png").touch()
    (folder / "new\nline\x1b[31m.png").write_bytes(b"text")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        server.bind("socket.png")
        os.chdir(before)
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as stream:
        stream.write(b"text")
    return sorted(os.listdir(folder))


def test_what_is_no_image_is_named_and_never_opened(tmp_path: Path) -> None:
    names = odd_files(tmp_path / "images")
    for name in names:
        path = tmp_path / "images" / name
        assert refused(read_image, path)[1].startswith(str(tmp_path))
        assert refused(read_mask, path)[1].startswith(str(tmp_path))
    for name in ("x" * 300, "x/" * 3000, "a\0b", "\ud800"):
        assert refused(read_image, tmp_path / name)[1]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("size", [10**8, 10**9, 10**12])
def test_huge_files_that_hold_next_to_nothing(tmp_path: Path, kind: str, size: int) -> None:
    """Files with holes take no room, but reading them takes time and memory."""
    path = tmp_path / f"x.{kind.lower()}"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, kind)
    os.truncate(path, size)
    for read in (read_image, read_mask):
        with pytest.raises(
            InputError, match=r"MB; an? \w+ file of at|MB for 30x20|not an image|MB, and WebP"
        ):
            read(path)


def test_folder_with_loops_is_listed_once(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    for name in ("again", "sub/up", "sub/self"):
        (tmp_path / name).symlink_to(tmp_path if name != "sub/self" else tmp_path / "sub")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["a.png", "dangling.png", "loop.png"]


def test_check_goes_on_after_every_odd_file(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        odd_files(tmp_path / part)
        Image.new("L", (4, 4)).save(tmp_path / part / "good.png")
    (tmp_path / "masks/self").symlink_to(tmp_path / "masks")
    report = check_data(tmp_path, "folder", num_classes=2, workers=2)
    text = json.dumps(report.as_json(), ensure_ascii=False)
    text.encode()
    assert report.read == 10
    unreadable = {p.path for p in report.problems if p.kind == "unreadable"}
    assert len(unreadable) == 18  # all but the good pair
    assert all(p.message.isprintable() and p.path.isprintable() for p in report.problems)
    assert any("is a pipe" in p.message for p in report.problems)


@generated
@given(content=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_lists_of_names(tmp_path: Path, content: bytes) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "a.png").touch()
    (tmp_path / "train.txt").write_bytes(content)
    data, line = refused(lambda: SegmentationFolder(tmp_path, split="train", num_classes=2))
    if line:
        assert line.startswith(str(tmp_path / "train.txt"))
    else:
        assert data.names == ["a"]
