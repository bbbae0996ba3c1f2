"""Images and masks."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from campaign.case import Case, anything
from campaign.inputs.common import (
    ODD_NAMES,
    PREDICT,
    printable_part,
    spoil,
)
from campaign.judge import check_prediction, check_run, check_scores
from campaign.material import ON_DATA, give
from campaign.mutate import words

FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"RIFF")


def images(rng: Random, root: Path, folder: Path) -> Case:
    """`fsanet predict` of one image, or of a folder that holds it among good ones."""
    give(root, folder, "net")
    alone = rng.random() < 0.5
    place = folder / "pictures"
    place.mkdir()
    name = f"x.{rng.choice([*FORMATS, 'PNG'])}"
    if rng.random() < 0.15:
        name = rng.choice(ODD_NAMES)
    path = place / name
    pixels = np.frombuffer(rng.randbytes(40 * 56 * 3), np.uint8).reshape(40, 56, 3)
    Image.fromarray(pixels).save(path, FORMATS.get(path.suffix[1:], "PNG"))
    what = spoil(rng, path, _odd_image, special=0.12, share=0.18, others=MAGIC)
    if not alone:
        give(root, folder, "images")
        os.rename(folder / "images" / "a.png", place / "good.png")
    given = f"pictures/{name}" if alone else "pictures"
    options = rng.choice(("", "", "--window 32", "--scales 0.5 1", "--confidence", "--flip"))
    return Case(
        folder,
        ["predict", given, "--model", "net", *PREDICT, *options.split()],
        f"{name!r}: {what}, {'alone' if alone else 'in a folder'}",
        names=("pictures/", printable_part(name)) if alone else ("pictures", "out/"),
        check=check_prediction,
        outputs=("out", "images"),
    )


def _odd_image(rng: Random, path: Path) -> str:
    """Write an image of an unusual kind; which."""
    stream = io.BytesIO()
    kind = rng.choice(
        words("bomb wide text thin deep cmyk rgba bits frames float la exif pixel icc")
    )
    match kind:
        case "bomb":
            side = rng.choice((30_000, 60_000, 2**31 - 1))
            stream.write(png_header(side, side))
        case "wide":
            stream.write(png_header(2**31 - 1, 1))
        case "text":
            stream.write(png_header(4, 4, text=rng.choice((2**20, 2**26))))
        case "thin":
            Image.new("RGB", (rng.choice((1, 3000)), 1), "red").save(stream, "PNG")
        case "deep":
            Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(stream, "PNG")
        case "frames":
            frames = [Image.new("RGB", (20, 30), (i * 20, 0, 0)) for i in range(9)]
            kinds = ("GIF", "TIFF")
            frames[0].save(stream, rng.choice(kinds), save_all=True, append_images=frames[1:])
        case "float":
            Image.fromarray(np.full((20, 30), np.nan, np.float32)).save(stream, "TIFF")
        case "exif":
            exif = Image.Exif()
            exif[0x0112] = rng.choice((0, 6, 8, 99))  # orientation
            Image.new("RGB", (20, 30), "red").save(stream, "JPEG", exif=exif)
        case "icc":
            profile = rng.randbytes(200)
            Image.new("RGB", (20, 30)).save(stream, "PNG", icc_profile=profile)
        case _:
            modes = {"cmyk": "CMYK", "rgba": "RGBA", "bits": "1", "la": "LA"}
            size = (1, 1) if kind == "pixel" else (20, 30)
            image = Image.new(modes.get(kind, "RGB"), size)
            image.save(stream, "TIFF" if kind == "cmyk" else "PNG")
    path.write_bytes(stream.getvalue())
    return kind


def png_header(width: int, height: int, *, text: int = 0) -> bytes:
    """A PNG file whose header states a size, with hardly any pixels, and zeros as text."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    more = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * text)) if text else b""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 2**16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + pixels + chunk(b"IEND", b"")


def masks(rng: Random, root: Path, folder: Path) -> Case:
    """`data check`, an evaluation or a training on a data set with one damaged mask."""
    give(root, folder, "blocks")
    split = rng.choice(("train", "val"))
    path = folder / "blocks" / split / "masks" / "0.png"
    what = spoil(rng, path, _odd_mask)
    how = rng.choice(("check", "check", "eval", "train"))
    if how == "check":
        command = words("data check blocks --num-classes 3 --workers 0 --json r.json")
        check = anything
    elif how == "eval":
        give(root, folder, "net")
        command, check = ["eval", "net", *ON_DATA, "--json", "scores.json"], check_scores
    else:
        give(root, folder, "recipe.yaml")
        command, check = words("train --config recipe.yaml --out out"), check_run
    return Case(
        folder,
        command,
        f"mask of {split}: {what}, {how}",
        names=("blocks",),
        check=check,
        outputs=("out", "scores.json", "r.json"),
    )


def _odd_mask(rng: Random, path: Path) -> str:
    """Write a mask that is an image, but not one of the data set; which."""
    with Image.open(path) as file:
        ids = np.asarray(file).copy()
    image = Image.fromarray(ids)
    kind = rng.choice(words("size ids rgb deep ignored palette bomb bits scaled float jpeg"))
    match kind:
        case "size":
            image = image.resize(rng.choice(((1, 1), (64, 63), (128, 128))))
        case "ids":
            ids[10:20] = rng.choice((3, 7, 254))
            image = Image.fromarray(ids)
        case "rgb":
            image = image.convert("RGB")
        case "deep":
            image = Image.fromarray(ids.astype(np.uint16) * rng.choice((1, 300)))
        case "ignored":
            image = Image.fromarray(np.full_like(ids, 255))
        case "palette":
            image.putpalette(rng.randbytes(768))
        case "bits":
            image = image.convert("1")
        case "scaled":
            image = Image.fromarray(np.where(ids == 1, 255, 0).astype(np.uint8))
        case "float":
            image = Image.fromarray(ids.astype(np.float32))
    if kind == "bomb":
        path.write_bytes(png_header(40_000, 40_000))
    else:
        image.save(path, {"float": "TIFF", "jpeg": "JPEG"}.get(kind, "PNG"))
    return kind
