import time
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from support.tiny import TinyNet
from timm.layers import BatchNormAct2d
from torch import nn

from fsanet.data.batches import Loader
from fsanet.train.callbacks import (
    DepthwiseInFloat32,
    EpochLines,
    SynchronisedBatchNorm,
    Throughput,
)
from fsanet.train.checkpoints import export_model


def test_synchronised_norms_keep_values_and_fused_activations():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.BatchNorm2d(4)).eval()
    nn.init.uniform_(model[1].weight)
    images = torch.randn(2, 3, 5, 5)
    expected = model(images)
    converted = SynchronisedBatchNorm().apply(model)
    assert all(isinstance(converted[i], nn.SyncBatchNorm) for i in (1, 2))
    torch.testing.assert_close(converted(images), expected)
    assert model[0](images).min() < 0 <= converted[:2](images).min()  # the ReLU is there


def test_depthwise_convolutions_keep_float32_under_autocast():
    convolutions = [
        nn.Conv2d(4, 4, 3, groups=4, stride=2),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, stride=2),
    ]
    task = lightning.LightningModule()
    task.model = nn.ModuleList(convolutions)
    callback = DepthwiseInFloat32()

    def dtypes():
        with torch.autocast("cpu", torch.bfloat16):
            return [conv(torch.zeros(1, 4, 9, 9)).dtype for conv in convolutions]

    half, full = torch.bfloat16, torch.float32
    callback.on_fit_start(None, task)
    assert dtypes() == [full, full, half, half]
    callback.teardown(None, task, "fit")
    assert dtypes() == [half] * 4


def test_export_replaces_an_older_model(tmp_path):
    folder = tmp_path / "model"
    export_model(TinyNet(), folder)
    second = TinyNet()
    export_model(second, folder)
    assert {path.name for path in tmp_path.rglob("*")} == {
        "model",
        "config.json",
        "model.safetensors",
    }
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_failed_export_leaves_the_older_model(tmp_path):
    export_model(TinyNet(), tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    class Broken(TinyNet):
        def save_pretrained(self, folder):
            super().save_pretrained(folder)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export_model(Broken(), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


# ---- waiting for data


class Pauses(torch.utils.data.Dataset):
    """Numbers that take a while to read."""

    workers, cache = 0, False  # as the attributes of a data module

    def __init__(self, seconds: float, length: int = 8) -> None:
        self.seconds, self.length = seconds, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.ones(1)


class Slow(lightning.LightningModule):
    """A network whose step takes a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, index):
        time.sleep(self.seconds)
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Shares(Callback):
    def __init__(self) -> None:
        self.found = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.found.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def shares(read: float, step: float, tmp_path, *, window: int = 50, loader=Loader, others=()):
    """Metrics at the end of each epoch, and the warnings about waiting."""
    shares = Shares()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[Throughput(window), shares, EpochLines(16, "val/miou"), *others],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    data = lightning.LightningDataModule()
    data.workers, data.cache = 0, False
    data.train_dataloader = lambda: loader(Pauses(read))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Slow(step), datamodule=data)
    return shares.found, [str(w.message) for w in caught if "waits for data" in str(w.message)]


@pytest.mark.usefixtures("clock")
def test_slow_data_are_reported_once(tmp_path, capsys):
    found, warned = shares(0.06, 0.02, tmp_path)
    second = found[1]
    assert second["train/data_wait"] == pytest.approx(60 / 80)
    assert second["train/images_per_second"] == pytest.approx(1 / 0.08)
    # The first batch of the first epoch is not waited for: 7 x 60 of 7 x 80 + 20 ms.
    assert found[0]["train/data_wait"] == pytest.approx(420 / 580)
    assert len(warned) == 1
    assert "raise --data.workers (now 0; " in warned[0]
    assert "--data.cache true" in warned[0]
    assert "benchmarks/data_loading.py" in warned[0]
    assert "waiting for data 75 %" in capsys.readouterr().out


@pytest.mark.usefixtures("clock")
def test_slow_network_waits_for_nothing(tmp_path, capsys):
    found, warned = shares(0.0, 0.05, tmp_path)
    assert all(metrics["train/data_wait"] == 0 for metrics in found)
    assert all(metrics["train/images_per_second"] == pytest.approx(20) for metrics in found)
    assert warned == []
    out = capsys.readouterr().out
    assert "images/s" in out
    assert "waiting" not in out


@pytest.mark.usefixtures("clock")
def test_a_long_first_epoch_is_not_silent(tmp_path, capsys):
    shares(0.0, 12.0, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["3/16", "5/16", "8/16", "8/16", "16/16"]
    assert "2.6 min left" in lines[0]


@pytest.mark.usefixtures("clock")
def test_logging_and_other_callbacks_are_not_waiting(tmp_path):
    class Busy(Callback):
        def on_train_batch_end(self, *args):
            time.sleep(0.02)

    found, warned = shares(0.0, 0.01, tmp_path, others=[Busy()])
    assert all(metrics["train/data_wait"] == 0 for metrics in found)
    assert warned == []


def test_loaders_that_do_not_report_waiting(tmp_path):
    found, warned = shares(0.01, 0.0, tmp_path, loader=torch.utils.data.DataLoader)
    assert all("train/data_wait" not in metrics for metrics in found)
    assert all("train/images_per_second" in metrics for metrics in found)
    assert warned == []


@pytest.mark.usefixtures("clock")
def test_first_batch_of_a_run_is_start_up(tmp_path, monkeypatch):
    """Only that one is slow, in both epochs."""
    monkeypatch.setattr(
        Pauses, "__getitem__", lambda self, i: time.sleep(0.3 * (i == 0)) or torch.ones(1)
    )
    found, _ = shares(0.0, 0.03, tmp_path)
    first, second = (metrics["train/data_wait"] for metrics in found)
    assert first == 0
    assert second == pytest.approx(0.3 / (0.3 + 8 * 0.03))


@pytest.mark.usefixtures("clock")
def test_window_forgets_earlier_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Pauses, "__getitem__", lambda self, i: time.sleep(0.05 * (i < 4)) or torch.ones(1)
    )
    found, _ = shares(0.0, 0.03, tmp_path, window=3)
    assert all(metrics["train/data_wait"] == 0 for metrics in found)
