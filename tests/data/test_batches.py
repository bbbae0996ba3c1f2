import logging
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from support.miniature import write_cityscapes, write_coco, write_voc
from torch import Tensor

import fsanet.data
from fsanet.data import FolderData, SceneData, SegmentationFolder
from fsanet.data.batches import SeededData
from fsanet.errors import InputError

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|logging interval|persistent_workers|LeafSpec).*"
)


@pytest.fixture
def root(write):
    for split, names in (("train", "abcdefg"), ("val", "hijkl"), ("test", "mn")):
        write.pairs(split, list(names))
    return write.root


def folder(root, **options) -> FolderData:
    defaults = {
        "num_classes": 3,
        "crop": (10, 14),
        "batch_size": 2,
        "steps_per_epoch": 3,
        "workers": 0,
    }
    return FolderData(root, **{**defaults, **options})


def epoch(data, number: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


# ---- batches


def test_attributes_and_batches(root):
    data = folder(root, classes=["x", "y", "z"], num_classes=None, ignore_index=254)
    assert data.num_classes == 3
    assert data.classes == ("x", "y", "z")
    assert len(data.palette) == 3
    assert data.ignore_index == 254
    batches = epoch(data)
    assert len(batches) == 3
    for images, masks in batches:
        assert type(images) is Tensor
        assert type(masks) is Tensor
        assert images.shape == (2, 3, 10, 14)
        assert images.dtype is torch.uint8
        assert masks.shape == (2, 10, 14)
        assert masks.dtype is torch.int64
        assert set(masks.unique().tolist()) <= {0, 1, 2, 254}


@pytest.mark.parametrize("cache", [False, True])
def test_batches_do_not_depend_on_workers_cache_or_global_random_state(root, cache):
    torch.manual_seed(0)
    reference = epoch(folder(root), 5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert same(epoch(folder(root, workers=2, cache=cache), 5), reference)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(epoch(folder(root, cache=cache), 5), reference)
    assert not same(epoch(folder(root), 6), reference)
    assert not same(epoch(folder(root, seed=1), 5), reference)


def attach(data, rank: int, world: int, **options):
    data.trainer = SimpleNamespace(
        **{
            "global_rank": rank,
            "world_size": world,
            "training": True,
            "accumulate_grad_batches": data.accumulate,
            **options,
        }
    )
    return data


def test_two_processes_train_on_the_batches_of_one(root):
    whole = epoch(folder(root, batch_size=4), 2)
    parts = [epoch(attach(folder(root), rank, 2), 2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch[0], torch.cat([first[0], second[0]]))
        assert torch.equal(batch[1], torch.cat([first[1], second[1]]))


def test_accumulated_batches_are_one_large_batch(root):
    whole = epoch(folder(root, batch_size=6), 1)
    small = epoch(folder(root, batch_size=2, accumulate=3), 1)
    assert len(small) == 3 * len(whole)
    for i, (images, _) in enumerate(whole):
        assert torch.equal(images, torch.cat([x for x, _ in small[3 * i : 3 * i + 3]]))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_whole_images_once(root, world):
    data = SegmentationFolder(root, split="val", num_classes=3)
    seen = {}
    for rank in range(world):
        module = attach(folder(root), rank, world)
        for i, (images, masks) in enumerate(module.val_dataloader()):
            assert images.shape == (1, 3, 12, 16)
            seen[rank + i * world] = images[0], masks[0]
    assert sorted(seen) == list(range(5))
    for i, (image, mask) in seen.items():
        assert torch.equal(image, data[i][0])
        assert torch.equal(mask, data[i][1])


def test_splits_are_read_when_needed(root):
    data = folder(root, val_split="nothing", test_split="test")
    data.setup("test")
    assert len(data.test_dataloader()) == 2
    with pytest.raises(InputError, match="no split 'nothing'"):
        data.setup("fit")


# ---- presets


def test_scenes_keep_their_signs():
    data = SceneData(size=(48, 130), train_length=6, batch_size=3, steps_per_epoch=2, workers=0)
    images, masks = epoch(data)[0]
    assert images.shape == (3, 3, 48, 130)
    assert data.num_classes == 7
    assert all((mask == data.classes.index("light")).any() for mask in masks)
    raw = [data.dataset("train")[i][0] for i in range(6)]
    candidates = [*raw, *(x.flip(-1) for x in raw)]
    assert all(any(torch.equal(image, c) for c in candidates) for image in images)
    with pytest.raises(InputError, match="size="):
        SceneData(size=(96, 100))
    with pytest.raises(InputError, match="length=0"):
        SceneData(test_length=0)


@pytest.mark.parametrize(
    ("name", "write_data", "classes", "options"),
    [
        ("CityscapesData", write_cityscapes, 19, {"train_split": "trainval", "crop": [16, 20]}),
        ("VocAugData", write_voc, 21, {"train_split": "train", "crop": [16, 20]}),
        ("CocoData", write_coco, 80, {"size": [16, 20]}),
    ],
)
def test_command_line_options(tmp_path, capsys, name, write_data, classes, options):
    """jsonargparse finds a class by its short name, and its options with their help."""
    if name == "CocoData":
        pytest.importorskip("faster_coco_eval")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SeededData, "data")
    given = {"root": write_data(tmp_path), "batch_size": 2, "steps_per_epoch": 1, "workers": 0}
    given = [f"--data.{key}={value}" for key, value in {**given, **options}.items()]
    data = parser.instantiate(parser.parse_args([f"--data={name}", *given])).data
    assert type(data) is getattr(fsanet.data, name)
    assert data.num_classes == classes
    (batch,) = data.train_dataloader()
    assert [tuple(image.shape) for image in batch[0]] == [(3, 16, 20)] * 2
    if "train_split" in options:
        assert len(data.dataset("train")) == {"trainval": 5, "train": 2}[options["train_split"]]
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={name}"])
    text = " ".join(capsys.readouterr().out.split())
    for line in (
        "--data.root ROOT",
        "loader processes per training process; 0 loads in the training process itself",
        "flip training images horizontally with probability 0.5",
        "optimiser steps per Lightning epoch. (type: int, default: 100)",
    ):
        assert line in text
    assert "--data.classes" not in text


@pytest.mark.parametrize("name", fsanet.data.__all__)
def test_public_names(name):
    assert hasattr(fsanet.data, name)


# ---- bad input


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_file_is_one_line_from_any_worker(root, write, workers):
    write.mask("val/masks/j.png", [[77] * 16] * 12)
    before = set(multiprocessing.active_children())
    loader = folder(root, workers=workers).val_dataloader()
    with pytest.raises(InputError) as error:
        list(loader)
    assert set(multiprocessing.active_children()) <= before  # workers have ended
    assert str(error.value).startswith(f"{root}/val/masks/j.png: class id 77 out of range")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_sizes_that_differ_in_a_batch(root, write, workers):
    write.image("val/images/i.png", (5, 9))
    write.mask("val/masks/i.png", [[1] * 9] * 5)
    with pytest.raises(InputError, match=r"\(9x5 and 16x12 pixels\); set eval_batch_size=1"):
        list(folder(root, eval_batch_size=5, workers=workers).val_dataloader())
    assert len(list(folder(root, eval_batch_size=1).val_dataloader())) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
        ({"workers": -1}, "workers=-1"),
        ({"workers": 100_000}, "workers=100000: must be at most \\d+"),
        ({"batch_size": 1.5}, "batch_size=1.5: must be a whole number"),
        ({"accumulate": float("nan")}, "accumulate=nan"),
        ({"seed": 2**64}, "seed=18446744073709551616: must be at most"),
        ({"ignore_index": 256}, "ignore_index=256"),
        ({"fill": (999, 0, 0)}, "fill=999: must be at most 255"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"seed": -2}, "seed=-2"),
        ({"num_classes": None}, "give classes="),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        folder(tmp_path, **options)


def test_trainer_that_would_split_or_accumulate_otherwise_is_refused(root):
    data = attach(folder(root, accumulate=2), 0, 1, accumulate_grad_batches=1)
    with pytest.raises(InputError, match=r"accumulate_grad_batches=1\) differs from accumulate=2"):
        data.train_dataloader()
    connector = SimpleNamespace(use_distributed_sampler=True)
    data = attach(folder(root), 0, 2, _accelerator_connector=connector)
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(InputError, match="use_distributed_sampler=False"):
            loader()


# ---- under Lightning


class Recorder(LightningModule):
    """Trains one number, and records what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch, index):
        images, masks = batch
        weights = torch.arange(images.numel()).view_as(images)
        self.seen.append((self.current_epoch, int((images * weights).sum() + masks.sum())))
        return self.number * images.float().mean()

    def validation_step(self, batch, index):
        self.log("count", float(index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(root, tmp_path, epochs: int, workers: int, checkpoint=None, **callback):
    callback = callback or {"save_last": True}
    keep = ModelCheckpoint(tmp_path, monitor=None, **callback)
    recorder = Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[keep],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    data = folder(root, workers=workers)
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return recorder.seen, keep.last_model_path


@pytest.mark.parametrize(
    ("workers", "callback"),
    [
        (0, {}),
        (1, {"save_last": True, "save_on_train_epoch_end": True}),
        (1, {"save_last": True, "every_n_train_steps": 3}),
    ],
)
def test_resumed_training_sees_what_the_uninterrupted_one_does(root, tmp_path, workers, callback):
    whole, _ = fit(root, tmp_path / "whole", 4, 0)
    assert [e for e, _ in whole] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert len({value for _, value in whole}) == 12
    first, last = fit(root, tmp_path / "part", 2, workers, **callback)
    assert first == whole[:6]
    second, _ = fit(root, tmp_path / "part", 4, workers, checkpoint=last)
    assert second == whole[6:]
