"""Seeded training batches stay the same from version to version, for every data module.

Orders and class ids are compared exactly, pixels by their mean: decoders and resizing may differ by
a level between machines.
"""

import hashlib

import pytest
import torch
from support.miniature import (
    write_ade20k,
    write_camvid,
    write_cityscapes,
    write_coco,
    write_voc,
)

import fsanet.data

SMALL = {"batch_size": 2, "steps_per_epoch": 2, "workers": 0, "seed": 3}
SCENES = {"train_length": 7, "val_length": 1, "test_length": 1}
#: Data module, writer of its files, options, digest of order and labels, mean of all pixels.
CASES = [
    ("SceneData", None, {"size": (48, 130), **SCENES}, "38dac43ea770869c", 119.5),
    (
        "CityscapesData",
        write_cityscapes,
        {"crop": (33, 33), "resize": (80, 40)},
        "24ef630cde843a75",
        35.02,
    ),
    (
        "Ade20kData",
        write_ade20k,
        {"crop": (24, 40), "resize": (100, 50)},
        "76a03002e6c74dce",
        91.25,
    ),
    ("VocAugData", write_voc, {"crop": (24, 40)}, "19cfdf665e1332bf", 31.87),
    ("CamVidData", write_camvid, {}, "202c9200763581fd", 113.52),
    (
        "FolderData",
        write_camvid,
        {"num_classes": 11, "crop": (30, 30), "cache": True},
        "903dc4738cd0c1e9",
        51.82,
    ),
    ("CocoData", write_coco, {"size": (48, 64)}, "8d3efc2190bc0235", 67.16),
    (
        "InstanceSceneData",
        None,
        {"picture": (64, 80), "photometric": True, **SCENES},
        "ff5ef51f8337a954",
        112.83,
    ),
]


@pytest.mark.parametrize(
    ("name", "write", "options", "digest", "mean"), CASES, ids=[case[0] for case in CASES]
)
def test_seeded_batches(tmp_path, name, write, options, digest, mean):
    if name == "VocAugData":
        pytest.importorskip("scipy")
    if name == "CocoData":
        pytest.importorskip("faster_coco_eval")
    root = () if write is None else (write(tmp_path),)
    data = getattr(fsanet.data, name)(*root, **options, **SMALL)
    labels, pixels = hashlib.sha256(), []
    for epoch in (0, 3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        labels.update(str([tuple(key) for key in loader.sampler]).encode())
        for images, targets in loader:
            pixels += [image.double().mean() for image in images]
            masks = [targets] if torch.is_tensor(targets) else [t["masks"] for t in targets]
            for mask in masks:
                labels.update(f"{tuple(mask.shape)}{mask.dtype}".encode() + mask.numpy().tobytes())
    found = (labels.hexdigest()[:16], round(float(torch.stack(pixels).mean()), 2))
    assert found == (digest, pytest.approx(mean, abs=0.2))
