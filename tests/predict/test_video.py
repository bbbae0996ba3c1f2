"""Videos: each mask is the still's, and the clip keeps its frames, size and rate."""

import resource
import shutil
import struct
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import thin_fsanet

from fsanet import Predictor, load_model
from fsanet.cli.main import main
from fsanet.errors import InputError
from fsanet.predict.video import predict_video

av = pytest.importorskip("av")
RATE = Fraction(12)


def write_clip(file, frames, size=(48, 70), **options):
    """Coloured squares that move over noise."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    with av.open(file, "w", **options) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "4"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            pixels = background.copy()
            pixels[10:30, (index * 3) % 40 :][:, :20] = (250, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file


def frames_of(file):
    with av.open(file) as container:
        stream = container.streams.video[0]
        pixels = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return pixels, stream.average_rate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    thin_fsanet().save_pretrained(folder / "network")
    write_clip(folder / "clip.mp4", 7, options={"movflags": "faststart"})
    write_clip(folder / "long.mkv", 40)
    return folder


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def masks_in(out, stem):
    return [np.asarray(Image.open(file)) for file in sorted(out.glob(f"{stem}_*_mask.png"))]


def test_frames_are_those_of_the_clip(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(folder / "clip.mp4", "--model", folder / "network", "--out", out) == 0
    assert "7 frames in" in capsys.readouterr().out
    given, rate = frames_of(folder / "clip.mp4")
    written, same_rate = frames_of(out / "clip.mp4")
    assert len(written) == len(given) == 7
    assert rate == same_rate == RATE
    assert written[0].shape == given[0].shape
    predictor = Predictor(load_model(folder / "network"))
    masks = masks_in(out, "clip")
    assert len(masks) == 7
    for frame, mask, drawn in zip(given, masks, written, strict=True):
        still = predictor(frame)
        np.testing.assert_array_equal(mask, still.mask.numpy())
        overlay = np.asarray(still.overlay(0.5, legend=False)).astype(int)
        assert np.abs(overlay - drawn).mean() < 12  # noise, whose colours the codec averages


def test_odd_sizes_and_a_file_as_output(folder, tmp_path):
    """H.264 with colours at half the resolution would need even sides."""
    with av.open(tmp_path / "odd.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 71, 49, "bgr0"
        frame = av.VideoFrame.from_ndarray(np.zeros((49, 71, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    out = tmp_path / "new/drawn.mp4"
    assert predict(tmp_path / "odd.mkv", "--model", folder / "network", "--out", out) == 0
    assert frames_of(out)[0][0].shape == (49, 71, 3)
    assert [file.name for file in out.parent.iterdir()] == ["drawn.mp4"]


def test_smoothing(folder, tmp_path, capsys):
    """The class with the largest exponential average of confidences, and how much less changes."""
    options = ["--smooth", 0.8, "--out", tmp_path]
    assert predict(folder / "clip.mp4", "--model", folder / "network", *options) == 0
    predictor = Predictor(load_model(folder / "network"), confidence=True)
    scores, plain, smooth = 0, [], []
    for index, frame in enumerate(frames_of(folder / "clip.mp4")[0]):
        still = predictor(frame)
        plain.append(still.mask.numpy())
        now = (plain[-1] == np.arange(3)[:, None, None]) * still.confidence.numpy()
        scores = now if index == 0 else 0.8 * scores + 0.2 * now
        smooth.append(scores.argmax(0))
    different = sum((a != b).sum() for a, b in zip(masks_in(tmp_path, "clip"), smooth, strict=True))
    assert different <= 2  # ties
    before, after = (
        100 * np.mean([np.mean(a != b) for a, b in pairwise(seen)]) for seen in (plain, smooth)
    )
    assert after < before
    said = capsys.readouterr().out
    assert f"flicker: {before:.2f} % of pixels" in said
    assert f"{after:.2f} % after smoothing" in said


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_frames_are_upright(folder, tmp_path, turns):
    """As telephones write them: frames as the sensor has them, and by how much to turn them."""
    matrices = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}
    a, b, c, d = (value << 16 for value in matrices[turns])
    content = bytearray((folder / "clip.mp4").read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    arguments = ["--model", folder / "network", "--out", tmp_path / "out"]
    assert predict(tmp_path / "turned.mp4", *arguments) == 0
    predictor = Predictor(load_model(folder / "network"))
    given = [np.rot90(frame, turns) for frame in frames_of(folder / "clip.mp4")[0]]
    assert frames_of(tmp_path / "out/turned.mp4")[0][0].shape == given[0].shape
    for frame, mask in zip(given, masks_in(tmp_path / "out", "turned"), strict=True):
        np.testing.assert_array_equal(mask, predictor(frame.copy()).mask.numpy())


def test_one_bad_video_does_not_stop_the_others(folder, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    shutil.copy(folder / "clip.mp4", tmp_path / "b.mp4")
    files = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    assert predict(*files, "--model", folder / "network", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 of 2 videos are incomplete, the first: " in line
    assert len(masks_in(tmp_path / "out", "b")) == 7


def test_two_videos_of_one_name_are_not_written_over_each_other(folder, tmp_path, capsys):
    (tmp_path / "x").mkdir()
    for name in ("x/Clip.mkv", "clip.mp4"):
        shutil.copy(folder / "clip.mp4", tmp_path / name)
    files = [tmp_path / "x/Clip.mkv", tmp_path / "clip.mp4"]
    assert predict(*files, "--model", folder / "network", "--out", tmp_path / "out") == 2
    assert "have one name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_are_printed_without_control_characters(folder, tmp_path, capsys):
    shutil.copy(folder / "clip.mp4", tmp_path / "a\n\x1b[31m.mp4")
    arguments = ["--model", folder / "network", "--out", tmp_path / "out"]
    assert predict(tmp_path / "a\n\x1b[31m.mp4", *arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line


def write_still(file, size):
    with av.open(file, "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "bgr0"
        pixels = np.zeros((*size, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_unknown(file):
    """Pictures in a code that no decoder has."""
    write_clip(file.with_suffix(".mp4"), 2)
    content = file.with_suffix(".mp4").read_bytes()
    file.write_bytes(content.replace(b"avc1", b"zzzz"))  # whatever the suffix, it is an .mp4 file


def write_sound(file):
    with av.open(file, "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: write_still(file, (16, 17_000)), "cannot be encoded as H.264"),
        (write_sound, "it has no pictures"),
        (write_unknown, "cannot be read as a video"),
        (lambda file: file.write_bytes(b""), "cannot be read as a video"),
    ],
)
def test_videos_that_are_refused(folder, tmp_path, capsys, make, message):
    file = tmp_path / "clip.mkv"
    make(file)
    arguments = ["--model", folder / "network", "--out", tmp_path / "out", "--window", 64]
    assert predict(file, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not [*(tmp_path / "out").glob("*")]


def test_a_truncated_file_ends_with_the_frames_it_had(folder, tmp_path, capsys):
    content = (folder / "long.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    arguments = ["--model", folder / "network", "--out", tmp_path / "out"]
    assert predict(tmp_path / "cut.mkv", *arguments) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "cut.mkv" in one]
    count = len(frames_of(tmp_path / "out/cut.mp4")[0])
    assert 5 < count < 40
    assert f"ends after {count} frames" in line
    assert len(masks_in(tmp_path / "out", "cut")) == count


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("text.mp4", b"no video", (), "cannot be read as a video"),
        ("list.mkv", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", (), "cannot be read as a video"),
        ("gone.mp4", None, (), "gone.mp4"),
        ("clip.mp4", "clip", ("--smooth", "1"), "smooth"),
        ("clip.mp4", "clip", ("--resume",), "--resume: is for images"),
        ("clip.mp4", "clip", ("--out", "drawn.avi"), "ends in .mp4"),
        ("clip.mp4", "clip", ("--out", "clip.mp4"), "is the video that is read"),
    ],
)
def test_wrong_input_is_one_line(
    folder, tmp_path, monkeypatch, capsys, name, content, more, message
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        content = (folder / "clip.mp4").read_bytes() if content == "clip" else content
        (tmp_path / name).write_bytes(content)
    assert (
        predict(
            name,
            "--model",
            folder / "network",
            *(more if "--out" in more else (*more, "--out", "out")),
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [file.name for file in tmp_path.glob("**/*.mp4")] in ([], [name])


def test_missing_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"needs av: pip install 'fsanet\[video\]'"):
        predict_video(folder / "network", folder / "clip.mp4", tmp_path)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(folder, tmp_path):
    write_clip(tmp_path / "many.mkv", 500, size=(360, 480))
    write_clip(tmp_path / "few.mkv", 50, size=(360, 480))
    network = load_model(folder / "network")
    torch.manual_seed(0)
    peaks = []
    for name in ("few", "many"):
        predict_video(network, tmp_path / f"{name}.mkv", tmp_path / f"{name}.mp4", progress=False)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert peaks[1] - peaks[0] < 50
