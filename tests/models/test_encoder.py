import pytest
import torch

from fsanet.errors import InputError
from fsanet.models.encoder import build_encoder


def dilations(encoder):
    """Dilations of the 3x3 convolutions in the first and the second block of each stage."""
    return {
        stage: [
            {
                conv.dilation[0]
                for conv in getattr(encoder, stage)[block].modules()
                if isinstance(conv, torch.nn.Conv2d) and conv.kernel_size == (3, 3)
            }
            for block in (0, 1)
        ]
        for stage in ("layer2", "layer3", "layer4")
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])  # basic blocks, bottlenecks
def test_dilation_of_first_blocks(name):
    whole = build_encoder(name, contract_dilation=False)
    assert dilations(whole) == {"layer2": [{1}] * 2, "layer3": [{2}] * 2, "layer4": [{4}] * 2}
    half = dilations(build_encoder(name))
    assert 1 in half["layer3"][0]
    assert 2 in half["layer4"][0]
    assert half["layer4"][1] == {4}
    at_16 = dilations(build_encoder(name, output_stride=16, contract_dilation=False))
    assert at_16 == {"layer2": [{1}] * 2, "layer3": [{1}] * 2, "layer4": [{2}] * 2}
    images = torch.randn(1, 3, 64, 80)
    assert [f.shape[-2:] for f in whole(images)[-2:]] == [(8, 10), (8, 10)]


@pytest.mark.parametrize(("ceil_pool", "rows"), [(False, 18), (True, 19)])
def test_rounding_of_the_pooling(ceil_pool, rows):
    encoder = build_encoder("resnet18", ceil_pool=ceil_pool)
    shapes = {}
    encoder.maxpool.register_forward_hook(lambda *call: shapes.update(out=call[2].shape))
    encoder(torch.randn(1, 3, 72, 69))  # 36 x 35 before the pooling
    assert shapes["out"][-2:] == (rows, 18)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"ceil_pool": True}, "no max-pooling"), ({"contract_dilation": False}, "is not a ResNet")],
)
def test_options_for_resnets_only(option, message):
    with pytest.raises(InputError, match=message):
        build_encoder("mobilenetv3_small_050", **option)


def test_failed_download(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr("fsanet.models.encoder.timm.create_model", offline)
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(no connection\); without a network connection"
    ):
        build_encoder("resnet18", output_stride=16, pretrained=True)


def test_options_that_leave_no_channels():
    with pytest.raises(InputError, match=r"left for conv1.0.weight.*'stem_width': 1"):
        build_encoder("resnet10t", options={"stem_width": 1})
