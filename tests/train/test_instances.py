"""Training of detectors: losses, schedule, run folder, resuming."""

import csv
import warnings

import lightning
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("faster_coco_eval")

from fsanet.data import InstanceSceneData
from fsanet.errors import InputError
from fsanet.metrics.average_precision import AveragePrecision
from fsanet.models.mask_rcnn import MaskRcnnFsa
from fsanet.train import InstanceSegmentation, evaluate, train

FEW = {
    "rpn_pre_nms_top_n_test": 30,
    "rpn_post_nms_top_n_test": 10,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "box_batch_size_per_image": 16,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
}


def data_of(**options):
    options = {"batch_size": 2, "steps_per_epoch": 2, "workers": 0, **options}
    lengths = {"train_length": 6, "val_length": 3, "test_length": 2}
    return InstanceSceneData(picture=(64, 64), **lengths, **options)


def task_of(seed=0, **options):
    torch.manual_seed(seed)
    data = data_of()
    model = MaskRcnnFsa(
        "test_resnet",
        num_classes=3,
        classes=data.classes,
        positions=["p4"],
        k=2,
        fpn_channels=16,
        box_channels=32,
        mask_channels=8,
        anchor_sizes=(8, 16, 32, 48, 64),
        min_size=64,
        max_size=64,
        detector_options=FEW,
    )
    options = {"optimizer": "adamw", "lr": 2e-3, "warmup_steps": 1, **options}
    return InstanceSegmentation(model, classes=data.classes, **options)


def run(out, task=None, data=None, **options):
    options = {"steps": 4, "log_every": 1, "accelerator": "cpu", "progress": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*(eval mode|many workers|LeafSpec).*")
        return train(task or task_of(), data or data_of(), out=out, **options)


def values(out, key):
    with (out / "metrics.csv").open() as stream:
        return {int(r["step"]): float(r[key]) for r in csv.DictReader(stream) if r[key]}


def test_run_folder_holds_what_was_trained(tmp_path):
    result = run(tmp_path)
    assert result.steps == 4
    for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "model/config.json"):
        assert (tmp_path / name).is_file(), name
    parts = ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
    losses = [values(tmp_path, f"train/loss_{part}") for part in parts]
    for step, total in values(tmp_path, "train/loss").items():
        assert total == pytest.approx(sum(loss[step] for loss in losses), rel=1e-5)
    best = max(values(tmp_path, "val/mask_AP").values())
    assert result.best_score == pytest.approx(best)
    scores = evaluate(tmp_path, data_of(), split="val", accelerator="cpu", progress=False)
    assert scores.mask["AP"] == pytest.approx(best)
    assert scores.images == 3


def test_evaluation_scores_the_detections():
    task, data = task_of(), data_of()
    scores = evaluate(task.model, data, split="test", accelerator="cpu", progress=False)
    metric = AveragePrecision(data.classes)
    for image, target in (data.dataset("test")[i] for i in range(2)):
        metric.update(task.model.eval().detect([image]), [target])
    assert scores.as_dict() == metric.compute().as_dict()


def test_detections_are_sorted_and_masks_are_cut_at_half():
    model = task_of().model.eval()
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    found = model.detect([image])[0]
    raw = model([image.float() / 255])[0]
    assert len(found["scores"]) == len(raw["scores"]) > 1
    assert (found["scores"].diff() <= 0).all()
    order = raw["scores"].argsort(descending=True, stable=True)
    assert torch.equal(found["masks"], raw["masks"][order, 0] >= 0.5)
    assert found["masks"].shape[1:] == (50, 70)


def test_resumed_run_equals_uninterrupted(tmp_path):
    class Crash(lightning.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("power cut")

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole)
    with pytest.raises(RuntimeError, match="power cut"):
        run(cut, callbacks=[Crash()])
    torch.rand(7)
    assert run(cut, task=task_of(seed=9), resume=True).steps == 4
    first, second = (
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for out in (whole, cut)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert values(whole, "train/loss") == values(cut, "train/loss")
    weights = [load_file(out / "model" / "model.safetensors") for out in (whole, cut)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_norms_of_the_body_are_frozen_but_those_of_attention_learn(tmp_path):
    task = task_of()
    before = {n: b.clone() for n, b in task.model.named_buffers() if "running_mean" in n}
    run(tmp_path, task=task, steps=2)
    for name, buffer in task.model.named_buffers():
        if "running_mean" in name:
            assert torch.equal(buffer, before[name]) != (".attention." in name), name


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"milestones": [0.9, 0.5]}, "milestones"),
        ({"milestones": [16, 22]}, "milestones"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"warmup_ratio": 2.0}, "warmup_ratio"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(InputError, match=match):
        task_of(**options)


def test_run_refuses_before_it_writes(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match="warmup_steps=1: the training has only 1 steps"):
        run(out, steps=1)
    data = data_of()
    data.classes = ("one",)
    with pytest.raises(InputError, match="3 classes and the data set 1"):
        run(out, data=data)
    with pytest.raises(InputError, match="nothing to resume"):
        run(out, resume=True)
    assert not out.exists()
    task = task_of()
    with torch.no_grad():
        task.model.roi_heads.box_predictor.cls_score.bias[0] = torch.nan
    with pytest.raises(InputError, match=r"loss became nan at optimiser step 0"):
        run(out, task=task)


@pytest.mark.parametrize("options", [{"window": 8}, {"flip": True}, {"boundary": True}])
def test_ways_of_testing_for_semantic_segmentation_only(options):
    with pytest.raises(InputError, match="for semantic segmentation"):
        evaluate(task_of().model, data_of(), accelerator="cpu", **options)
