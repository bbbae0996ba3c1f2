"""Exported networks are the networks, at sizes that were not traced; and one-line errors."""

import json
import sys

import numpy as np
import pytest
import torch
from support.disk import files_limited_to
from support.onnx_files import onnx_file
from support.tiny import small_fsanet, thin_fsanet
from timm.layers import Conv2dSame
from torch import nn

from fsanet import FsaNet, Predictor, load_model
from fsanet.cli.main import main
from fsanet.errors import InputError
from fsanet.models import MaskRcnnFsa
from fsanet.predict.export import export_network, with_fixed_padding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    network = thin_fsanet(decoder="multiscale", decoder_channels=8)
    folder = tmp_path_factory.mktemp("network")
    network.save_pretrained(folder)
    return folder


def plain(folder, images):
    network = FsaNet.from_pretrained(folder).eval()
    mean = torch.tensor(network.mean)[:, None, None]
    std = torch.tensor(network.std)[:, None, None]
    with torch.no_grad():
        return network((images - mean) / std)


def test_same_padding_in_whole_numbers():
    """An encoder with TensorFlow's padding: its expressions of dynamic sizes would explode."""
    network = small_fsanet(
        "mobilenetv2_035", output_stride=16, encoder_options={"pad_type": "same"}
    ).eval()
    fixed = with_fixed_padding(network)
    with torch.no_grad():
        for size in ((64, 96), (75, 121), (90, 83)):
            images = torch.rand(1, 3, *size)
            assert torch.equal(fixed(images), network(images))
    assert not any(isinstance(module, Conv2dSame) for module in fixed.modules())
    assert any(isinstance(module, Conv2dSame) for module in network.modules())


@pytest.mark.slow
def test_torch_program(folder, tmp_path, capsys):
    file = tmp_path / "net.pt2"
    assert main(["export", str(folder), "--out", str(file), "--size", "64", "96"]) == 0
    assert "largest difference of logits" in capsys.readouterr().out
    images = torch.rand(3, 3, 128, 64)
    got = torch.export.load(file).module()(images)
    torch.testing.assert_close(got, plain(folder, images), rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.slow
def test_onnx(folder, tmp_path):
    """Names, metadata, and the network's masks at sizes that are odd and were not traced."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    network = FsaNet.from_pretrained(folder)
    assert export_network(network, file, size=(64, 96)) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", 3, "height", "width"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list(network.classes)
    assert said["input"] == "float32 0..1"
    images = torch.rand(1, 3, 131, 177)
    (got,) = session.run(None, {"image": images.numpy()})
    want = plain(folder, images)
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-3, atol=1e-4)
    photo = torch.randint(0, 256, (3, 45, 101), dtype=torch.uint8)
    for options in ({}, {"window": 64}):
        masks = [Predictor(one, **options)(photo).mask for one in (network, load_model(file))]
        if options:  # the same windows; a whole image below 64 pixels is padded
            assert (masks[0] == masks[1]).float().mean() > 0.999


def test_images_in_and_class_ids_out(tmp_path, capsys):
    """As decoded, (H, W, 3), to class ids: nothing but the runtime is needed."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    network = Named()
    options = {"size": (64, 96), "argmax": True, "preprocess": True}
    assert export_network(network, file, **options) == 0
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (image,), (classes,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["batch", "height", "width", 3])
    assert (image.type, classes.type) == ("tensor(uint8)", "tensor(uint8)")
    assert (classes.name, classes.shape) == ("classes", ["batch", "height", "width"])
    photo = np.random.default_rng(0).integers(0, 256, (2, 75, 101, 3), dtype=np.uint8)
    (got,) = session.run(None, {"image": photo})
    x = (photo / 255 - network.mean) / network.std
    np.testing.assert_array_equal(got, x[..., :2].argmax(-1))
    same = Predictor(load_model(file))(photo[0]).mask.numpy()
    np.testing.assert_array_equal(same, got[0])
    about = session.get_modelmeta().custom_metadata_map
    assert about["input"] == "uint8 0..255"
    assert about["output"] == "class ids"
    program = tmp_path / "net.pt2"
    assert export_network(network, program, **options) == 0
    said = {"fsanet.json": ""}
    module = torch.export.load(program, extra_files=said).module()
    np.testing.assert_array_equal(module(torch.from_numpy(photo)).numpy(), got)
    assert json.loads(said["fsanet.json"]) == about


@pytest.mark.slow
def test_instances(tmp_path, capsys):
    """What torchvision's detector finds, at a size that was not traced; other programs run it."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    widths = {"fpn_channels": 8, "box_channels": 8, "mask_channels": 8}
    sizes = {"min_size": 64, "max_size": 128}
    network = MaskRcnnFsa("test_resnet", num_classes=2, positions=("p4",), **widths, **sizes).eval()
    with torch.no_grad():
        for weight in network.attention_parameters().values():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    network.save_pretrained(tmp_path / "network")
    file = tmp_path / "net.onnx"
    options = ["--out", str(file), "--size", "64", "96", "--preprocess"]
    assert main(["export", str(tmp_path / "network"), *options]) == 0
    assert "largest difference of scores" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    photo = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    found = session.run(None, {"image": photo})
    with torch.no_grad():
        (want,) = network([torch.from_numpy(photo).permute(2, 0, 1).float() / 255])
    assert len(want["boxes"]) > 0
    for output, got in zip(session.get_outputs(), found, strict=True):
        np.testing.assert_allclose(got, want[output.name].numpy(), rtol=1e-3, atol=1e-3)
    assert session.get_modelmeta().custom_metadata_map["output"] == "instances"
    for name, options in (("net.pt2", {}), ("net.onnx", {"argmax": True})):
        with pytest.raises(InputError, match=r"instances are exported to \.onnx"):
            export_network(network, tmp_path / name, **options)
    assert main(["predict", "photo.png", "--model", str(file), "--out", str(tmp_path)]) == 2
    assert "'instances'" in capsys.readouterr().err


def test_an_exported_file_is_not_exported_again(tmp_path):
    pytest.importorskip("onnxruntime")
    file = onnx_file(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="is an exported network"):
        export_network(file, tmp_path / "again.onnx")


class Named(nn.Module):
    """A network of two classes and a normalisation, without weights."""

    classes, palette = ("a", "b"), ((0, 0, 0), (255, 0, 0))
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)

    def normalise(self, images):
        x = images if images.is_floating_point() else images.float() / 255
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def forward(self, images):
        return images[:, :2]


class Small(nn.Module):
    """Exports in no time."""

    def normalise(self, images):
        return images - 0.5

    def forward(self, images):
        return images[:, :1] * 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.bin", {}, "ends in .onnx or .pt2"),
        ("net.pt2", {"size": (60, 64)}, "multiples of 32"),
        ("net.pt2", {"size": (32, 64)}, "at least 64"),
        ("net.pt2", {"size": (2**20, 64)}, "at most 16384"),
        ("file/net.pt2", {"size": (64, 64)}, "cannot be written"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, name, options, message):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message) as caught:
        export_network(Small(), tmp_path / name, **options)
    assert "\n" not in str(caught.value)


def test_the_normalisation_is_part_of_the_program(tmp_path):
    assert export_network(Small(), tmp_path / "net.pt2", size=(64, 64), dynamic=False) == 0
    program = torch.export.load(tmp_path / "net.pt2").module()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(program(images), images[:, :1] * 2 - 1)
    with pytest.raises(AssertionError, match="64"):
        program(torch.rand(1, 3, 96, 64))  # not dynamic


def test_what_torch_cannot_store_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(program, stream, **options):
        stream.write(b"half")  # nothing of it may reach the disk
        raise RuntimeError("op ceil is not known\nand a long report")

    monkeypatch.setattr(torch.export, "save", refuse)
    with pytest.raises(InputError, match=r"op ceil is not known\); write an \.onnx file"):
        export_network(Small(), tmp_path / "net.pt2", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    refused = pytest.raises(InputError, match=r"net\.pt2: cannot be written \(File too large\)")
    with files_limited_to(1000), refused:
        export_network(Small(), tmp_path / "net.pt2", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        InputError, match=r"needs onnxruntime: pip install 'fsanet\[onnx\]', or write a \.pt2"
    ):
        export_network(Small(), tmp_path / "net.onnx")
