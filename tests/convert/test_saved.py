"""Converted networks on disk, and back."""

import json

import pytest
import torch

from fsanet import FrequencySelfAttention, FsaNet, convert_attention
from fsanet.convert import load_model, save_converted
from fsanet.convert.grid import GridSelfAttention
from fsanet.convert.saved import CONVERSION_FILE, apply_conversion
from fsanet.errors import InputError


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = FsaNet(
        "resnet10t",
        num_classes=3,
        head_channels=16,
        aux_channels=0,
        attention="spatial",
        similarity="softmax",
        zero_init=False,
        classes=("a", "b", "c"),
    )
    with torch.no_grad():  # scores that are not all alike
        model.head.reduce[0].weight.mul_(1000)
    return model.eval()


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
    with pytest.raises(InputError, match=r"cannot be read .* save_converted"):
        apply_conversion(trained, tmp_path)
    file = tmp_path / CONVERSION_FILE
    for text, message in (
        ("{", "not readable as JSON"),
        ('{"format": 2}', "of a format that this version does not know"),
        ('{"format": 1, "modules": [{"name": "x"}]}', "lists no modules, or not all of grid, k"),
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
