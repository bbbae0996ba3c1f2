from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.errors import InputError
from fsanet.predict.result import Segmentation

CLASSES = ("road", "sky", "bird")
PALETTE = ((128, 64, 128), (70, 130, 180), (220, 20, 60))


@pytest.fixture
def result() -> Segmentation:
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 255, 1, 1, 1]], dtype=torch.uint8)
    image = torch.randint(0, 256, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    return Segmentation(
        mask=mask,
        classes=CLASSES,
        palette=PALETTE,
        image=image.to(torch.uint8),
        confidence=torch.linspace(0, 1, 10).reshape(2, 5),
        source=Path("photos/a.jpg"),
    )


def test_counts_and_areas(result: Segmentation) -> None:
    assert result.counts() == {"road": 3, "sky": 6, "bird": 0}
    assert result.areas() == {"road": 0.3, "sky": 0.6, "bird": 0.0}


def test_palette_png_keeps_ids_and_colours(result: Segmentation) -> None:
    stream = io.BytesIO()
    result.colour_mask().save(stream, "PNG")
    with Image.open(stream) as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.asarray(stored), result.mask.numpy())
        colours = np.asarray(stored.convert("RGB"))
    assert tuple(colours[0, 0]) == PALETTE[0]
    assert tuple(colours[0, 4]) == PALETTE[1]
    assert tuple(colours[1, 1]) == (128, 128, 128)


def test_overlay_sizes(result: Segmentation) -> None:
    assert result.overlay(legend=False).size == (5, 2)
    with_legend = result.overlay()
    assert with_legend.width > 5 * 8  # enlarged, and named
    # Absent classes are not named.
    pixels = np.asarray(with_legend)
    assert (pixels == PALETTE[1]).all(-1).any()
    assert not (pixels == PALETTE[2]).all(-1).any()


def test_without_an_image_the_colours_are_drawn(result: Segmentation) -> None:
    bare = Segmentation(mask=result.mask, classes=CLASSES, palette=PALETTE)
    pixels = np.asarray(bare.overlay(legend=False))
    assert tuple(pixels[0, 0]) == PALETTE[0]


def test_notebooks_get_the_overlay(result: Segmentation) -> None:
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(result.overlay()))


def test_save(result: Segmentation, tmp_path: Path) -> None:
    written = result.save(tmp_path / "new/folder", "a", extra={"model": {"name": "tiny"}})
    folder = tmp_path / "new/folder"
    assert written == {
        "mask": folder / "a_mask.png",
        "overlay": folder / "a_overlay.png",
        "confidence": folder / "a_confidence.png",
        "summary": folder / "a.json",
    }
    with Image.open(written["mask"]) as mask:
        np.testing.assert_array_equal(np.asarray(mask), result.mask.numpy())
    with Image.open(written["confidence"]) as sure:
        expected = np.rint(np.linspace(0, 1, 10) * 255).reshape(2, 5)
        np.testing.assert_array_equal(np.asarray(sure), expected)
    summary = json.loads(written["summary"].read_text())
    assert summary["image"] == "photos/a.jpg"
    assert (summary["width"], summary["height"]) == (5, 2)
    assert summary["model"] == {"name": "tiny"}
    assert summary["mean_confidence"] == pytest.approx(0.5)
    assert summary["files"]["mask"] == "a_mask.png"
    assert summary["classes"][1] == {
        "id": 1,
        "name": "sky",
        "colour": list(PALETTE[1]),
        "pixels": 6,
        "fraction": 0.6,
    }
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in written.values())


def test_save_leaves_no_half_file(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path, "a")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save = Image.Image.save

    def interrupted(self: Image.Image, stream: io.BytesIO, **options: object) -> None:
        save(self, stream, **options)
        stream.truncate(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path, "a")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_unwritable_folder(result: Segmentation, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        result.save(tmp_path / "file", "a")


def test_what_does_not_fit_together_is_refused() -> None:
    mask = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected uint8"):
        Segmentation(mask=mask.long(), classes=CLASSES, palette=PALETTE)
    with pytest.raises(ValueError, match="3 classes, but 2 colours"):
        Segmentation(mask=mask, classes=CLASSES, palette=PALETTE[:2])
    image = torch.zeros(3, 3, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"image is \(3, 3, 2\)"):
        Segmentation(mask=mask, classes=CLASSES, palette=PALETTE, image=image)
