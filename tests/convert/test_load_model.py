"""One function opens every saved network, by what its config.json says."""

import json

import pytest
import torch

from fsanet.convert import load_model
from fsanet.errors import InputError
from fsanet.models import FsaNet, MaskRcnnFsa, SegformerFsa


@pytest.fixture(scope="module")
def fsanet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsanet")
    FsaNet("resnet10t", num_classes=3, head_channels=8, aux_channels=0).save_pretrained(folder)
    return folder


def test_network_without_a_name_in_its_config(fsanet_folder):
    file = fsanet_folder / "config.json"  # as files were before they had one
    config = json.loads(file.read_text())
    config.pop("network", None)
    file.write_text(json.dumps(config))
    assert type(load_model(fsanet_folder)) is FsaNet
    assert load_model(str(fsanet_folder), k=3).head.attention.band == (0, 3, 0, 3)


def test_segformer(tmp_path):
    transformers = pytest.importorskip("transformers")
    saved = SegformerFsa(num_classes=3, zero_init=False).eval()
    saved.save_pretrained(tmp_path / "run" / "model")
    images = torch.randn(1, 3, 32, 40)
    for model in (load_model(tmp_path / "run" / "model"), load_model(tmp_path / "run")):
        assert type(model) is SegformerFsa
        assert torch.equal(model.eval()(images), saved(images))
    config = transformers.SegformerConfig(num_labels=3)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "plain")
    plain = load_model(tmp_path / "plain")
    assert type(plain) is SegformerFsa
    assert plain.attention is None


def test_detector(tmp_path):
    small = {"fpn_channels": 8, "box_channels": 8, "mask_channels": 8, "min_size": 64}
    saved = MaskRcnnFsa("resnet10t", num_classes=2, positions=("p4",), max_size=64, **small)
    saved.save_pretrained(tmp_path)
    found = load_model(tmp_path)
    assert type(found) is MaskRcnnFsa
    for name, value in saved.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    with pytest.raises(InputError, match=r"a MaskRcnnFsa, which is .* needs one for semantic"):
        load_model(tmp_path, task="semantic")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"network": "FutureNet"}', "'FutureNet', which this version does not know"),
        ("[1]", "holds no JSON object"),
        ("{", "not readable as JSON"),
    ],
)
def test_config_that_says_nothing_known(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_folder_that_holds_nothing(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json in it"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        load_model(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file, not a folder"):
        load_model(tmp_path / "file")
