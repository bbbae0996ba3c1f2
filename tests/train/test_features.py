"""Training on cached features of frozen stages."""

import csv
import json
import os

import lightning
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as F

from fsanet.data import InstanceSceneData, SceneData
from fsanet.errors import InputError
from fsanet.models import FsaNet
from fsanet.models.tail import EncoderTail
from fsanet.signals import Interrupted
from fsanet.train import SemanticSegmentation, train
from fsanet.train.features import CachedItems, CropFeatures, FeatureCache, Variant


def data_of(**options):
    options = {"batch_size": 2, "steps_per_epoch": 3, "workers": 0, "seed": 5} | options
    lengths = {"train_length": 4, "val_length": 2, "test_length": 1}
    return SceneData(size=(48, 128), **lengths, **options)


def task_of(seed=0, dropout=0.2, **options):
    torch.manual_seed(seed)
    small = {"channels": [8, 8, 8, 16], "stem_width": 8}
    model = FsaNet(
        "test_resnet",
        num_classes=len(SceneData().classes),
        encoder_options=small,
        head_channels=8,
        aux_channels=8,
        dropout=dropout,
        classes=SceneData().classes,
    )
    return SemanticSegmentation(
        model, classes=SceneData().classes, **{"freeze": "encoder", "lr": 0.05} | options
    )


def run(out, task=None, data=None, **options):
    options = {"steps": 6, "accelerator": "cpu", "log_every": 1, "progress": False} | options
    return train(task or task_of(), data or data_of(), out=out, **options)


def logged(out, key):
    with (out / "metrics.csv").open() as stream:
        return [float(row[key]) for row in csv.DictReader(stream) if row[key]]


class Stop(lightning.Callback):
    """Raises an error after a step."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error or RuntimeError("power cut")

    def on_train_batch_end(self, trainer, *args, **kwargs):
        if trainer.global_step == self.step:
            raise self.error


def computed(out, task, data, scales):
    """The items of a cache, computed within a run that stops at its first step."""
    with pytest.raises(RuntimeError, match="power cut"):
        run(out, task, data, cache_features=scales, callbacks=[Stop(1)])
    assert task.tail is data.train_items is None  # both can be used without a cache again
    return CachedItems(out / "features", EncoderTail(task.model, task.frozen_stages))


def test_items_are_the_features_of_resized_padded_and_mirrored_images(tmp_path):
    task, data = task_of(), data_of(crop=(48, 112))
    items = computed(tmp_path, task, data, [0.5, 1.25])
    assert len(items) == 4
    model = task.model.eval()
    for number in range(4):
        image, mask = data.dataset("train")[number]
        variants, _ = items[number]
        for variant, size in zip(variants, [(24, 64), (60, 160)], strict=True):
            pixels = F.pad(
                F.resize(image, size, antialias=True),
                [0, 0, max(0, 112 - size[1]), max(0, 48 - size[0])],
                fill=list(data.fill),
            )
            assert variant.labels.shape == pixels.shape[1:]
            plain = mask.as_subclass(torch.Tensor)[None]  # older torchvision: another nearest
            ids = F.resize(plain, size, F.InterpolationMode.NEAREST_EXACT)[0]
            assert (variant.labels[: size[0], : size[1]] == ids).all()
            assert (variant.labels[size[0] :] == 255).all()
            assert (variant.labels[:, size[1] :] == 255).all()
            for mirrored, kept in enumerate(variant.features):
                view = pixels.flip(-1) if mirrored else pixels
                with torch.no_grad():
                    features = model.encoder_features(model.normalise(view[None]))
                for feature, index in zip(kept, [3, 4], strict=True):
                    expected = features[index][0].permute(1, 2, 0)
                    torch.testing.assert_close(feature.float(), expected, rtol=1e-3, atol=1e-3)


def test_crops_of_features_and_labels_are_the_same_place():
    """Features and labels that say where they are."""
    data = data_of(crop=(16, 40), class_ratio=1.0)
    height, width = 40, 72
    labels = torch.arange(height * width).view(height, width) % 251
    features = [[], []]
    for stride in (4, 8):
        for mirrored, whole in enumerate((labels, labels.flip(1))):
            features[mirrored].append(whole[::stride, ::stride, None].half())
    variant = Variant(labels.to(torch.uint8), features)
    places = set()
    for seed in range(400):
        torch.manual_seed(seed)
        vector, ids = CropFeatures(data, [4, 8])([variant], None)
        assert ids.shape == (16, 40)
        fine, coarse = vector.split([4 * 10, 2 * 5])
        assert torch.equal(fine.view(4, 10).long(), ids[::4, ::4].long())
        assert torch.equal(coarse.view(2, 5).long(), ids[::8, ::8].long())
        places.add(tuple(ids[0, :3].tolist()))
    assert len(places) == 4 * 5 * 2  # all of them


@pytest.mark.parametrize("freeze", [3, "encoder"])
def test_losses_are_those_of_training_on_images(tmp_path, freeze):
    """Whole images without mirroring: nothing but the rounding of features differs."""
    run(tmp_path / "images", task_of(freeze=freeze), data_of(flip=False))
    run(tmp_path / "features", task_of(freeze=freeze), data_of(flip=False), cache_features=[1.0])
    expected = logged(tmp_path / "images", "train/loss")
    assert logged(tmp_path / "features", "train/loss") == pytest.approx(expected, rel=2e-3)
    assert len(expected) == 6
    scores = [logged(tmp_path / name, "val/miou") for name in ("images", "features")]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert not (tmp_path / "features" / "features").exists()


@pytest.mark.parametrize("cached", [pytest.param(None, marks=pytest.mark.slow), [1.0]])
def test_bfloat16_stays_close(tmp_path, cached):
    """Losses, statistics of batch norms and weights are float32, and within bfloat16's rounding."""
    kept = []

    def training(name, precision, channels_last):
        task = task_of(freeze=2, dropout=0.0, channels_last=channels_last, lr=0.01)
        seen = []

        class Look(lightning.Callback):
            def on_train_batch_end(self, trainer, module, outputs, *args):
                seen.append(outputs["loss"].dtype)

        data = data_of(flip=False)
        options = {"precision": precision, "cache_features": cached, "callbacks": [Look()]}
        run(tmp_path / name, task, data, **options)
        assert set(seen) == {torch.float32}
        kept.append(task.model.state_dict())
        return logged(tmp_path / name, "train/loss")

    expected = training("float", "32-true", False)
    assert training("bfloat", "bf16-mixed", True) == pytest.approx(expected, rel=2e-2)
    exact, rounded = kept
    for name, value in rounded.items():
        if "running" in name:
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, exact[name], rtol=2e-2, atol=5e-3, msg=name)


@pytest.mark.parametrize(
    "error", [pytest.param(RuntimeError("power cut"), marks=pytest.mark.slow), Interrupted()]
)
def test_resumed_run_equals_uninterrupted(tmp_path, error):
    options = {"freeze": 3, "ema": 0.9}

    def data():
        return data_of(crop=(32, 64))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, task_of(**options), data(), cache_features=[0.75, 1.0])
    stop = Stop(4, error)
    with pytest.raises(type(error)):
        run(cut, task_of(**options), data(), cache_features=[0.75, 1.0], callbacks=[stop])
    written = (cut / "features" / "index.json").stat().st_mtime_ns
    times = []

    class Look(lightning.Callback):
        def on_train_start(self, *args):
            times.append((cut / "features" / "index.json").stat().st_mtime_ns)

    # The frozen weights are those of the checkpoint, whatever the network started from.
    other = task_of(seed=9, **options)
    run(cut, other, data(), cache_features=[0.75, 1.0], resume=True, callbacks=[Look()])
    assert times == [written]
    both = [
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for out in (whole, cut)
    ]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    best = [load_file(out / "model" / "model.safetensors") for out in (whole, cut)]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())
    run(cut, task_of(**options), data(), cache_features=[0.75, 1.0], resume=True)  # it is done
    assert not (cut / "features").exists()


def test_features_are_computed_again_when_anything_else_is_asked_for(tmp_path):
    def fingerprint(seed=0, scales=(1.0,), freeze="encoder", **options):
        cache = FeatureCache(task_of(seed, freeze=freeze), data_of(**options), tmp_path, scales)
        return cache._fingerprint(cache.data.items(cache.data.dataset("train")))

    first = fingerprint()
    assert fingerprint() == first
    others = [
        fingerprint(seed=1),
        fingerprint(scales=(1.0, 1.5), crop=(32, 32)),
        fingerprint(crop=(64, 96)),
        fingerprint(flip=False),
        fingerprint(freeze=3),
        fingerprint(scene_seed=1),
    ]
    assert len({first, *others}) == 7


def test_a_cache_left_by_other_settings_is_not_trained_on(tmp_path):
    task = task_of()
    computed(tmp_path, task, data_of(), [1.0])
    index = json.loads((tmp_path / "features" / "index.json").read_text())
    with pytest.raises(RuntimeError, match="power cut"):
        run(
            tmp_path,
            task_of(1),
            data_of(),
            cache_features=[1.0],
            callbacks=[Stop(2)],
            overwrite=True,
        )
    again = json.loads((tmp_path / "features" / "index.json").read_text())
    assert again["fingerprint"] != index["fingerprint"]


@pytest.mark.parametrize(
    "change", ["[" * 100_000, {"sizes": [[[8, 8]]]}, {"sizes": "many"}, {"bytes": 0}, "pipes"]
)
def test_a_damaged_cache_is_computed_again(change, tmp_path):
    cache = FeatureCache(task_of(), data_of(), tmp_path, [1.0])
    items = cache.data.items(cache.data.dataset("train"))
    cache._compute(items, "same")
    assert cache._is_whole("same")
    file = tmp_path / "features" / "index.json"
    whole = json.loads(file.read_text())
    if change == "pipes":
        for path in (file, file.with_name("features.bin")):
            path.unlink()
            os.mkfifo(path)
    else:
        file.write_text(change if isinstance(change, str) else json.dumps(whole | change))
    assert not cache._is_whole("same")
    cache._compute(items, "same")
    assert cache._is_whole("same")
    assert json.loads(file.read_text()) == whole


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": {"freeze": 0}}, "no stage is frozen; give --task.freeze"),
        ({"data": {"photometric": True}}, "give --data.photometric false"),
        ({"scales": [0.5, 1.0]}, "whole images take one scale; give --data.crop"),
        ({"scales": []}, "at least one scale"),
        ({"scales": [0.0]}, "cache_features=0.0"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_anything_is_written(tmp_path, options, match):
    task, data = task_of(**options.get("task", {})), data_of(**options.get("data", {}))
    with pytest.raises(InputError, match=match):
        run(tmp_path / "run", task, data, cache_features=options.get("scales", [1.0]))
    assert not (tmp_path / "run").exists()


def test_instances_are_refused(tmp_path):
    with pytest.raises(InputError, match="for semantic segmentation"):
        FeatureCache(task_of(), InstanceSceneData(), tmp_path, [1.0])


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(InputError, match=r"the features of 4 images take about 0\.00 GB"):
        run(tmp_path, cache_features=[1.0])


def test_the_stated_size_is_that_of_the_file(tmp_path, capsys):
    task, data = task_of(), data_of(crop=(32, 64))
    computed(tmp_path, task, data, [0.5, 1.0])
    stated = 0
    tail = EncoderTail(task.model, "encoder")
    for h, w in ((32, 64), (48, 128)):
        values = sum(-(-h // 8) * -(-w // 8) * channels for channels in tail.channels)
        stated += h * w + 2 * 2 * values
    assert (tmp_path / "features" / "features.bin").stat().st_size == 4 * stated
    assert "features of 4 images take about 0.00 GB" in capsys.readouterr().err
