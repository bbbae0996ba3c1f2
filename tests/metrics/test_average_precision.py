"""Box and mask AP against pycocotools, the field's reference, on the same detections."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

pytest.importorskip("faster_coco_eval")

from support.detections import CLASSES, example, of_half, scored, tied
from support.two_processes import in_two_processes

from fsanet.metrics.average_precision import FIELDS, AveragePrecision


def reference(detections, targets, tmp_path):
    """pycocotools' twelve numbers by our names, for boxes and masks."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    mask_api = pytest.importorskip("pycocotools.mask")

    def rle(mask):
        code = mask_api.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        return {"size": code["size"], "counts": code["counts"].decode()}

    def xywh(box):
        x0, y0, x1, y1 = box.tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    annotations, results = [], []
    for target, found in zip(targets, detections, strict=True):
        for i in range(len(target["labels"])):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": target["image_id"],
                    "category_id": int(target["labels"][i]),
                    "bbox": xywh(target["boxes"][i]),
                    "segmentation": rle(target["masks"][i]),
                    "area": float(target["area"][i]),
                    "iscrowd": int(target["iscrowd"][i]),
                }
            )
        for i in range(len(found["labels"])):
            shared = {
                "image_id": target["image_id"],
                "category_id": int(found["labels"][i]),
                "score": float(found["scores"][i]),
            }
            box = {**shared, "bbox": xywh(found["boxes"][i])}
            results.append((box, {**shared, "segmentation": rle(found["masks"][i])}))
    height, width = targets[0]["masks"].shape[1:]
    truth = {
        "images": [{"id": t["image_id"], "height": height, "width": width} for t in targets],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    numbers = {}
    with contextlib.redirect_stdout(io.StringIO()):
        labelled = coco.COCO(str(tmp_path / "truth.json"))
        for index, kind in enumerate(("bbox", "segm")):
            found = labelled.loadRes([pair[index] for pair in results])
            run = evaluation.COCOeval(labelled, found, kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            order = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
            numbers[kind] = dict(zip(order, run.stats[:6], strict=True)) | {"AR100": run.stats[8]}
    return numbers


def test_numbers_are_those_of_pycocotools(tmp_path):
    detections, targets = example()
    scores = scored(detections, targets)
    expected = reference(detections, targets, tmp_path)
    for kind, ours in (("bbox", scores.box), ("segm", scores.mask)):
        assert set(ours) == set(FIELDS)
        for name, value in ours.items():
            assert value == pytest.approx(expected[kind][name], abs=1e-6), (kind, name)
    assert 0.05 < scores.mask["AP"] < 0.95  # neither nothing nor everything is right
    assert scores.box["AP"] != scores.mask["AP"]
    assert scores.box["AP_small"] > 0
    assert scores.images == len(targets)
    assert scores.instances == sum(len(t["labels"]) for t in targets)


def test_per_class_and_absent_classes():
    detections, targets = example()
    scores = scored(detections, targets)
    assert list(scores.mask_per_class) == list(CLASSES)
    present = [v for v in scores.mask_per_class.values() if v == v]
    assert np.mean(present) == pytest.approx(scores.mask["AP"], abs=1e-6)
    assert np.isnan(scores.mask_per_class["ghost"])
    assert scores.as_dict()["mask_per_class"]["ghost"] is None
    json.dumps(scores.as_dict(), allow_nan=False)


def test_perfect_detections():
    _, targets = example()
    wanted = [{**t, "iscrowd": torch.zeros_like(t["iscrowd"])} for t in targets]
    found = [{**t, "scores": torch.ones(len(t["labels"]))} for t in wanted]
    scores = scored(found, wanted)
    assert scores.box["AP"] == scores.mask["AP"] == pytest.approx(1.0)


def test_reset_and_nothing():
    metric = AveragePrecision(CLASSES)
    assert metric.compute() is None
    metric.update(*([part[0]] for part in example()))
    metric.reset()
    assert metric.compute() is None


def test_processes_with_uneven_shares_score_as_one():
    """Seven images: four for the first process, three for the second."""
    expected = scored(*tied()).as_dict()
    for found in in_two_processes(of_half):
        assert json.dumps(found) == json.dumps(expected)
