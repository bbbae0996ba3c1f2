"""What predictions draw and save."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.errors import InputError
from fsanet.predict.draw import instance_colours
from fsanet.predict.result import Instances, Segmentation

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


def instances(**changes: Any) -> Instances:
    """Two squares that overlap on a black image of 40 x 60; the first is the surer."""
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 5:25, 5:25] = True
    masks[1, 15:35, 15:45] = True
    values = {
        "boxes": torch.tensor([[5.0, 5, 25, 25], [15, 15, 45, 35]]),
        "masks": masks,
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.9, 0.4]),
        "classes": ("cat", "dog"),
        "category_ids": (17, 18),
        "image": torch.zeros(3, 40, 60, dtype=torch.uint8),
    }
    return Instances(**{**values, **changes})


def test_ids_of_the_surer_lie_on_top() -> None:
    ids = instances().id_map()
    assert ids[20, 20] == 1  # in both
    assert ids[30, 30] == 2
    assert ids[0, 0] == 0
    assert np.array_equal(np.asarray(instances().id_image()), ids.numpy())


def test_overlay_tints_masks_and_leaves_the_rest() -> None:
    pixels = np.asarray(instances().overlay(alpha=0.5, names=False)).astype(int)
    first, second = (np.array(colour) for colour in instance_colours(2))
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert np.abs(pixels[10, 10] - first / 2).max() <= 1
    assert np.abs(pixels[30, 30] - second / 2).max() <= 1
    assert pixels[5, 15].tolist() == first.tolist()  # its box
    assert np.abs(pixels[20, 20] - (second / 4 + first / 2)).max() <= 1  # drawn after the other


def test_names_are_written_inside_the_image() -> None:
    plain = np.asarray(instances().overlay(names=False))
    named = np.asarray(instances().overlay(names=True))
    assert plain.shape == named.shape == (40, 60, 3)
    assert (plain != named).any()


def test_results_are_in_cocos_terms() -> None:
    entries = instances().results(image_id=7)
    assert [e["category_id"] for e in entries] == [18, 17]
    assert entries[1]["bbox"] == [15, 15, 30, 20]
    assert entries[0]["segmentation"]["size"] == [40, 60]
    assert {e["image_id"] for e in entries} == {7}


def test_lowest_score() -> None:
    assert len(instances().above(0.5)) == 1
    assert instances().above(0.95).results(1) == []
    assert instances().above(0.95).overlay().size == (60, 40)
    with pytest.raises(InputError, match=r"score is 1\.5"):
        instances().above(1.5)


def test_more_instances_than_8_bits_hold() -> None:
    masks = torch.zeros(300, 40, 60, dtype=torch.bool)
    for index in range(300):
        masks[index, index // 60, index % 60] = True
    many = instances(
        masks=masks,
        boxes=torch.rand(300, 4),
        labels=torch.ones(300, dtype=torch.long),
        scores=torch.linspace(1, 0, 300),
    )
    ids = np.asarray(many.id_image())
    assert ids.max() == 300
    assert np.array_equal(ids, many.id_map().numpy())


def test_saved_files_of_instances(tmp_path: Path) -> None:
    written = instances().save(tmp_path, "a")
    assert {path.name for path in written.values()} == {
        *("a_instances.png", "a_overlay.png", "a.json"),
    }
    with pytest.raises(InputError, match="alpha is 2"):
        instances().save(tmp_path, "b", alpha=2)


def test_instances_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks are .*expected bool \(2, 40, 60\)"):
        instances(masks=torch.zeros(2, 40, 50, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        instances(labels=torch.tensor([1]))
