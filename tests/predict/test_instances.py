"""Instances of a folder: resumed and shared runs against one; COCO's file of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("faster_coco_eval")

from fsanet.data.annotations import decode_masks
from fsanet.errors import InputError
from fsanet.models.mask_rcnn import MaskRcnnFsa
from fsanet.predict.instances import InstancePredictor, predict_instances_to_folder

OF_A_RUN = {"seconds", "images_per_second", "done_before", "processes", "versions"}


@pytest.fixture(scope="module")
def model() -> MaskRcnnFsa:
    torch.manual_seed(0)
    return MaskRcnnFsa(
        "resnet10t",
        num_classes=2,
        classes=("cat", "dog"),
        category_ids=(17, 18),
        positions=("p4",),
        k=2,
        fpn_channels=16,
        box_channels=16,
        mask_channels=8,
        min_size=64,
        max_size=64,
        detector_options={
            "rpn_post_nms_top_n_test": 10,
            "box_score_thresh": 0.0,
            "box_detections_per_img": 4,
        },
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, the second of which cannot be read, and one named as the file of results."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("a", "c", "d", "results")):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
    (root / "b.png").write_bytes(b"")
    return root


def predict(model: MaskRcnnFsa, images: Path, out: Path, **options: Any) -> dict[str, Any]:
    return predict_instances_to_folder(model, images, out, score=0.0, **options)


def contents(out: Path) -> dict[str, Any]:
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    summary = json.loads(files.pop("summary.json"))
    return files | {"summary": {k: v for k, v in summary.items() if k not in OF_A_RUN}}


def test_results_are_those_of_each_image_by_its_number(
    model: MaskRcnnFsa, images: Path, tmp_path: Path
) -> None:
    summary = predict(model, images, tmp_path)
    assert [Path(e["image"]).name for e in summary["files"]] == [
        *("a.png", "c.png", "d.png", "results.png"),
    ]
    assert [Path(entry["image"]).name for entry in summary["failed"]] == ["b.png"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == summary["instances"] == sum(e["instances"] for e in summary["classes"])
    predictor = InstancePredictor(model)
    for entry in summary["files"]:
        found = predictor(entry["image"])
        mine = [result for result in results if result["image_id"] == entry["id"]]
        assert len(mine) == len(found) > 0
        masks = decode_masks([result["segmentation"] for result in mine], 48, 64)
        assert torch.equal(masks.bool(), found.masks)
        assert [r["category_id"] for r in mine] == [(17, 18)[label - 1] for label in found.labels]
    assert (tmp_path / "results.png.json").is_file()  # of the image of that name


def test_interrupted_and_resumed_equals_uninterrupted(
    model: MaskRcnnFsa, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model, images, tmp_path / "whole")
    call = InstancePredictor.__call__

    def interrupted(self: InstancePredictor, image: Any) -> Any:
        if Path(image).name == "d.png":
            raise KeyboardInterrupt
        return call(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(InstancePredictor, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(model, images, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("?.json")) == ["a.json", "c.json"]
    assert not (tmp_path / "out/results.json").exists()
    seen: list[str] = []

    def watched(self: InstancePredictor, image: Any) -> Any:
        seen.append(Path(image).name)
        return call(self, image)

    monkeypatch.setattr(InstancePredictor, "__call__", watched)
    summary = predict(model, images, tmp_path / "out", resume=True)
    assert seen == ["b.png", "d.png", "results.png"]
    assert summary["done_before"] == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_resume_with_other_settings_is_refused(
    model: MaskRcnnFsa, images: Path, tmp_path: Path
) -> None:
    predict(model, images, tmp_path)
    with pytest.raises(InputError, match=r"with score 0\.0, not 0\.5"):
        predict_instances_to_folder(model, images, tmp_path, score=0.5, resume=True)
    with pytest.raises(InputError, match="with names true, not false"):
        predict(model, images, tmp_path, names=False, resume=True)
