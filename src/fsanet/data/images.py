"""Read any common image as a uint8 RGB tensor (3, H, W).

Files, PIL images, arrays and tensors go through the same function, so that training and prediction
see the same pixels for the same image.
"""

from __future__ import annotations

import glob
import itertools
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from fsanet.errors import InputError, check_range
from fsanet.inputs import open_file, reason

#: Suffixes that folders are searched for; a file given explicitly is opened whatever its name.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_BAND_PIXELS = 2**20  # of a decoded image, copied at a time

#: Formats that are read, by Pillow's names; its parsers of others are never reached.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: ImageSource) -> Tensor:
    """Read an image as RGB, upright and 8-bit.

    Args:
        source: one of

            * a path: a file in one of `FORMATS`; the first frame of an animation;
            * a PIL image of any mode;
            * an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4);
            * a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W).

            Arrays and tensors are uint8 (0..255), uint16 (0..65535), bool, or floating point in
            0..1; anything else is an error and never clipped.

    Returns:
        uint8 tensor (3, H, W) on the CPU, contiguous, that shares no memory with ``source``.

    How anything other than 8-bit RGB is converted:

    * the EXIF orientation is applied (files and PIL images);
    * grey is repeated in all three channels, palettes are looked up, CMYK and other colour spaces
      are converted by Pillow; embedded colour profiles are ignored;
    * transparency (RGBA, LA, palette or colour-key) is composited over white;
    * 16-bit values are divided by 257 and rounded. Mode ``I`` counts as 16-bit, mode ``F`` as
      floating point in 0..1.

    Raises:
        InputError: the file is missing, empty, truncated or unreadable, the image has more pixels
            than `limit_pixels` allows, or shape, dtype or values are not as listed above.
        TypeError: ``source`` is of another type.

    >>> read_image(np.zeros((4, 6), dtype=np.uint8)).shape
    torch.Size([3, 4, 6])
    """
    if isinstance(source, str | os.PathLike):
        with open_image(Path(source), "image", FORMATS) as (image, _):
            return _decode(image, str(source), planar=True).contiguous()
    if isinstance(source, Image.Image):
        check_pixels(source.height, source.width, "PIL image")
        with _decoding("PIL image", "image"):
            return _decode(source, "PIL image", planar=True).contiguous()
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _to_rgb(source, "array")
    raise TypeError(
        f"cannot read an image from {type(source).__name__}; "
        "give a path, a PIL image, an array or a tensor"
    )


def image_size(path: Path) -> tuple[int, int] | None:
    """Height and width as stored in a file, which is not decoded; None if it is no image."""
    try:
        with (
            open_file(path, "image", limit=_largest_file(_max_pixels)) as stream,
            _decoding(str(path), "image"),
            _opened(stream, FORMATS) as image,
        ):
            return image.height, image.width
    except InputError:
        return None


def list_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, recursive: bool = True
) -> list[Path]:
    """List the image files among files and folders, sorted, each once.

    Args:
        paths: one path or several. A file is taken as it is; a folder is searched for files with a
            suffix of ``IMAGE_SUFFIXES`` (in any case) that are not hidden; a pattern, such as
            ``photos/*.jpg``, stands for the files and folders that it matches.
        recursive: also search sub-folders.

    Raises:
        InputError: a path does not exist, a folder has no image in it, or no path is given.
    """
    return sorted(path for path, _ in locate_images(paths, recursive=recursive))


def locate_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, recursive: bool = True
) -> list[tuple[Path, Path]]:
    """List image files like `list_images`, each with its path relative to the given folder.

    For a file that is given itself, the relative path is its name.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[str, tuple[Path, Path]] = {}
    for root in itertools.chain.from_iterable(map(_matches, paths)):
        for file in _files_below(root, recursive):
            relative = Path(file.name) if file == root else file.relative_to(root)
            found.setdefault(os.path.realpath(file), (file, relative))
    if not found:
        raise InputError("no image given; name at least one image file or folder")
    return sorted(found.values())


def _matches(path: str | os.PathLike[str]) -> list[Path]:
    """The path itself, or what a pattern matches that no shell has replaced by its files."""
    text = os.fspath(path)
    if glob.has_magic(text) and not os.path.lexists(text):
        return [*map(Path, sorted(glob.glob(text, recursive=True)))] or [Path(text)]
    return [Path(text)]


def _files_below(root: Path, recursive: bool) -> list[Path]:
    """The file itself, or the images below a folder, each folder being entered once.

    What cannot be read, such as a broken link or a forbidden sub-folder, is among them, so that
    reading it is an error, and the rest goes on.
    """
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            return [root]
        os.listdir(root)
    except FileNotFoundError as error:
        raise InputError(f"{root}: no such file or folder; check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{root}: cannot be read ({reason(error)})") from error
    files: list[Path] = []
    entered: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        files.append(Path(error.filename))

    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in entered:  # a link to a folder above
            subfolders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".")) if recursive else []
        files += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    if not files:
        raise InputError(
            f"{root}: no image in this folder"
            f"{'' if recursive else ' (sub-folders are not searched)'}; "
            f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return files


# ---- limits

_max_pixels = 200_000_000


def limit_pixels(count: int) -> None:
    """Set how many pixels an image or a mask may have; 200 million unless this is called.

    The limit holds for this process and those forked from it, and is checked before decoding.
    """
    global _max_pixels
    check_range("max_pixels", count, 1, 10**12)
    _max_pixels = count


def check_pixels(height: int, width: int, name: str) -> None:
    """Raise `InputError` for a size beyond the limit of `limit_pixels`."""
    if height * width > _max_pixels:
        raise InputError(
            f"{name}: {width}x{height} pixels, more than the limit of {_max_pixels}; make it "
            "smaller, or raise the limit (--max-pixels) if the file is trusted"
        )


def _largest_file(pixels: int) -> int:
    """Bytes that a file of so many pixels may have: those of 16-bit RGBA, and some metadata."""
    return 2**26 + 8 * pixels


_LARGEST_READ_WHOLE = 2**28  # bytes of a WebP or AVIF file, which Pillow reads before any header


def _is_read_whole(stream: BinaryIO) -> bool:
    start = stream.read(12)
    stream.seek(0)
    return start[8:12] == b"WEBP" or start[4:8] == b"ftyp"


# ---- files


def read_file(path: Path) -> Tensor:
    """Read an image file like `read_image`, as fast as possible: for training.

    The pixels are in the memory order of their decoder, mostly channels last, which saves
    transposing whole images of which a crop is used. Torchvision decodes JPEG files.
    """
    with open_image(path, "image", FORMATS) as (image, stream):
        pixels = _decode_jpeg(image, stream)
        return _decode(image, str(path)) if pixels is None else pixels


@contextmanager
def open_image(
    path: Path, what: str, formats: tuple[str, ...]
) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image file; whatever goes wrong until the context ends becomes an `InputError`.

    Args:
        path: the file.
        what: kind of file, such as "image", for messages.
        formats: Pillow's names of the formats to read.

    Yields:
        The image, of which only the header has been read, and the file.
    """
    with open_file(path, what, limit=_largest_file(_max_pixels)) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            raise InputError(f"{path}: {what} file is empty (0 bytes); remove or replace it")
        if size > _LARGEST_READ_WHOLE and _is_read_whole(stream):
            raise InputError(
                f"{path}: {size / 1e6:.0f} MB, and WebP and AVIF files may have "
                f"{_LARGEST_READ_WHOLE / 1e6:.0f} MB; convert it to another format"
            )
        with _decoding(str(path), what), _opened(stream, formats) as image:
            check_pixels(image.height, image.width, str(path))
            if size > _largest_file(image.height * image.width):  # decoders may read all of it
                raise InputError(
                    f"{path}: {size / 1e6:.0f} MB for {image.width}x{image.height} pixels; remove "
                    "or replace it"
                )
            if image.format == "TIFF":
                with _silent_stderr():
                    image.load()
            yield image, stream


@contextmanager
def _decoding(name: str, what: str) -> Iterator[None]:
    """Turn whatever decoders raise, and warn about, into an `InputError`."""
    with _no_warnings():  # remarks about metadata, and torchvision's deprecation
        try:
            yield
        except InputError:
            raise
        except UnidentifiedImageError as error:
            raise InputError(
                f"{name}: not an image in a known format, or damaged; remove or replace it"
            ) from error
        except MemoryError as error:
            raise InputError(f"{name}: {what} does not fit into memory") from error
        except Exception as error:  # of any kind: damaged files lead decoders anywhere
            raise InputError(
                f"{name}: damaged or truncated {what} ({reason(error)}); remove or replace it"
            ) from error


_filters = threading.Lock()
_decoders = 0
_unfiltered = warnings.catch_warnings()


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Ignore warnings while any thread is here; ``catch_warnings`` alone is for one thread."""
    global _decoders, _unfiltered
    with _filters:
        if not _decoders:
            _unfiltered = warnings.catch_warnings()
            _unfiltered.__enter__()
            warnings.simplefilter("ignore")
        _decoders += 1
    try:
        yield
    finally:
        with _filters:
            _decoders -= 1
            if not _decoders:
                _unfiltered.__exit__(None, None, None)


_opening = threading.Lock()


def _opened(stream: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Read the header, without Pillow's own limit of pixels, which is lower and global."""
    with _opening:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(stream, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


_stderr = threading.Lock()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what C code prints to stderr: libjpeg and libtiff report faults, but no file."""
    with _stderr:
        try:
            kept = os.dup(2)
        except OSError:  # a process without stderr
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(nowhere)
            os.close(kept)


def _decode_jpeg(image: Image.Image, stream: BinaryIO) -> Tensor | None:
    """Decode an upright colour JPEG with torchvision: Pillow's pixels in two thirds of the time.

    Returns ``None`` where torchvision is not in use, which is a second to import; in threads,
    because stderr is silenced for all of them; for all other files, and for those that torchvision
    refuses, so that Pillow decodes them or says what is wrong.
    """
    if "torchvision.io" not in sys.modules:
        return None
    if threading.current_thread() is not threading.main_thread():
        return None
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    if _orientation(image) in _UPRIGHT:
        return None
    import torchvision.io

    # torchvision is going to remove its decoders, and warns about it at each call.
    decode = getattr(torchvision.io, "decode_jpeg", None)
    if decode is None:
        return None
    stream.seek(0)
    data = torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8)
    try:
        with _silent_stderr():
            pixels: Tensor = decode(data, mode=torchvision.io.ImageReadMode.RGB)
    except RuntimeError:
        stream.seek(0)
        return None
    return pixels if pixels.shape == (3, image.height, image.width) else None


def _orientation(image: Image.Image) -> Any:
    """EXIF orientation; 1, upright, if the metadata are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever Pillow's parser runs into
        return 1


def _decode(image: Image.Image, name: str, *, planar: bool = False) -> Tensor:
    """PIL image of any mode -> uint8 (3, H, W), contiguous if `planar`, else channels last.

    Raises Pillow's own errors, too.
    """
    image.load()
    orientation = _orientation(image)  # decoding a TIFF has settled it already
    if orientation in list(_UPRIGHT):
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith("I;16"):
        # Mode I settles byte orders other than the machine's.
        values = np.asarray(image.convert("I"))
        return _to_rgb(values.astype(np.uint16), name)
    if image.mode == "I":
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(
                f"{name}: 32-bit integer pixels from {values.min()} to {values.max()}; "
                "convert the image to 8 or 16 bits"
            )
        return _to_rgb(values.astype(np.uint16), name)
    if image.mode == "F":
        return _to_rgb(np.asarray(image), name)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    width, height = image.size
    if 0 in image.size:
        return _to_rgb(np.empty((height, width, 3), dtype=np.uint8), name)  # raises
    # In bands of rows, because Pillow's copies take several times the memory of the pixels.
    rows = max(1, _BAND_PIXELS // width)
    order = (2, 0, 1) if planar else (0, 1, 2)
    shape = [(height, width, 3)[axis] for axis in order]
    stored = np.empty(shape, dtype=np.uint8)
    pixels = stored.transpose(np.argsort(order))  # (H, W, 3)
    for top in range(0, height, rows):
        whole = rows >= height
        band = image if whole else image.crop((0, top, width, min(top + rows, height)))
        values = np.asarray(band if band.mode == mode else band.convert(mode))
        if mode == "RGBA":
            values = _to_rgb(values, name).numpy().transpose(1, 2, 0)
        pixels[top : top + rows] = values  # (r, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W)


def _from_tensor(source: Tensor) -> Tensor:
    if source.ndim == 3 and source.shape[0] not in (1, 3, 4):
        raise InputError(
            f"tensor of shape {tuple(source.shape)}: an image is (1, H, W), (3, H, W) or (4, H, W)"
        )
    if source.ndim not in (2, 3):
        raise InputError(
            f"tensor of shape {tuple(source.shape)}: an image has 3 dimensions (channels, H, W); "
            "give several images as a list"
        )
    source = source.detach().as_subclass(Tensor).cpu()
    if source.dtype is torch.bfloat16:  # NumPy has none
        source = source.float()
    if source.ndim == 3:
        source = source.permute(1, 2, 0)  # (H, W, channels)
    return _to_rgb(source.numpy(), "tensor")


def _to_rgb(values: np.ndarray[Any, Any], name: str) -> Tensor:
    """(H, W) or (H, W, 1 | 3 | 4) of any accepted dtype -> uint8 (3, H, W)."""
    if values.ndim == 2:
        values = values[:, :, None]  # (H, W, 1)
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        raise InputError(
            f"{name} of shape {values.shape}: an image is (H, W), (H, W, 1), (H, W, 3) "
            "or (H, W, 4)" + ("; give channels-first data as a tensor" if name == "array" else "")
        )
    if 0 in values.shape:
        raise InputError(f"{name} of shape {values.shape}: the image has no pixels")
    values = _to_8_bit(values, name)
    if values.shape[2] == 4:
        colour, alpha = values[:, :, :3].astype(np.uint16), values[:, :, 3:].astype(np.uint16)
        # Over white, rounded; the largest intermediate value is 255 * 255 + 127 < 2**16.
        blend = colour * alpha + 255 * (255 - alpha) + 127
        values = (blend // 255).astype(np.uint8)  # (H, W, 3)
    chw = np.broadcast_to(values.transpose(2, 0, 1), (3, *values.shape[:2]))  # (3, H, W)
    return torch.from_numpy(chw.copy(order="C"))


def _to_8_bit(values: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # also true for nan
            raise InputError(
                f"{name}: floating-point pixels from {low:g} to {high:g}, expected 0..1; "
                "divide by the largest possible value, or give uint8"
            )
        return (values.astype(np.float32) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    raise InputError(
        f"{name}: pixels of type {values.dtype}; give uint8 (0..255), uint16 (0..65535), "
        "bool, or floating point in 0..1"
    )
