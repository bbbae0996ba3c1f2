import pytest
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from tiny import TinyNet
from torch import nn

from fsanet.tasks.callbacks import SynchronisedBatchNorm, export_model


def test_synchronised_norms_keep_values_and_fused_activations():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.BatchNorm2d(4)).eval()
    nn.init.uniform_(model[1].weight)
    images = torch.randn(2, 3, 5, 5)
    expected = model(images)
    converted = SynchronisedBatchNorm().apply(model)
    assert all(isinstance(converted[i], nn.SyncBatchNorm) for i in (1, 2))
    torch.testing.assert_close(converted(images), expected)
    assert model[0](images).min() < 0 <= converted[:2](images).min()  # the ReLU is there


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
