"""Saved networks of every kind are opened by one function, converted ones as converted."""

import json

import pytest
import torch
from support.tiny import regular_fsanet, small_fsanet

from fsanet import FrequencySelfAttention, FsaNet, convert_attention
from fsanet.convert import load_model, save_converted
from fsanet.convert.grid import GridSelfAttention
from fsanet.convert.saved import CONVERSION_FILE, apply_conversion
from fsanet.errors import InputError
from fsanet.models import MaskRcnnFsa, SegformerFsa


@pytest.fixture(scope="module")
def trained():
    return regular_fsanet(classes=("a", "b", "c")).eval()


@pytest.mark.parametrize("route", ["tokens", "grid"])
def test_fsanet(trained, route, tmp_path):
    conversion = convert_attention(trained, k=((0, 3), (0, 2)), route=route, grid=4)
    images = torch.randn(1, 3, 64, 96)
    save_converted(conversion, tmp_path)
    again = load_model(tmp_path).eval()
    kind = FrequencySelfAttention if route == "tokens" else GridSelfAttention
    assert type(again.head.attention) is kind
    assert again.classes == ("a", "b", "c")
    with torch.no_grad():
        expected = conversion.model(images)
        assert torch.equal(again(images), expected)
        assert (expected - trained(images)).abs().max() > 1e-6
        plain = FsaNet.from_pretrained(tmp_path).eval()
        assert torch.equal(plain(images), expected) == (route == "tokens")
    assert plain.head.attention.band == (0, 3, 0, 2)
    assert json.loads((tmp_path / "config.json").read_text())["attention"] == "frequency"


def test_segformer_in_the_format_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(num_labels=3)  # B0, as its decoder is 256 wide
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                p.mul_(20)
    images = torch.randn(1, 3, 64, 96)
    conversion = convert_attention(model, k={"*stages.1*": 2, "*stages.3*": (1, 2)})
    save_converted(conversion, tmp_path)
    plain = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    again = load_model(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(plain(images).logits, model(images).logits)
        logits = conversion.model(images).logits
        assert (logits - model(images).logits).abs().max() > 1e-6
        expected = torch.nn.functional.interpolate(logits, size=(64, 96), mode="bilinear")
        torch.testing.assert_close(again(images), expected, rtol=1e-5, atol=1e-6)
        applied = apply_conversion(plain, tmp_path)
        assert torch.equal(applied.model(images).logits, logits)
    assert [m.name for m in applied.modules] == [m.name for m in conversion.modules]
    assert len(applied.modules) == 4


def test_bad_folders(trained, tmp_path):
    with pytest.raises(InputError, match="no such file; give a folder written by save_converted"):
        apply_conversion(trained, tmp_path)
    file = tmp_path / CONVERSION_FILE
    for text, message in (
        ("{", "is not JSON"),
        ('{"format": 2}', "has a format that this version does not know"),
        ('{"format": 1, "modules": [{"name": "x"}]}', r"modules\[0\]: kind is missing"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load_model(tmp_path)
    save_converted(convert_attention(trained), tmp_path)
    content = json.loads(file.read_text())
    content["modules"][0]["name"] = "head.other"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"'head\.other' matches no attention .* head\.attention"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="has no save_pretrained"):
        save_converted(convert_attention(trained.head), tmp_path)


def test_run_folder_with_a_conversion(trained, tmp_path):
    run, images = tmp_path / "run", torch.randn(1, 3, 64, 64)
    conversion = convert_attention(trained, k=2, route="grid", grid=3)
    save_converted(conversion, run / "model")
    with torch.no_grad():
        assert torch.equal(load_model(run).eval()(images), conversion.model(images))
    with pytest.raises(InputError, match=r"attention is set by fsanet_conversion\.json"):
        load_model(run, k=4)


# --- networks as they were saved --------------------------------------------------------


@pytest.fixture(scope="module")
def fsanet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsanet")
    small_fsanet().save_pretrained(folder)
    return folder


def test_a_network_is_returned_unchanged(trained):
    assert load_model(trained) is trained


def test_network_without_a_name_in_its_config(fsanet_folder):
    file = fsanet_folder / "config.json"  # as files were before they had one
    config = json.loads(file.read_text())
    config.pop("network", None)
    file.write_text(json.dumps(config))
    assert type(load_model(fsanet_folder, task="semantic")) is FsaNet
    with pytest.raises(InputError, match="needs one for instance segmentation"):
        load_model(fsanet_folder, task="instances")
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
    saved = MaskRcnnFsa("test_resnet", num_classes=2, positions=("p4",), max_size=64, **small)
    saved.save_pretrained(tmp_path)
    found = load_model(tmp_path)
    assert type(found) is MaskRcnnFsa
    for name, value in saved.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    with pytest.raises(InputError, match=r"a MaskRcnnFsa, which is .* needs one for semantic"):
        load_model(tmp_path, task="semantic")


def test_network_of_a_newer_version(tmp_path):
    (tmp_path / "config.json").write_text('{"network": "FutureNet"}')
    with pytest.raises(InputError, match="'FutureNet', which this version does not know"):
        load_model(tmp_path)


def test_folder_that_holds_nothing(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json in it"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        load_model(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file, not a folder"):
        load_model(tmp_path / "file")
