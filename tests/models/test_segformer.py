"""SegFormer with the attention block, compared with plain transformers."""

import json
import sys

import pytest
import safetensors.torch
import torch
from support.contract import SegmentationContract, assert_exports
from torch.nn.functional import interpolate

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.errors import InputError
from fsanet.models import SegformerFsa

transformers = pytest.importorskip("transformers")

ATTENTION = ["frequency", "spatial", None]


def small(**options):
    torch.manual_seed(0)
    return SegformerFsa(**{"num_classes": 4, "zero_init": False, **options})


def plain(**options):
    """A SegFormer B0 of transformers whose batch norm is not in its initial state."""
    torch.manual_seed(1)
    options = {"num_labels": 4, **options}
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**options))
    torch.nn.init.normal_(model.decode_head.batch_norm.running_mean)
    torch.nn.init.uniform_(model.decode_head.batch_norm.weight, 0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain SegFormer B0 with class names, saved by transformers."""
    path = tmp_path_factory.mktemp("plain")
    plain(id2label={0: "sky", 1: "road", 2: "car", 3: "tree"}).save_pretrained(path)
    return str(path)


def one_block_a_stage(model):
    """All stages of the network, each cut to its first block, as the others only repeat it."""
    for stage in model.segformer.stages:
        del stage.blocks[1:]
    return model


class TestContract(SegmentationContract):
    @pytest.fixture(
        params=[
            {},
            {"attention": "spatial", "similarity": "softmax"},
            {"attention": None},
            {"similarity": "linear_softmax", "recurrence": 2, "block": "ccnet", "k": [2, 3]},
        ],
        scope="class",
    )
    @classmethod
    def model(cls, request):
        return small(**request.param)


@pytest.mark.slow
def test_exports():
    assert_exports(one_block_a_stage(small()))


@pytest.mark.parametrize("attention", ATTENTION)
def test_unchanged_before_training(attention, folder):
    """The block starts as the identity: exactly transformers' logits, at the image's size."""
    reference = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    model = SegformerFsa(num_classes=4, attention=attention, pretrained=folder).eval()
    images = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        logits = reference(images).logits  # (2, 4, 18, 23)
        want = interpolate(logits, size=(70, 90), mode="bilinear", align_corners=False)
        assert torch.equal(model(images), want)
        assert torch.equal(model.forward_with_auxiliary(images)[0], want)
    kind = {"frequency": FrequencySelfAttention, "spatial": SpatialSelfAttention}.get(attention)
    assert model.attention is None if kind is None else isinstance(model.attention, kind)


@pytest.mark.parametrize("attention", ["frequency", "spatial"])
def test_block_is_between_fusion_and_classifier(attention, folder):
    """With the block active, the logits equal those of the head's layers applied by hand."""
    model = SegformerFsa(num_classes=4, attention=attention, pretrained=folder, zero_init=False)
    model = model.double().eval()
    reference = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    head = reference.double().eval().decode_head
    seen = {}
    head.activation.register_forward_hook(lambda _, __, out: seen.update(fused=out))
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        before = reference(images).logits
        after = head.classifier(model.attention(seen["fused"]))  # (1, 4, 16, 24)
        want = interpolate(after, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images), want, rtol=1e-10, atol=1e-12)
        assert (after - before).norm() > 1e-3 * before.norm()


def test_inference_attends_in_place_with_the_same_logits():
    model, images = small().eval(), torch.rand(1, 3, 64, 96)
    shared = []
    model.attention.register_forward_hook(
        lambda m, x, y: shared.append(x[0].data_ptr() == y.data_ptr())
    )
    recorded = model(images)
    with torch.no_grad():
        torch.testing.assert_close(model(images), recorded.detach())
    assert shared == [False, True]


def test_gradient_reaches_the_block():
    images = torch.randn(2, 3, 64, 64)
    closed, opened = small(zero_init=True).train(), small().train()
    for model in (closed, opened):
        model(images).square().mean().backward()
    assert closed.attention.norm.weight.grad.abs().max() > 0  # so that the block can open
    for name, parameter in opened.attention.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert opened.segformer.stages[0].patch_embeddings.proj.weight.grad.abs().max() > 0


# Millions of parameters with 150 classes, encoder and decoder: arXiv 2105.15203, table 1.
PUBLISHED = {"b0": 3.8, "b1": 13.7, "b2": 27.5, "b3": 47.3, "b4": 64.1, "b5": 84.7}


@pytest.mark.parametrize(("variant", "millions"), PUBLISHED.items())
def test_published_sizes(variant, millions):
    with torch.device("meta"):
        model = SegformerFsa(variant=variant, num_classes=150, attention=None)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert abs(count / 1e6 - millions) <= 0.05


def test_golden_logits():
    """Logits of a seeded network and image are those of earlier versions."""
    model = small(recurrence=2).double().eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        matrix = noise / parameter[0].numel() ** 0.5  # keeps the scale of its input
        vector = 0.1 * noise + name.endswith("weight")
        parameter.data.copy_(matrix if parameter.ndim > 1 else vector)
    image = torch.randn(1, 3, 48, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        got = model(image)[0, :, 20, 31]
    torch.testing.assert_close(got, torch.tensor(GOLDEN, dtype=torch.float64), rtol=1e-6, atol=1e-9)


GOLDEN = [-47.775849221964286, -83.14890897530654, 47.70683513777781, 19.814489184424737]


# --- weights of transformers ------------------------------------------------------------


def test_names_are_those_of_transformers(folder):
    model = small()
    added = "decode_head.activation.attention."
    names = {name for name in model.state_dict() if not name.startswith(added)}
    state = plain().state_dict()
    assert names == state.keys()
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    weights = safetensors.torch.load_file(f"{folder}/model.safetensors")
    loaded = SegformerFsa(num_classes=4, pretrained=folder).state_dict()
    for name, tensor in transformers.SegformerForSemanticSegmentation.from_pretrained(
        folder
    ).named_parameters():
        assert torch.equal(loaded[name], tensor), name
    assert sum(tensor.numel() for tensor in weights.values()) == sum(
        loaded[name].numel() for name in names
    )


def test_size_and_class_names_of_a_plain_folder(folder):
    model = SegformerFsa.from_transformers(folder)
    assert model.attention is None
    assert model.classes == ("sky", "road", "car", "tree")
    again = SegformerFsa.from_transformers(folder, attention="frequency", k=3, classes="abcd")
    assert again.classes == ("a", "b", "c", "d")
    assert again.attention.band == (0, 3, 0, 3)


def test_saved_without_the_source_of_its_weights(folder, tmp_path):
    SegformerFsa(num_classes=4, pretrained=folder, k=((1, 3), (0, None))).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "pretrained" not in config
    assert config["network"] == "SegformerFsa"
    again = SegformerFsa.from_pretrained(tmp_path)
    assert again.classes == ("sky", "road", "car", "tree")
    assert again.attention.band == (1, 3, 0, None)


def test_other_classes_replace_only_the_classifier(folder):
    model = SegformerFsa(num_classes=7, pretrained=folder)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7, 32, 32)
    assert model.classes == tuple("0123456")
    source = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).state_dict()
    state = model.state_dict()
    kept = [name for name in source if not name.startswith("decode_head.classifier.")]
    assert all(torch.equal(state[name], source[name]) for name in kept)


def test_encoder_of_an_image_classifier(tmp_path):
    torch.manual_seed(2)
    classifier = transformers.SegformerForImageClassification(
        transformers.SegformerConfig(num_labels=10)
    )
    classifier.save_pretrained(tmp_path)
    state = SegformerFsa(num_classes=4, pretrained=str(tmp_path)).state_dict()
    for name, tensor in classifier.segformer.state_dict(prefix="segformer.").items():
        assert torch.equal(state[name], tensor), name
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_mismatched_weights(folder, tmp_path):
    with pytest.raises(InputError, match=r"holds a SegFormer b0, not b1; give variant='b0'"):
        SegformerFsa(variant="b1", num_classes=4, pretrained=folder)
    with pytest.raises(InputError, match=r"another shape, such as segformer\.stages\.0\.patch"):
        SegformerFsa(num_classes=4, in_channels=5, pretrained=folder)
    source = plain()
    source.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    gone = next(name for name in state if "classifier" in name)
    del state[gone]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"another architecture \(1 missing.*classifier"):
        SegformerFsa(num_classes=4, pretrained=str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=str(tmp_path)):
        SegformerFsa(num_classes=4, pretrained=str(tmp_path))
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        SegformerFsa(num_classes=4, pretrained=str(tmp_path / "none"))
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="of type vit, not segformer"):
        SegformerFsa(num_classes=4, pretrained=str(tmp_path))
    transformers.SegformerConfig(depths=[1, 1, 1, 1]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no published size"):
        SegformerFsa.from_transformers(str(tmp_path))


# --- options ----------------------------------------------------------------------------


def test_normalisation_and_channels():
    model = small(in_channels=5).eval()
    assert model(model.normalise(torch.rand(1, 5, 32, 40))).shape == (1, 4, 32, 40)
    image = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    want = (image.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    torch.testing.assert_close(small().normalise(image).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "b6"}, "variant='b6': use one of b0"),
        ({"k": 0}, "k=0: at least 1 row"),
        ({"similarity": "cosine"}, "similarity='cosine'"),
        ({"attention": "fourier"}, "attention='fourier'"),
        ({"classes": ["a"]}, "classes has 1 entries for 4 classes"),
        ({"palette": [(0, 0, 0)]}, "palette has 1 colours for 4 classes"),
        ({"mean": (0.5,), "std": (0.5,)}, "one value per channel"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        small(**options)


def test_image_too_small():
    model = small().eval()
    with pytest.raises(InputError, match=r"28 x 64 pixels are too small.*29 x 29"):
        model(torch.zeros(1, 3, 28, 64))
    assert model(torch.zeros(1, 3, 29, 29)).shape == (1, 4, 29, 29)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install transformers"):
        SegformerFsa(num_classes=4)
