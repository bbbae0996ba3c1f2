"""Every source and mode against values worked out by hand or by NumPy."""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from fsanet.data import images
from fsanet.data.images import limit_pixels, list_images, locate_images, read_file, read_image
from fsanet.data.masks import read_mask
from fsanet.errors import InputError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    yield limit_pixels
    limit_pixels(200_000_000)


def chw(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, -1, 0)


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))


def check(source: object, expected: np.ndarray) -> torch.Tensor:
    image = read_image(source)  # type: ignore[arg-type]
    assert type(image) is torch.Tensor
    assert image.dtype is torch.uint8
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.numpy(), expected)
    return image


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_files(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(rgb).save(path, **({"lossless": True} if suffix == "webp" else {}))
    check(path, chw(rgb))
    check(str(path), chw(rgb))


def test_format_is_taken_from_the_content_not_the_name(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "really_png.jpg"
    Image.fromarray(rgb).save(path, format="PNG")
    check(path, chw(rgb))


def photo(size: tuple[int, int] = (37, 51)) -> np.ndarray:
    """Smooth colours with edges: what a JPEG is of."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.stack([np.sin(x / 7 + i) * np.cos(y / (5 + i)) for i in range(3)], -1)
    return np.uint8(127 + 100 * waves + 25 * (x > 20)[..., None])


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 90, "subsampling": 0}),
        ("RGB", {"quality": 75, "subsampling": 1}),
        ("RGB", {"quality": 30, "subsampling": 2}),
        ("RGB", {"progressive": True}),
        ("RGB", {"keep_rgb": True}),
        ("RGB", {"restart_marker_rows": 1}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_jpeg_is_what_pillow_decodes(tmp_path: Path, mode: str, options: dict) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(photo()).convert(mode).save(path, **options)
    with Image.open(path) as image:
        expected = chw(np.asarray(image.convert("RGB")))
    check(path, expected)
    np.testing.assert_array_equal(read_file(path).numpy(), expected)


def test_colour_jpegs_go_through_torchvision_without_its_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(photo()).save(path)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(photo()).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(photo()).convert("L").save(tmp_path / "grey.jpg")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    original, calls = torchvision.io.decode_jpeg, []

    def decode(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = read_file(path)
        assert len(calls) == 1
        for name in ("turned.jpg", "grey.jpg", "photo.png"):
            read_file(tmp_path / name)
    assert len(calls) == 1
    # a torchvision without the decoder
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    assert torch.equal(read_file(path), expected)


# How to put an upright image into a file so that tag n turns it upright again.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [8, 16])
def test_exif_orientation(tmp_path: Path, rgb: np.ndarray, orientation: int, depth: int) -> None:
    upright = rgb if depth == 8 else rgb[..., 0].astype(np.uint16) * 257
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    expected = chw(rgb) if depth == 8 else np.stack([rgb[..., 0]] * 3)
    check(tmp_path / "turned.png", expected)
    with Image.open(tmp_path / "turned.png") as image:
        check(image, expected)


def test_grey_and_one_bit_files(tmp_path: Path, rgb: np.ndarray) -> None:
    grey = rgb[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    check(tmp_path / "grey.png", np.stack([grey] * 3))
    bits = grey > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    check(tmp_path / "bits.png", np.stack([bits * 255] * 3))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535], [300, 1000, 5, 65406, 65407, 40000]])
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"deep.{suffix}")
    expected = np.rint(values / 257)  # no value is half-way: 257 is odd
    assert len(np.unique(expected)) > 5
    check(tmp_path / f"deep.{suffix}", np.stack([expected] * 3))


def test_16_bit_big_endian_tiff(tmp_path: Path) -> None:
    values = np.array([[1000, 30000, 65535]], dtype=np.uint16)
    pixels = values.astype(">u2").tobytes()
    tags = [(256, 3), (257, 1), (258, 16), (259, 1), (262, 1), (273, 0), (278, 1), (279, 6)]
    body = b"".join(
        struct.pack(">HHI", tag, 4, 1)
        + struct.pack(">I", 8 + 2 + 12 * len(tags) + 4 if tag == 273 else value)
        for tag, value in tags
    )
    data = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + body + b"\0\0\0\0" + pixels
    (tmp_path / "big.tif").write_bytes(data)
    check(tmp_path / "big.tif", np.stack([np.rint(values / 257)] * 3))


def test_16_bit_rgb_png_keeps_all_channels(tmp_path: Path) -> None:
    values = np.array([[(65535, 0, 32768), (257, 40000, 20000)]], dtype=">u2")
    row = b"\0" + values.tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    image = read_image(tmp_path / "deep.png").numpy().astype(int)
    # Pillow itself keeps the high byte here, which differs from rounding by at most one.
    assert np.abs(image - chw(values.astype(int) / 257)).max() <= 1


def test_integer_and_float_modes(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    check(Image.fromarray(values), np.stack([[[0, 1, 255]]] * 3))
    with pytest.raises(InputError, match=r"32-bit integer pixels from 0 to 70000"):
        read_image(Image.fromarray(values // 65535 * 70000))
    check(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), np.stack([[[0, 128, 255]]] * 3))
    Image.fromarray(np.array([[0, 255]], np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float\.tif: floating-point pixels from 0 to 255"):
        read_image(tmp_path / "float.tif")


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    colours = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 7]], dtype=np.uint8)
    image = Image.fromarray(ids, mode=None)
    image = image.convert("P")
    image.putdata(ids.flatten().tolist())
    image.putpalette(colours.flatten().tolist())
    image.save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as stored:
        assert stored.mode == "P"
    check(tmp_path / "p.png", chw(colours[ids]))
    image.save(tmp_path / "pt.png", transparency=bytes([255, 0, 102]))
    alphas = np.array([[255], [0], [102]], dtype=np.uint8)
    expected = over_white(np.concatenate([colours, alphas], 1)[ids])
    check(tmp_path / "pt.png", chw(expected))
    assert (expected[0, 1] == 255).all()


def test_colour_key_transparency(tmp_path: Path, rgb: np.ndarray) -> None:
    key = tuple(int(v) for v in rgb[2, 3])
    Image.fromarray(rgb).save(tmp_path / "key.png", transparency=key)
    expected = rgb.copy()
    expected[2, 3] = 255
    check(tmp_path / "key.png", chw(expected))


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    expected = chw(over_white(rgba))
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    check(tmp_path / "rgba.png", expected)
    check(Image.fromarray(rgba), expected)
    check(rgba, expected)
    check(torch.from_numpy(rgba).permute(2, 0, 1), expected)
    la = np.ascontiguousarray(rgba[..., 2:])
    grey = np.concatenate([la[..., :1]] * 3 + [la[..., 1:]], axis=-1)
    Image.fromarray(la).save(tmp_path / "la.png")
    check(tmp_path / "la.png", chw(over_white(grey)))


def test_other_colour_spaces(rgb: np.ndarray) -> None:
    hsv = Image.fromarray(rgb).convert("HSV")
    check(hsv, chw(np.asarray(hsv.convert("RGB"))))
    cmyk = np.zeros((1, 2, 4), dtype=np.uint8)
    cmyk[0, 0] = (255, 0, 0, 0)  # cyan
    cmyk[0, 1] = (0, 0, 0, 255)  # black
    check(Image.frombytes("CMYK", (2, 1), cmyk.tobytes()), [[[0, 0]], [[255, 0]], [[255, 0]]])


def test_arrays(rgb: np.ndarray) -> None:
    check(rgb, chw(rgb))
    check(rgb[::-1, ::-1], chw(rgb[::-1, ::-1]))
    check(np.asfortranarray(rgb), chw(rgb))
    grey = rgb[..., 0]
    for source in (grey, grey[..., None]):
        check(source, np.stack([grey] * 3))
    check(rgb.astype(np.uint16) * 257, chw(rgb))
    check(grey > 99, np.stack([(grey > 99) * 255] * 3))
    for dtype in (np.float16, np.float32, np.float64):
        check((rgb / 255).astype(dtype), chw(rgb))


def test_tensors(rgb: np.ndarray) -> None:
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    check(tensor, chw(rgb))
    check(tensor[:1], np.stack([rgb[..., 0]] * 3))
    check(tensor[0], np.stack([rgb[..., 0]] * 3))
    check((tensor / 255).requires_grad_(), chw(rgb))
    check((tensor // 255).bfloat16(), chw(rgb) // 255 * 255)
    check(tensor.to(torch.uint16) * 257, chw(rgb))


def test_result_shares_no_memory(rgb: np.ndarray) -> None:
    tensor = torch.from_numpy(chw(rgb).copy())
    column = np.zeros((4, 1, 3), dtype=np.uint8)
    for source in (tensor, rgb, column):
        before = np.asarray(source).copy()
        read_image(source).fill_(77)
        np.testing.assert_array_equal(np.asarray(source), before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((2, 2), 1.5), "from 1.5 to 1.5, expected 0..1"),
        (np.full((2, 2), -0.1), "expected 0..1"),
        (np.array([[0.5, np.nan]]), "expected 0..1"),
        (np.zeros((2, 2), np.int64), "pixels of type int64"),
        (np.zeros((3, 5, 6), np.uint8), "channels-first data as a tensor"),
        (np.zeros((2, 2, 2), np.uint8), r"shape \(2, 2, 2\)"),
        (np.zeros(4, np.uint8), "an image is"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.zeros(5, 6, 3), r"tensor of shape \(5, 6, 3\)"),
        (torch.zeros(1, 3, 5, 6), "several images as a list"),
        (torch.zeros(3, 0, 5), "no pixels"),
    ],
)
def test_refused_values(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_image(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_other_types_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="cannot read an image from list"):
        read_image([[1, 2]])  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "gif", "webp"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_truncated_files_name_the_file(tmp_path: Path, suffix: str, keep: float) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=rf"cut\.{suffix}: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    data = path.read_bytes()
    refused = 0
    for position in range(0, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            read_image(path)
        except InputError:
            refused += 1
    assert refused > 5


def test_damage_that_libjpeg_reports_is_not_printed(
    tmp_path: Path, rgb: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:-2] + bytes(7) + content[-2:])
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.jpg").permute(1, 2, 0), Image.open(tmp_path / "a.jpg")
    )
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for name, message in [
        ("empty.png", "file is empty"),
        ("text.png", "not an image"),
        ("none.png", "no such image file"),
        (".", "is a folder"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_limit_of_pixels_is_checked_before_decoding(
    tmp_path: Path, suffix: str, limited: Callable[[int], None]
) -> None:
    path = tmp_path / f"bomb.{suffix}"
    Image.new("RGB", (20, 30)).save(path)
    limited(600)
    assert read_image(path).shape == (3, 30, 20)
    limited(599)
    if suffix != "webp":  # whose decoder wants the whole file first
        path.write_bytes(path.read_bytes()[:-20])  # decoding would find it truncated
    with pytest.raises(
        InputError, match=rf"bomb\.{suffix}: 20x30 pixels, more than .* 599;.*--max"
    ):
        read_image(path)
    with pytest.raises(InputError, match="PIL image: 20x30 pixels"):
        read_image(Image.new("RGB", (20, 30)))


def test_limit_replaces_pillows_own_and_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (20, 30)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    assert read_mask(tmp_path / "large.png").shape == (30, 20)
    assert Image.MAX_IMAGE_PIXELS == 299


@pytest.mark.parametrize("count", [0, -1, 1.5, math.nan, True])
def test_limits_that_make_no_sense(count: Any) -> None:
    with pytest.raises(InputError, match="max_pixels="):
        limit_pixels(count)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/a.png", ".git/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_list_images(tree: Path) -> None:
    assert list_images(tree) == [tree / "a.JPG", tree / "b.png", tree / "sub/a.png"]
    assert list_images([tree], recursive=False) == [tree / "a.JPG", tree / "b.png"]
    # Named by hand: taken whatever the suffix, and once only.
    assert list_images([tree / "notes.txt", str(tree / "b.png"), tree], recursive=False) == [
        tree / "a.JPG",
        tree / "b.png",
        tree / "notes.txt",
    ]


def test_patterns_that_no_shell_has_replaced(tree: Path) -> None:
    assert list_images(tree / "*.png") == [tree / "b.png"]
    assert list_images(tree / "**/*.png") == [tree / "b.png", tree / "sub/a.png"]
    (tree / "[b].png").touch()  # the file of this name, not b.png
    assert list_images(tree / "[b].png") == [tree / "[b].png"]
    with pytest.raises(InputError, match=r"\*\.bmp: no such file or folder"):
        list_images(tree / "*.bmp")


def test_locate_images_keeps_the_place_below_the_folder(tree: Path) -> None:
    located = dict(locate_images([tree, tree / "notes.txt"]))
    assert located[tree / "sub/a.png"] == Path("sub/a.png")
    assert located[tree / "notes.txt"] == Path("notes.txt")


def test_list_images_refuses_what_is_not_there(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no image in this folder"):
        list_images([tree, tree / "empty"])
    with pytest.raises(InputError, match=r"gone\.png: no such file or folder"):
        list_images(tree / "gone.png")
    with pytest.raises(InputError, match="no image given"):
        list_images([])
    (tree / "only_sub/x").mkdir(parents=True)
    (tree / "only_sub/x/i.png").touch()
    with pytest.raises(InputError, match="sub-folders are not searched"):
        list_images(tree / "only_sub", recursive=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_forbidden_file_and_folder(tree: Path) -> None:
    (tree / "b.png").chmod(0)
    with pytest.raises(InputError, match="may not be read"):
        read_image(tree / "b.png")
    (tree / "sub").chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be read"):
            list_images(tree)
    finally:
        (tree / "sub").chmod(0o755)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_large_images_are_converted_in_bands(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (23, 17, 4), dtype=np.uint8)
    image = Image.fromarray(values, "RGBA")
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    whole = read_image(image)
    monkeypatch.setattr(images, "_BAND_PIXELS", 40)  # two rows
    assert torch.equal(read_image(image), whole)
