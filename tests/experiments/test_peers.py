"""The comparison with other networks, in two steps on a miniature of CamVid."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from support.miniature import write_camvid

from fsanet.errors import InputError

pytest.importorskip("segmentation_models_pytorch")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import peers
    finally:
        sys.path.pop(0)
    return peers


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    state = timm.create_model("mobilenetv2_035").state_dict()
    safetensors.torch.save_file(state, file)
    return file


@pytest.fixture
def network_options(weights):
    return [
        "--config=camvid_best",
        "--model.encoder=mobilenetv2_035",
        f"--model.encoder_weights={weights}",
        "--model.head_channels=8",
    ]


def run(peers, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["peers.py", *map(str, arguments)])
    return peers.main(peers.__doc__, peers.COMMANDS)


def peer(peers, name, weights=None):
    return peers.Peer(
        name,
        encoder="mobilenetv2_035",
        encoder_weights=weights and str(weights),
        encoder_options={"pad_type": "same"},
        num_classes=3,
        classes=("a", "b", "c"),
        palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    ).eval()


@pytest.mark.parametrize(
    "name",
    [
        "FPN",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("DeepLabV3Plus", "PSPNet", "Unet")),
    ],
)
def test_peer(peers, weights, name, tmp_path):
    """Its logits are those of smp's own network, its encoder has the file's weights."""
    network = peer(peers, name, weights)
    whole = getattr(peers.smp, name)(
        "tu-mobilenetv2_035", encoder_weights=None, classes=3, pad_type="same"
    ).eval()
    whole.encoder.load_state_dict(network.encoder.state_dict())
    whole.decoder.load_state_dict(network.decoder.state_dict())
    whole.segmentation_head.load_state_dict(network.classify.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(images), whole(images))
        assert network(images[..., :50, :61]).shape == (1, 3, 50, 61)
    donor = safetensors.torch.load_file(weights)
    found = network.encoder.model.state_dict()
    assert len(found) > 50
    assert all(torch.equal(value, donor[key]) for key, value in found.items())
    network.save_pretrained(tmp_path)
    again = peers.Peer.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


@pytest.mark.slow
def test_trained_resumed_timed_and_drawn(peers, monkeypatch, tmp_path, capsys, network_options):
    data = write_camvid(tmp_path / "data")
    where = ["--scores", tmp_path / "scores"]
    options = [*network_options, f"--data.root={data}", "--data.crop", "36", "48"]
    options += ["--data.batch_size=2", "--data.steps_per_epoch=2", "--task.warmup_steps=0"]
    options += ["--networks", "FsaNet", "Unet"]
    once = ["train", *where, "--out", tmp_path / "runs", *options, "--steps=2", "--seeds", 0, 1]
    assert run(peers, monkeypatch, *once) == 0
    names = {f"{name}-seed{seed}.json" for name in ("FsaNet", "Unet") for seed in (0, 1)}
    files = {file.name: file for file in (tmp_path / "scores").iterdir()}
    assert files.keys() == names
    for file in files.values():
        found = json.loads(file.read_text())
        assert found["steps"] == 2
        assert 0 <= found["test"]["miou"] <= 1
    files["Unet-seed1.json"].unlink()  # trained already, but not scored
    before = {name: file.stat().st_mtime_ns for name, file in files.items() if file.is_file()}
    assert run(peers, monkeypatch, *once) == 0
    assert json.loads(files["Unet-seed1.json"].read_text())["resumed"]
    assert before == {name: files[name].stat().st_mtime_ns for name in before}

    assert run(peers, monkeypatch, "cost", *where, *options, "--size", 36, 48, "--rounds=2") == 0
    cost = json.loads((tmp_path / "scores" / "cost.json").read_text())
    assert cost["networks"]["FsaNet"]["ratio"]["median"] == 1
    capsys.readouterr()
    figure = tmp_path / "figure.png"
    assert run(peers, monkeypatch, "table", *where, "--figure", figure) == 0
    lines = capsys.readouterr().out.splitlines()
    miou = [json.loads(files[f"Unet-seed{seed}.json"].read_text()) for seed in (0, 1)]
    mean = sum(100 * one["test"]["miou"] for one in miou) / 2
    assert lines[3].startswith(f"| Unet | 2 | {mean:.1f} ± ")
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_steps_side_by_side(peers, monkeypatch, tmp_path, capsys, network_options):
    where = ["--scores", tmp_path, "--size", 32, 64, "--batch", 2, "--rounds", 2]
    options = [*network_options, f"--data.root={tmp_path}"]
    assert run(peers, monkeypatch, "step", *where, *options) == 0
    found = json.loads((tmp_path / "step.json").read_text())
    networks = found["networks"]
    assert list(networks) == ["FsaNet", "FsaNet-no-decoder", "DeepLabV3Plus"]
    assert networks["FsaNet"]["parameters"] != networks["FsaNet-no-decoder"]["parameters"]
    assert networks["FsaNet"]["ratio"]["median"] == 1
    assert all(one["seconds"]["count"] == 2 for one in networks.values())
    # At the least, the images' features at stride 2 are kept for the backward pass.
    assert all(one["peak_bytes"] > 2 * 16 * 16 * 32 * 4 for one in networks.values())
    assert "| DeepLabV3Plus | " in capsys.readouterr().out


def test_wrong_input_is_one_line(peers, monkeypatch, tmp_path, capsys):
    with pytest.raises(InputError, match="no scores"):
        peers.read_runs(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(peers, monkeypatch, "table", "--scores", tmp_path)
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
