"""Prediction of a video: frames are decoded, predicted, drawn and encoded one after the other.

Nothing is kept of a frame that is written, so memory does not grow with the length of the video.

Shapes: C classes, (H, W) frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fsanet.convert import load_model
from fsanet.data.images import check_pixels
from fsanet.errors import InputError, check_range, one_line
from fsanet.files import check_writable_file, write_whole
from fsanet.inputs import open_file
from fsanet.models.exported import import_extra
from fsanet.predict.draw import check_alpha
from fsanet.predict.predictor import Detector, check_options, make_predictor
from fsanet.predict.result import Instances, Segmentation
from fsanet.progress import ConsoleProgress

__all__ = ["VideoResult", "is_video", "predict_video"]

#: Suffixes by which a video is recognised.
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_WRITTEN = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
# Formats that hold their data themselves; playlists, which name other files, are not among them.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_EARLY = 0.5  # seconds; a video that ends this much before its stated end is incomplete


class VideoResult(NamedTuple):
    """What was done with a video.

    Attributes:
        file: the video that was written.
        frames: number of frames.
        flicker: mean fraction of pixels whose class differs from that in the frame before, of the
            predictions; nan for instances and single frames.
        smoothed: the same after smoothing, if there was any.
        problem: why the video has fewer frames than it says; None if it is complete.
    """

    file: Path
    frames: int
    flicker: float
    smoothed: float | None
    problem: str | None


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a video, by its suffix."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def predict_video(
    model: nn.Module | str | os.PathLike[str],
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    alpha: float = 0.5,
    legend: bool = True,
    overlay: bool = True,
    smooth: float = 0.0,
    progress: bool = True,
    **options: Any,
) -> VideoResult:
    """Predict each frame of a video, and write a video of overlays with the same frames.

    Number, size and times of the frames are kept; sound is left out. Requires the extra `video`.

    Args:
        model: a network, or whatever `fsanet.load_model` opens.
        file: the video.
        out: the video to write (.mp4, .mov or .mkv), or a folder, which also gets the mask and the
            JSON file of each frame.
        alpha: opacity of the classes, 0 to 1.
        legend: write names and scores at instances. Frames have no legend of classes.
        overlay: accepted for uniformity with images.
        smooth: weight from 0 to below 1 of the past: the class of a pixel is the one with the
            largest exponential average of confidences over the frames so far. 0 for none; below
            0.5 only uncertain pixels change.
        progress: show progress, as a bar on a terminal, else as a line every half minute.
        options: of `fsanet.predict.predictor.Predictor`, or of `Detector` for instances.

    Returns:
        What was done; a damaged video ends with the frames before the damage.

    Raises:
        InputError: no model, no video, none of its frames can be read, an output that is not
            writable, or a setting out of range.
    """
    av = import_extra("av", "video")
    check_alpha(alpha)
    check_range("smooth", smooth, 0.0, 0.999)
    check_options(options)
    file, out = Path(file), Path(out)
    frames_folder = None
    if not is_video(out):
        frames_folder, out = out, out / f"{file.stem}.mp4"
    if out.suffix.lower() not in _WRITTEN:
        raise InputError(f"{out}: give a name that ends in {', '.join(_WRITTEN)}, or a folder")
    if os.path.realpath(out) == os.path.realpath(file):
        raise InputError(f"{out}: is the video that is read; give another --out")
    check_writable_file(out)
    options = dict(options)
    if smooth:
        options["confidence"] = True
    predictor = make_predictor(load_model(model), **options)
    is_detector = isinstance(predictor, Detector)
    if smooth and is_detector:
        raise InputError("smooth: for semantic segmentation only")
    changes, smoothed = _Changes(), _Changes()
    past = _Past(smooth)
    with (
        ConsoleProgress("frames", shown=progress) as bar,
        open_file(file, "video") as stream,
        _Reader(av, file, stream) as reader,
    ):
        task = bar.add_task("predict", total=reader.expected)

        def write(target: BinaryIO) -> None:
            with _Writer(av, target, _WRITTEN[out.suffix.lower()], reader) as writer:
                for index, (pixels, time) in enumerate(reader):
                    (result,) = predictor([pixels])
                    if isinstance(result, Segmentation):
                        changes.add(result.mask)
                        if smooth:
                            result = replace(result, mask=past.mix(result), confidence=None)
                            smoothed.add(result.mask)
                    writer.add(_drawn(result, alpha, legend), time)
                    if frames_folder is not None:
                        result.save(frames_folder, f"{file.stem}_{index:06d}", overlay=False)
                    bar.update(task, advance=1)

        try:
            write_whole(out, write)
        except av.error.FFmpegError as error:  # of the encoder: the reader catches its own
            height, width = reader.size
            raise InputError(
                f"{out}: {width} x {height} pixels at {float(reader.rate):g} frames per second "
                f"cannot be encoded as H.264 ({_reason(error)}); its sides may have up to 16384"
            ) from error
    return VideoResult(
        out,
        reader.frames,
        changes.mean,
        smoothed.mean if smooth else None,
        reader.problem,
    )


def _drawn(result: Segmentation | Instances, alpha: float, legend: bool) -> np.ndarray[Any, Any]:
    """The overlay of a frame at its own size, uint8 (H, W, 3)."""
    if isinstance(result, Instances):
        return np.asarray(result.overlay(alpha, names=legend))
    return np.asarray(result.overlay(alpha, legend=False))


class _Changes:
    """The mean fraction of pixels that change from one mask to the next."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.total, self.count = 0.0, 0

    def add(self, mask: Tensor) -> None:
        if self.last is not None:
            self.total += (mask != self.last).float().mean().item()
            self.count += 1
        self.last = mask

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")


class _Past:
    """Exponential averages of the confidence in each class, float32 (C, H, W)."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.scores: Tensor | None = None

    def mix(self, result: Segmentation) -> Tensor:
        """The smoothed mask, uint8 (H, W)."""
        assert result.confidence is not None
        ids = result.mask.long()[None]  # (1, H, W)
        sure = result.confidence[None] * (1 - self.weight)
        if self.scores is None:
            self.scores = torch.zeros(len(result.classes), *result.mask.shape)
            sure = result.confidence[None]
        self.scores *= self.weight
        self.scores.scatter_add_(0, ids, sure)
        return self.scores.argmax(0).to(torch.uint8)


class _Reader:
    """The frames of a video, uint8 (3, H, W), upright, with their times; iterated once.

    Attributes:
        size: height and width.
        rate: frames per second, on average.
        time_base: unit of the times in seconds.
        expected: number of frames as the file says, if it does.
        frames: number of frames read so far.
        problem: why reading ended before the end.
    """

    def __init__(self, av: Any, file: Path, stream: BinaryIO) -> None:
        self.av, self.file = av, file
        options = {"format_whitelist": _FORMATS}
        try:
            self.container = av.open(stream, options=options)
            if not self.container.streams.video:
                raise ValueError("it has no pictures")
            self.stream = self.container.streams.video[0]
            context = self.stream.codec_context
            if context is None:
                raise ValueError("its codec is not known")
            check_pixels(context.height, context.width, str(file))
            if min(context.height, context.width) < 1:
                raise ValueError("its frames have no size")
            context.thread_count = torch.get_num_threads()
            self._decoded = self.container.decode(self.stream)
            first = next(self._decoded, None)
            if first is None:
                raise ValueError("it has no frame")
        except InputError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read as a video ({_reason(error)})") from error
        self._decoded = chain([first], self._decoded)
        self._turns = round(first.rotation / 90) % 4  # as a telephone was held
        sides = first.height, first.width
        self.size = sides if self._turns % 2 == 0 else sides[::-1]
        check_pixels(*self.size, str(file))
        self.rate = self.stream.average_rate or Fraction(25)
        self.time_base = self.stream.time_base or 1 / self.rate
        self.expected: int | None = self.stream.frames or None
        self.frames = 0
        self.problem: str | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        last = -1
        try:
            for frame in self._decoded:
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), self._turns)
                if pixels.shape[:2] != self.size:
                    self.problem = "the size of its frames changes"
                    return
                time = frame.pts
                if time is None or time <= last:  # some files have no times, or the same twice
                    time = last + max(1, round(1 / (self.rate * self.time_base)))
                last = time
                self.frames += 1
                yield torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), time
        except (self.av.error.FFmpegError, OSError) as error:
            self.problem = _reason(error)
            return
        if self.expected is not None and self.frames < self.expected:
            self.problem = f"it says it has {self.expected}"
        elif self.expected is None and self.container.duration:
            end = self.container.duration / self.av.time_base
            start = (self.stream.start_time or 0) * self.time_base
            if end - float((last * self.time_base) - start + 1 / self.rate) > _EARLY:
                self.problem = f"it says it is {end:.2f} s long"


class _Writer:
    """A video in H.264 with the size and the times of another one."""

    def __init__(self, av: Any, target: BinaryIO, format: str, like: _Reader) -> None:
        self.av, (height, width) = av, like.size
        self.time_base = like.time_base
        self.container = av.open(target, "w", format=format)
        self.stream = self.container.add_stream("libx264", rate=like.rate)
        self.stream.width, self.stream.height = width, height
        # Colours at half the resolution, which every player knows, need even sides.
        self.stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        self.stream.options = {"crf": "18", "preset": "veryfast"}
        self.stream.codec_context.time_base = like.time_base
        self.stream.codec_context.thread_count = torch.get_num_threads()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self.container.mux(self.stream.encode())
        finally:
            self.container.close()

    def add(self, pixels: np.ndarray[Any, Any], time: int) -> None:
        """Add a frame, uint8 (H, W, 3)."""
        frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = time, self.time_base
        self.container.mux(self.stream.encode(frame))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)
