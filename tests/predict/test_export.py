"""Exported networks are the networks, at sizes that were not traced; and one-line errors."""

import builtins

import pytest
import torch

from fsanet import FsaNet
from fsanet.cli.main import main
from fsanet.errors import InputError
from fsanet.predict.export import export_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    network = FsaNet(
        "mobilenetv2_050", num_classes=3, head_channels=16, aux_channels=0, k=2, zero_init=False
    )
    folder = tmp_path_factory.mktemp("network")
    network.save_pretrained(folder)
    return folder


def plain(folder, images):
    network = FsaNet.from_pretrained(folder).eval()
    mean = torch.tensor(network.mean)[:, None, None]
    std = torch.tensor(network.std)[:, None, None]
    with torch.no_grad():
        return network((images - mean) / std)


def test_torch_program(folder, tmp_path, capsys):
    file = tmp_path / "net.pt2"
    assert main(["export", str(folder), "--out", str(file), "--size", "64", "96"]) == 0
    assert "largest difference of logits" in capsys.readouterr().out
    images = torch.rand(3, 3, 128, 64)
    got = torch.export.load(file).module()(images)
    torch.testing.assert_close(got, plain(folder, images), rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_onnx(folder, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    assert export_network(FsaNet.from_pretrained(folder), file, size=(64, 96)) < 1e-4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 128, 160)
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    want = plain(folder, images)
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "net.bin"], "end the name in .onnx or .pt2"),
        (["--out", "net.pt2", "--size", "60", "64"], "multiples of 32"),
        (["--out", "/proc/none/net.pt2", "--size", "64", "64"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_line(folder, options, message, capsys):
    assert main(["export", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_torch_cannot_store_is_said_and_leaves_nothing(folder, tmp_path, monkeypatch):
    def refuse(program, stream):
        stream.write(b"half")
        raise RuntimeError("op ceil is not known\nand a long report")

    monkeypatch.setattr(torch.export, "save", refuse)
    with pytest.raises(InputError, match=r"op ceil is not known\); write an \.onnx file"):
        export_network(FsaNet.from_pretrained(folder), tmp_path / "net.pt2", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named(folder, tmp_path, monkeypatch):
    known = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name="onnxruntime")
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"fsanet\[onnx\]"):
        export_network(FsaNet.from_pretrained(folder), tmp_path / "net.onnx")
