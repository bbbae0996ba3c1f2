"""Predictor against what NumPy gives for tiny models whose every logit is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import thin_fsanet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fsanet.errors import InputError
from fsanet.models import MaskRcnnFsa, segmenter
from fsanet.predict.predictor import Detector, Predictor, make_predictor
from fsanet.predict.result import Segmentation

MEAN = 0.25


class Tiny(nn.Module):
    """The interface of FsaNet without its weights."""

    classes: tuple[str, ...] = ("red", "green", "blue")
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[tuple[int, ...]] = []
        self.modes: list[bool] = []

    def normalise(self, images: Tensor) -> Tensor:
        return images.float() / 255 - MEAN

    def forward(self, images: Tensor) -> Tensor:
        """The strongest channel wins."""
        assert images.dtype is torch.float32
        self.seen.append(tuple(images.shape))
        self.modes.append(self.training or self.norm.training)
        return images * self.gain


class ByColumn(Tiny):
    """Logits from colours and from the place in what is fed: no mirror symmetry."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images) * 6
        h, w = images.shape[2:]
        across = torch.linspace(0, 3, w, device=images.device).expand(h, w)
        down = torch.linspace(0, 3, h, device=images.device)[:, None].expand(h, w)
        return torch.stack([logits[:, 0] + across, logits[:, 1] + down, logits[:, 2]], 1)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_column(colours: np.ndarray) -> np.ndarray:
    """`ByColumn` in NumPy: normalised (h, w, 3) -> logits (h, w, 3)."""
    h, w = colours.shape[:2]
    logits = colours * 6
    logits[..., 0] += np.linspace(0, 3, w)
    logits[..., 1] += np.linspace(0, 3, h)[:, None]
    return logits


def brute_force(image: np.ndarray, window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Window-averaged logits of `ByColumn`, all kept: (H, W, 3)."""
    height, width = image.shape[:2]
    colours = image / 255 - MEAN
    total, count = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    tops = {max(0, min(y, height - window[0])) for y in range(0, height, stride[0])}
    lefts = {max(0, min(x, width - window[1])) for x in range(0, width, stride[1])}
    for top in tops:
        for left in lefts:
            tile = np.zeros((*window, 3))  # the mean colour is zero
            part = colours[top : top + window[0], left : left + window[1]]
            h, w = part.shape[:2]
            tile[:h, :w] = part
            total[top : top + h, left : left + w] += by_column(tile)[:h, :w]
            count[top : top + h, left : left + w] += 1
    return total / count


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 31), (5, 200)])
@pytest.mark.parametrize("window", [None, 16, (9, 40)])
def test_mask_has_exactly_the_size_of_the_image(size: tuple[int, int], window: Any) -> None:
    image = picture(*size)
    result = Predictor(Tiny(), window=window)(image)
    assert isinstance(result, Segmentation)
    assert result.mask.dtype is torch.uint8
    np.testing.assert_array_equal(result.mask.numpy(), image.argmax(-1))
    assert result.classes == Tiny.classes
    assert result.palette == Tiny.palette
    np.testing.assert_array_equal(result.image.permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize("size", [(30, 41), (7, 41), (30, 5), (8, 8), (3, 3)])
@pytest.mark.parametrize(
    ("window", "stride"), [((8, 8), (5, 5)), ((8, 8), (8, 3)), ((12, 20), (1, 7))]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_sliding_window_equals_brute_force(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], batch_size: int
) -> None:
    image = picture(*size)
    model = ByColumn()
    predictor = Predictor(
        model, window=window, stride=stride, batch_size=batch_size, confidence=True
    )
    result = predictor(image)
    logits = brute_force(image, window, stride)
    np.testing.assert_array_equal(result.mask.numpy(), logits.argmax(-1))
    powers = np.exp(logits)
    expected = (powers / powers.sum(-1, keepdims=True)).max(-1)
    np.testing.assert_allclose(result.confidence.numpy(), expected, atol=1e-5)
    assert all(shape[2:] == window and shape[0] <= batch_size for shape in model.seen)


def test_the_stride_is_two_thirds_of_the_window() -> None:
    assert Predictor(Tiny(), window=(769, 10)).stride == (513, 7)
    assert Predictor(Tiny(), window=1).stride == (1, 1)


@pytest.mark.parametrize("window", [None, (40, 60)])
def test_flip_is_undone_along_the_width(window: Any) -> None:
    image = picture(23, 38)
    result = Predictor(ByColumn(), flip=True, window=window, confidence=True)(image)

    def probabilities(seen: np.ndarray) -> np.ndarray:
        if window is not None:
            seen = np.pad(seen, ((0, window[0] - 23), (0, window[1] - 38), (0, 0)))
        powers = np.exp(by_column(seen)[:23, :38])
        return powers / powers.sum(-1, keepdims=True)

    colours = image / 255 - MEAN
    plain, mirrored = probabilities(colours), probabilities(colours[:, ::-1].copy())
    expected = (plain + mirrored[:, ::-1]) / 2
    np.testing.assert_array_equal(result.mask.numpy(), expected.argmax(-1))
    np.testing.assert_allclose(result.confidence.numpy(), expected.max(-1), atol=1e-5)
    # The mistake this guards against would be seen.
    rows_turned = (plain + mirrored[::-1]) / 2
    assert (rows_turned.argmax(-1) != expected.argmax(-1)).mean() > 0.1


def test_several_scales_see_the_image_at_these_sizes() -> None:
    model = Tiny()
    Predictor(model, scales=(0.5, 1.0, 1.75), flip=True)(picture(20, 31))
    assert [shape[2:] for shape in model.seen] == [(10, 16)] * 2 + [(20, 31)] * 2 + [(35, 54)] * 2


def test_scales_average_probabilities() -> None:
    class BySize(Tiny):
        """One class at half size, another at full size, with different certainty."""

        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(len(images), 3, *images.shape[2:])
            logits[:, 0 if images.shape[3] < 20 else 1] = 4.0 if images.shape[3] < 20 else 1.0
            return logits

    result = Predictor(BySize(), scales=(0.5, 1.0), confidence=True)(picture(12, 20))
    sure = [np.exp(4) / (np.exp(4) + 2), 1 / (np.e + 2)]
    assert (result.mask == 0).all()
    torch.testing.assert_close(result.confidence, torch.full((12, 20), float(np.mean(sure))))


def test_batches_equal_singles() -> None:
    images = [picture(h, w, seed) for seed, (h, w) in enumerate([(9, 14), (30, 7), (9, 14)] * 2)]
    for options in ({}, {"window": 6, "stride": 4}, {"flip": True, "scales": (1.0, 1.5)}):
        singles = [Predictor(ByColumn(), **options)(image) for image in images]
        model = ByColumn()
        together = Predictor(model, batch_size=4, **options)(images)
        assert isinstance(together, list)
        assert max(shape[0] for shape in model.seen) == 4
        for one, other, image in zip(singles, together, images, strict=True):
            assert torch.equal(one.mask, other.mask)
            np.testing.assert_array_equal(other.image.permute(1, 2, 0).numpy(), image)
    assert Predictor(Tiny())([]) == []


def test_every_kind_of_input(tmp_path: Path) -> None:
    image = picture(8, 9)
    Image.fromarray(image).save(tmp_path / "a.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    sources: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(image),
        image,
        tensor,
        tensor / 255,
    ]
    predictor = Predictor(Tiny())
    for source, result in zip(sources, predictor(sources), strict=True):
        np.testing.assert_array_equal(result.mask.numpy(), image.argmax(-1))
        assert torch.equal(predictor(source).mask, result.mask)
    assert predictor(sources[0]).source == tmp_path / "a.png"
    assert predictor(image).source is None


def test_the_model_is_left_as_it_was() -> None:
    model = Tiny()
    model.train()
    model.norm.eval()  # a frozen norm stays frozen
    predictor = Predictor(model)
    predictor(picture(4, 4))
    assert model.modes == [False]
    assert model.training
    assert not model.norm.training

    class Breaks(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("broken")

    broken = Breaks().train()
    with pytest.raises(RuntimeError, match="broken"):
        Predictor(broken)(picture(4, 4))
    assert broken.training
    assert broken.norm.training


def test_results_are_ordinary_tensors() -> None:
    result = Predictor(Tiny(), confidence=True)(picture(4, 4))
    for tensor in (result.mask, result.confidence, result.image):
        assert not tensor.is_inference()
        tensor.add_(1)


def test_no_graph_is_built_and_autocast_is_used() -> None:
    class Matrix(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            assert torch.is_inference_mode_enabled()
            out = torch.einsum("bchw,cd->bdhw", images, torch.eye(3) * self.gain)
            self.dtype = out.dtype
            return out

    model = Matrix()
    image = picture(8, 8) // 64 * 64  # far enough apart for bfloat16
    plain, rounded = Predictor(model)(image), None
    assert model.dtype is torch.float32
    rounded = Predictor(model, dtype=torch.bfloat16)(image)
    assert model.dtype is torch.bfloat16
    assert torch.equal(plain.mask, rounded.mask)


class LiveBytes(TorchDispatchMode):
    """The most bytes that floating-point tensors have held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if self.owners.get(key, 0) == 0:
                self.now += size
                self.peak = max(self.peak, self.now)
            self.owners[key] = self.owners.get(key, 0) + 1
            weakref.finalize(tensor, self.release, key, size)
        return result

    def release(self, key: int, size: int) -> None:
        self.owners[key] -= 1
        if self.owners[key] == 0:
            self.now -= size


class Many(Tiny):
    """Many classes, so that logits outweigh all else."""

    classes = tuple(str(i) for i in range(40))
    palette = tuple((i, i, i) for i in range(40))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1].expand(-1, 40, -1, -1) * torch.arange(40.0)[:, None, None]


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({}, 1.0),
        pytest.param({"stride": 16}, 1.0, marks=pytest.mark.slow),
        pytest.param(
            {"flip": True, "scales": (0.5, 1.0, 2.0)},
            2 * (0.5 + 1 + 2),
            marks=pytest.mark.slow,
        ),
        pytest.param({"confidence": True}, 1.0, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_height(options: dict[str, Any], widths: float) -> None:
    heights, width, window = (126, 511), 128, 16  # windows overlap as much at the bottom
    peaks = []
    for height in heights:
        predictor = Predictor(Many(), window=window, **options)
        with LiveBytes() as live:
            predictor(np.zeros((height, width, 3), np.uint8))
        peak = live.peak
        if "confidence" in options:  # of the image's size, but without classes
            peak -= 4 * height * width
        peaks.append(peak)
    assert peaks[1] <= peaks[0] * 1.05
    # The bound of the docstring, in bands; the whole would be 32 of them.
    assert peaks[1] < 4 * widths * (4 * len(Many.classes) * window * width)


@pytest.mark.parametrize("views", [{}, {"scales": (0.5, 1.0), "flip": True, "confidence": True}])
@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_are_upsampled_by_bands(
    monkeypatch: pytest.MonkeyPatch, views: dict[str, Any], align_corners: bool
) -> None:
    model = thin_fsanet(num_classes=40, align_corners=align_corners)
    image = np.random.default_rng(0).integers(0, 256, (510, 120, 3), dtype=np.uint8)
    logits = 4 * 40 * 510 * 120  # bytes
    with LiveBytes() as live:
        expected = Predictor(model, **views)(image)
    assert live.peak > logits
    monkeypatch.setattr(segmenter, "_BAND_VALUES", 2**16)
    with LiveBytes() as live:
        found = Predictor(model, **views)(image)
    assert live.peak < logits / 2
    assert (found.mask == expected.mask).double().mean() > 0.999
    if found.confidence is not None and expected.confidence is not None:
        torch.testing.assert_close(found.confidence, expected.confidence)


def test_the_instrument_sees_a_whole_image_accumulator() -> None:
    with LiveBytes() as live:
        Predictor(Many())(np.zeros((256, 64, 3), np.uint8))
    assert live.peak >= 4 * 40 * 256 * 64
    assert live.now <= 4 * 40 * 64


def test_predict_files(tmp_path: Path) -> None:
    for name, seed in [("b.png", 1), ("a.png", 2), ("sub/c.png", 3)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(6, 5, seed)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    errors: list[tuple[Path, str]] = []
    predictor = Predictor(Tiny(), batch_size=2)
    results = list(
        predictor.predict_files(
            tmp_path, on_error=lambda file, error: errors.append((file, str(error)))
        )
    )
    names = [result.source.relative_to(tmp_path).as_posix() for result in results]
    assert names == ["a.png", "b.png", "sub/c.png"]
    for result, seed in zip(results, (2, 1, 3), strict=True):
        np.testing.assert_array_equal(result.mask.numpy(), picture(6, 5, seed).argmax(-1))
    assert [file.name for file, _ in errors] == ["broken.jpg"]
    assert "broken.jpg" in errors[0][1]
    with pytest.raises(InputError, match=r"broken\.jpg"):
        list(predictor.predict_files(tmp_path))


def test_too_little_memory_is_said_clearly(tmp_path: Path) -> None:
    class Hungry(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[3] > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    Image.fromarray(picture(4, 30)).save(tmp_path / "a.png")
    Image.fromarray(picture(4, 8)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"30 x 4 pixels does not fit .* use a window"):
        Predictor(Hungry())(tmp_path / "a.png")
    errors: list[Path] = []
    results = list(
        Predictor(Hungry()).predict_files(tmp_path, on_error=lambda file, _: errors.append(file))
    )
    assert [path.name for path in errors] == ["a.png"]
    assert [result.source.name for result in results] == ["b.png"]


def test_masks_takes_a_batch() -> None:
    images = torch.from_numpy(picture(6, 7)).permute(2, 0, 1)[None].repeat(3, 1, 1, 1)
    found = Predictor(Tiny(), batch_size=2).masks(images)
    assert found.ids.shape == (3, 6, 7)
    assert found.confidence is None
    assert found.entropy is None
    for bad in (images[0], images.float(), images[:, :2]):
        with pytest.raises(ValueError, match="expected uint8"):
            Predictor(Tiny()).masks(bad)
    assert Predictor(Tiny(), window=4).masks(images[:0]).ids.shape == (0, 6, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0; give pixels"),
        ({"window": (4, 5, 6)}, "window is"),
        ({"window": 4.5}, "window is"),
        ({"stride": 4}, "there is no window"),
        ({"window": 4, "stride": 5}, "pixels would be skipped"),
        ({"window": 4, "stride": (4, 0)}, "stride is"),
        ({"scales": ()}, "one or more factors"),
        ({"scales": (1.0, -1.0)}, "factors above 0"),
        ({"scales": (float("nan"),)}, "factors above 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Predictor(Tiny(), **options)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="Conv2d has no 'normalise'"):
        Predictor(nn.Conv2d(3, 3, 1))

    class Coarse(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :, ::4, ::4]

    with pytest.raises(ValueError, match="must have the size of the images"):
        Predictor(Coarse())(picture(8, 8))
    model = Tiny()
    model.mean = (0.5,)
    with pytest.raises(InputError, match="takes 1 channels"):
        Predictor(model)
    model = Tiny()
    model.classes = tuple(str(i) for i in range(257))
    with pytest.raises(InputError, match="8-bit mask"):
        Predictor(model)


@pytest.fixture(scope="module")
def detector() -> MaskRcnnFsa:
    torch.manual_seed(0)
    return MaskRcnnFsa(
        "test_resnet",
        num_classes=2,
        positions=("p4",),
        k=2,
        fpn_channels=16,
        box_channels=16,
        mask_channels=8,
        min_size=64,
        max_size=64,
        detector_options={"box_score_thresh": 0.0, "box_detections_per_img": 6},
    ).train()


def test_detector_takes_one_image_or_several(detector: MaskRcnnFsa, tmp_path: Path) -> None:
    Image.fromarray(picture(48, 64)).save(tmp_path / "a.png")
    everything = Detector(detector, score=0.0)
    one = everything(tmp_path / "a.png")
    other, again = everything([picture(64, 48, 1), tmp_path / "a.png"])
    assert (one.source, other.source) == (tmp_path / "a.png", None)
    assert other.masks.shape == (len(other), 64, 48)
    assert len(one) > 1
    assert torch.equal(one.masks, again.masks)
    assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
    (from_file,) = everything.predict_files(tmp_path)
    assert torch.equal(from_file.boxes, one.boxes)
    middle = float(one.scores[len(one) // 2])
    assert len(Detector(detector, score=middle)(tmp_path / "a.png")) == sum(one.scores >= middle)
    assert detector.training  # as it was


def test_the_network_decides_on_the_predictor(detector: MaskRcnnFsa) -> None:
    assert isinstance(make_predictor(detector, score=0.2), Detector)
    assert isinstance(make_predictor(Tiny(), window=8), Predictor)
    # Left at their defaults, options of the other predictor do not matter.
    assert make_predictor(detector, flip=False, scales=(1.0,), dtype=None).score == 0.5
    assert make_predictor(Tiny(), score=0.5).scales == (1.0,)
    for model, options, line in [
        (detector, {"window": 8}, "window: for semantic segmentation only; MaskRcnnFsa"),
        (detector, {"scales": (1.0, 2.0)}, "scales: for semantic segmentation only"),
        (Tiny(), {"score": 0.2}, "score: for instance segmentation only; Tiny"),
        (detector, {"score": 2.0}, r"score is 2\.0"),
    ]:
        with pytest.raises(InputError, match=line):
            make_predictor(model, **options)
    with pytest.raises(TypeError, match="windows"):
        make_predictor(Tiny(), windows=3)


def test_prepared_network_is_made_once_and_follows_changes_afterwards() -> None:
    model = thin_fsanet().train()
    predictor = Predictor(model)
    with predictor.prepared():
        assert not model.training
        prepared = predictor.network()
        assert predictor.network() is prepared
        assert prepared is not model  # folded
    assert model.training
    model.eval()
    assert predictor.network() is not prepared
