import json

import pytest
import safetensors.torch
import timm
import torch
from support.contract import SegmentationContract, assert_exports
from torch import nn
from torch.nn.functional import conv2d, interpolate

from fsanet import FrequencySelfAttention, FsaNet, SpatialSelfAttention
from fsanet.cost import count_flops, count_parameters
from fsanet.errors import InputError

SMALL = {"num_classes": 4, "head_channels": 24, "aux_channels": 16}
VARIANTS = [
    {},
    {"attention": "spatial", "similarity": "softmax"},
    {"attention": None},
    {"similarity": "linear_softmax", "recurrence": 2, "block": "ccnet", "k": [2, 3]},
    {"decoder": "multiscale", "decoder_channels": 16, "output_stride": 16},
    {"decoder": "multiscale", "attention": "spatial", "align_corners": True},
    {"decoder": "multiscale", "attention": None, "output_stride": 16},
    {"decoder": "multiscale", "decoder_channels": 16, "output_stride": 16, "decoder_stride": 2},
    {"decoder": "summed", "decoder_channels": 16, "output_stride": 16, "align_corners": True},
]


def small(encoder="test_resnet", **options):
    torch.manual_seed(0)
    return FsaNet(encoder, **{**SMALL, "zero_init": False, **options})


class TestContract(SegmentationContract):
    @pytest.fixture(params=VARIANTS, scope="class")
    @classmethod
    def model(cls, request):
        return small(**request.param)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [None, "multiscale", "summed"])
def test_exports(decoder):
    assert_exports(small(decoder=decoder, decoder_channels=16, output_stride=16))


@pytest.mark.parametrize(
    "encoder",
    ["resnet18", "mobilenetv2_050", "mobilenetv3_small_050", "convnext_atto", "efficientnet_lite0"],
)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_encoders(encoder, output_stride):
    model = small(encoder, output_stride=output_stride).eval()
    assert model.encoder.feature_info.reduction()[-1] == output_stride
    with torch.no_grad():
        last = model.encoder(torch.randn(1, 3, 64, 80))[-1]
        assert model.head(last).shape == (1, 4, 64 // output_stride, 80 // output_stride)


@pytest.mark.parametrize(
    ("encoder", "output_stride", "stride", "finer"),
    [
        ("mobilenetv2_050", 16, 4, [2, 1]),
        ("resnet10t", 8, 4, [1]),
        ("convnext_atto", 16, 4, [1, 0]),
        ("resnet10t", 32, 4, [2, 1]),
        ("mobilenetv2_050", 16, 2, [2, 1, 0]),
        ("resnet10t", 8, 2, [1, 0]),
    ],
)
def test_multiscale_logits_have_the_finest_stride(encoder, output_stride, stride, finer):
    options = {"output_stride": output_stride, "decoder_stride": stride}
    model = small(encoder, decoder="multiscale", **options).eval()
    assert model.finer == finer
    grids = []
    model.head.register_forward_hook(lambda head, inputs, logits: grids.append(logits.shape))
    with torch.no_grad():
        model(torch.randn(1, 3, 65, 98))
        fine = model.encoder(torch.randn(1, 3, 65, 98))[finer[-1]]
    assert grids == [(1, 4, *fine.shape[-2:])]
    assert fine.shape[-1] in (98 // stride, 98 // stride + 1)


@pytest.mark.parametrize(
    ("stride", "align_corners", "widths"),
    [
        (4, False, [(6, 16), (4, 16)]),
        (4, True, [(6, 16), (4, 16)]),
        (2, False, [(6, 16), (4, 8), (2, 4)]),
    ],
)
@pytest.mark.parametrize("decoder", ["multiscale", "summed"])
def test_decoder_step_by_step(decoder, stride, align_corners, widths):
    """The head against its definition, written with functions and the names of its weights."""
    options = {"decoder_channels": 16, "decoder_stride": stride, "align_corners": align_corners}
    head = small(decoder=decoder, output_stride=16, **options).head
    generator = torch.Generator().manual_seed(2)
    for value in head.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator))
    head = head.double().eval()
    weights = head.state_dict()

    def conv_bn_relu(x, name, **options):
        x = conv2d(x, weights[f"{name}.0.weight"], **options)
        mean, var, scale, shift = (
            weights[f"{name}.1.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    channels = [
        head.reduce[0].in_channels,
        *(merge.project[0].in_channels for merge in head.merges),
    ]
    sizes = [(3, 5), (6, 9), (11, 17), (22, 33)]
    last, *finer = (
        torch.rand(2, count, *size, dtype=torch.float64, generator=generator)
        for count, size in zip(channels, sizes, strict=False)
    )
    with torch.no_grad():
        x = conv_bn_relu(last, "reduce", padding=1)
        x = conv_bn_relu(head.attention(x), "refine", padding=1)
        x = conv_bn_relu(torch.cat([last, x], 1), "join", padding=1)
        want = 0
        for index, (fine, (width, merged)) in enumerate(zip(finer, widths, strict=True)):
            name = f"merges.{index}"
            if decoder == "summed":
                classify = f"classify_coarser.{index}"
                scores = conv2d(x, weights[f"{classify}.weight"], weights[f"{classify}.bias"])
                finest = finer[-1].shape[-2:]
                want += interpolate(scores, finest, mode="bilinear", align_corners=align_corners)
            up = interpolate(x, fine.shape[-2:], mode="bilinear", align_corners=align_corners)
            projected = conv_bn_relu(fine, f"{name}.project")
            assert projected.shape[1] == width
            x = torch.cat([up, projected], 1)
            x = conv_bn_relu(x, f"{name}.depthwise", padding=1, groups=x.shape[1])
            x = conv_bn_relu(x, f"{name}.pointwise")
            assert x.shape[1] == merged
        want = want + conv2d(x, weights["classify.weight"], weights["classify.bias"])
        torch.testing.assert_close(head(last, *finer), want)


def test_decoder_adds_weights_and_changes_no_name():
    plain, multiscale = small(), small(decoder="multiscale", decoder_channels=24)
    own, more = plain.state_dict(), multiscale.state_dict()
    assert {name for name in more if not name.startswith("head.merges.")} == own.keys()
    assert all(more[name].shape == value.shape for name, value in own.items())
    # 32 channels at stride 4 to 24 / 4; (24 + 6) channels depthwise, then to 24; norms have 2 each
    added = 32 * 6 + 30 * 9 + 30 * 24 + 2 * (6 + 30 + 24)
    assert count_parameters(multiscale) - count_parameters(plain) == added
    images = torch.empty(1, 3, 64, 96)
    products = 2 * (32 * 6 + 30 * 9 + 30 * 24 + 24 * 4) * 16 * 24 - 2 * 24 * 4 * 8 * 12
    with torch.no_grad():
        flops = [count_flops(lambda m=m: m.eval()(images)) for m in (plain, multiscale)]
    assert flops[1] - flops[0] == products


@pytest.mark.parametrize("decoder", [None, "multiscale", "summed"])
def test_a_network_without_decoder_is_saved_as_before_there_was_one(tmp_path, decoder):
    model = small(decoder=decoder).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("decoder") == decoder
    assert ("decoder" in config) == (decoder is not None)
    assert "init_std" not in config
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(FsaNet.from_pretrained(tmp_path).eval()(images), model(images))


def test_paper_network():
    """Deep stem 64, 64, 128; 2048 channels at stride 8; head 512, auxiliary head 256."""
    with torch.device("meta"):
        model = FsaNet(num_classes=19, recurrence=2)
    stem = [m.out_channels for m in model.encoder.conv1 if isinstance(m, nn.Conv2d)]
    assert stem == [64, 64, 128]
    assert model.encoder.feature_info.channels()[-2:] == [1024, 2048]
    assert model.encoder.feature_info.reduction()[-2:] == [8, 8]
    assert model.head.reduce[0].weight.shape == (512, 2048, 3, 3)
    assert model.head.join[0].weight.shape == (512, 2048 + 512, 3, 3)
    assert model.auxiliary.reduce[0].weight.shape == (256, 1024, 3, 3)
    attention = model.head.attention
    assert isinstance(attention, FrequencySelfAttention)
    assert (attention.band, attention.recurrence) == ((0, 8, 0, 8), 2)
    assert attention.query.weight.shape == (256, 512)
    assert model(torch.empty(1, 3, 97, 129, device="meta")).shape == (1, 19, 97, 129)


def test_baselines_are_one_argument_apart():
    frequency, spatial, none = small(), small(attention="spatial"), small(attention=None)
    assert isinstance(spatial.head.attention, SpatialSelfAttention)
    assert isinstance(none.head.attention, nn.Identity)
    assert frequency.state_dict().keys() == spatial.state_dict().keys()
    rest = {k for k in frequency.state_dict() if not k.startswith("head.attention.")}
    assert rest == none.state_dict().keys()
    # closed attention is no attention
    images = torch.randn(1, 3, 64, 64)
    closed = small(zero_init=True).eval()
    none.load_state_dict({k: v for k, v in closed.state_dict().items() if k in rest})
    torch.testing.assert_close(closed(images), none.eval()(images))


def test_full_band_network_is_the_spatial_network():
    frequency, spatial = small(k=None).double().eval(), small(attention="spatial").double().eval()
    spatial.load_state_dict(frequency.state_dict())
    images = torch.randn(1, 3, 72, 56, dtype=torch.float64)
    torch.testing.assert_close(frequency(images), spatial(images), rtol=1e-9, atol=1e-10)


def test_golden_logits():
    """Logits of a seeded network and image are those of earlier versions."""
    model = small("resnet10t", recurrence=2).double().eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)
    image = torch.randn(1, 3, 48, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        got = model(image)[0, :, 20, 31]
    torch.testing.assert_close(got, torch.tensor(GOLDEN, dtype=torch.float64), rtol=1e-6, atol=1e-9)


GOLDEN = [0.2556216272877223, -0.05165910085244214, 0.0604907746464653, 0.034082954544274284]


def test_inference_attends_in_place_with_the_same_logits():
    model = FsaNet("test_resnet", num_classes=3, head_channels=16, zero_init=False).eval()
    images = torch.rand(1, 3, 64, 96)
    seen = []
    model.head.attention.register_forward_hook(lambda m, x, y: seen.append((x[0], y)))
    recorded = model(images)
    with torch.no_grad():
        inferred = model(images)
    torch.testing.assert_close(inferred, recorded.detach())
    shared = [x.data_ptr() == y.data_ptr() for x, y in seen]
    assert shared == [False, True]


def test_auxiliary_head_is_for_training_only():
    model = small().eval()
    images = torch.randn(1, 3, 64, 64)
    calls = []
    model.auxiliary.register_forward_hook(lambda *_: calls.append(1))
    model(images)
    assert not calls
    assert model.forward_with_auxiliary(images)[1].shape == (1, 4, 64, 64)
    assert calls
    assert small(aux_channels=0).forward_with_auxiliary(images)[1] is None


@pytest.mark.parametrize("attention", ["frequency", "spatial", None])
def test_initial_weights_of_a_standard_deviation(attention):
    options = {"num_classes": 19, "attention": attention, "head_channels": 128}
    torch.manual_seed(0)
    model = FsaNet("test_resnet", init_std=0.01, decoder="summed", **options)
    drawn = [model.head.classify, *model.head.classify_coarser, model.auxiliary.classify]
    assert len(drawn) == 3
    if attention is not None:
        block = model.head.attention
        drawn += [block.query, block.key, block.value]
        assert block.norm.weight.abs().max() == 0  # still the identity
    for layer in drawn:
        assert abs(layer.weight.std() / 0.01 - 1) < 0.05
        assert abs(layer.weight.mean()) < 0.001
    with pytest.raises(InputError, match="init_std=0"):
        FsaNet("test_resnet", init_std=0, **options)


def test_encoder_weights_from_a_file(tmp_path):
    torch.manual_seed(3)
    donor = timm.create_model("mobilenetv2_050", num_classes=7)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(donor.state_dict(), path)
    model = small("mobilenetv2_050", encoder_weights=str(path))
    torch.testing.assert_close(model.encoder.conv_stem.weight, donor.conv_stem.weight)
    torch.testing.assert_close(
        model.encoder.blocks[3][0].conv_pw.weight, donor.blocks[3][0].conv_pw.weight
    )
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not {"encoder_weights", "pretrained"} & config.keys()
    path.unlink()  # loading does not need it
    FsaNet.from_pretrained(tmp_path / "saved")


def test_metadata_is_saved_with_the_weights(tmp_path):
    model = small(
        classes=["a", "b", "c", "d"],
        palette=[(1, 2, 3), (4, 5, 6), (7, 8, 9), (255, 0, 0)],
        mean=(0.1, 0.2, 0.3),
        std=(1 / 255,) * 3,
        bgr=True,
        k=((1, 3), (0, None)),
    )
    model.save_pretrained(tmp_path)
    again = FsaNet.from_pretrained(tmp_path)
    assert again.classes == ("a", "b", "c", "d")
    assert again.palette[3] == (255, 0, 0)
    assert again.std == (1 / 255,) * 3
    assert again.bgr
    assert again.head.attention.band == (1, 3, 0, None)


@pytest.mark.parametrize("decoder", [None, "multiscale"])
def test_regular_network_loaded_with_low_frequencies(tmp_path, decoder):
    model = small(attention="spatial", similarity="softmax", decoder=decoder).eval()
    model.head.attention.query.weight.data.mul_(30)  # so that the scores differ
    model.head.attention.key.weight.data.mul_(30)
    model.save_pretrained(tmp_path)
    low = FsaNet.from_pretrained(tmp_path, attention="frequency", k=2).double().eval()
    full = FsaNet.from_pretrained(tmp_path, attention="frequency", k=None).double().eval()
    images, model = torch.randn(1, 3, 64, 64, dtype=torch.float64), model.double()
    with torch.no_grad():
        want = model(images)
        assert (full(images) - want).norm() < 1e-10 * want.norm()
        assert (low(images) - want).norm() > 1e-7 * want.norm()


def test_normalise():
    image = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    model = small(mean=(0.5, 0.25, 0.125), std=(0.5, 1.0, 2.0))
    want = (image.double() / 255 - torch.tensor([0.5, 0.25, 0.125])[:, None, None]) / torch.tensor(
        [0.5, 1.0, 2.0]
    )[:, None, None]
    torch.testing.assert_close(model.normalise(image).double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.normalise(image.float() / 255), model.normalise(image))
    # input of the published CCNet lineage: BGR, 0..255, only the mean subtracted
    published = small(
        mean=[m / 255 for m in (122.67891434, 116.66876762, 104.00698793)],
        std=[1 / 255] * 3,
        bgr=True,
    )
    bgr = (
        image.flip(1).double()
        - torch.tensor([104.00698793, 116.66876762, 122.67891434])[:, None, None]
    )
    torch.testing.assert_close(published.normalise(image).double(), bgr, rtol=1e-4, atol=1e-3)


def test_images_with_other_channels_than_rgb():
    model = small(in_channels=5)
    assert model.eval()(model.normalise(torch.rand(1, 5, 64, 64))).shape == (1, 4, 64, 64)


def test_align_corners():
    features = torch.randn(1, 3, 64, 64)
    a, b = small().eval(), small(align_corners=True).eval()
    b.load_state_dict(a.state_dict())
    assert not torch.allclose(a(features), b(features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet18x"}, "did you mean resnet18"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "(has no|ignores) output_stride=8"),
        ({"encoder": "vgg11"}, "has no output_stride=8"),
        ({"output_stride": 4}, "use 8 or 16"),
        ({"encoder_weights": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
        ({"encoder_options": {"colour": 1}}, "has no option 'colour'; see timm's ResNet"),
        ({"k": 0}, "k=0: at least 1 row"),
        ({"similarity": "cosine"}, "similarity='cosine'"),
        ({"attention": "fourier"}, "attention='fourier'"),
        ({"classes": ["a"]}, "classes has 1 entries for 4 classes"),
        ({"palette": [(0, 0, 0)]}, "palette has 1 colours for 4 classes"),
        ({"mean": (0.5,), "std": (0.5,)}, "one value per channel"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"decoder": "multiscale", "decoder_stride": 8}, "decoder_stride=8: use 4 or 2"),
        ({"decoder": "unet"}, "decoder='unet' must be 'multiscale', 'summed' or None"),
        ({"decoder": "multiscale", "decoder_channels": 0}, "decoder_channels=0 >= 1"),
        (
            {
                "encoder": "convnext_atto",
                "encoder_options": {"patch_size": 8},
                "output_stride": 16,
                "decoder": "multiscale",
            },
            "strides 8, 16, 16, 16; a decoder with decoder_stride=4 needs 8 and 4",
        ),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        small(**options)


def test_encoder_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), path)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        small("mobilenetv2_050", encoder_weights=str(path))
    state = {"conv_stem.weight": torch.zeros(16, 3, 3, 3)}
    safetensors.torch.save_file(state, path)
    with pytest.raises(InputError, match=r"the file lacks \d+ of its weights, such as b"):
        small("mobilenetv2_050", encoder_weights=str(path))


def test_folders_without_a_loadable_network(tmp_path):
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        FsaNet.from_pretrained(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no config\.json in it"):
        FsaNet.from_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"weights of another architecture \(\d+ of another shape"):
        FsaNet.from_pretrained(tmp_path, head_channels=16)
    with pytest.raises(InputError, match="missing, such as"):
        FsaNet.from_pretrained(tmp_path, encoder="resnet18")
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="damaged or not a file of weights"):
        FsaNet.from_pretrained(tmp_path)
