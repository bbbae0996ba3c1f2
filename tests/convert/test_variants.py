"""Variants of a network against dense attention on maps that SciPy has cut to the band."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.convert.variants import attention_variants, evaluate_variants, make_variant
from fsanet.errors import InputError
from fsanet.models import FsaNet

SIZE = (10, 13)


def cut(x, rows, columns):
    """The part of a map in a rectangle of frequencies."""
    coefficients = dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    kept = np.zeros_like(coefficients)
    kept[..., rows, columns] = coefficients[..., rows, columns]
    return torch.tensor(idctn(kept, axes=(-2, -1), norm="ortho"))


def layers():
    torch.manual_seed(0)
    options = {"similarity": "softmax", "block": "nonlocal", "zero_init": False}
    regular = SpatialSelfAttention(8, **options).double().eval()
    trained_with_3 = FrequencySelfAttention(8, k=3, **options).double().eval()
    trained_with_3.load_state_dict(regular.state_dict())
    return regular, trained_with_3


@pytest.mark.parametrize("start", [0, 1], ids=["regular", "frequency k=3"])
@pytest.mark.parametrize(
    ("k", "band", "rows", "columns"),
    [
        (["5"], [], slice(0, 5), slice(0, 5)),
        (["full"], [], slice(None), slice(None)),
        ([], ["low"], slice(0, 3), slice(0, 3)),
        ([], ["middle"], slice(3, 6), slice(3, 6)),
        ([], ["high"], slice(6, None), slice(6, None)),
        ([], ["1:4,7:"], slice(1, 4), slice(7, None)),
    ],
)
def test_attention_sees_the_band_alone(start, k, band, rows, columns):
    regular = layers()[0]
    model = nn.Sequential(nn.Identity(), layers()[start])
    variant = attention_variants(k, band, (3, 6))[-1]
    x = torch.randn(2, 8, *SIZE, dtype=torch.float64)
    seen = cut(x, rows, columns)
    with torch.no_grad():
        expected = x + regular(seen) - seen  # what attention adds, of the band alone
        assert torch.allclose(make_variant(model, variant)(x), expected, atol=1e-10)
        assert not torch.allclose(expected, x, atol=1e-3)


def network(**options):
    torch.manual_seed(1)
    model = FsaNet(
        "test_resnet", num_classes=3, head_channels=8, aux_channels=0, output_stride=16, **options
    )
    return model.eval()


def test_removed_is_the_network_without_attention():
    model = network(attention="spatial", zero_init=False)
    with torch.no_grad():  # an untrained one adds next to nothing
        model.head.attention.norm.weight *= 1e5
    without = network(attention=None)
    state = {n: v for n, v in model.state_dict().items() if not n.startswith("head.attention")}
    without.load_state_dict(state)
    removed = make_variant(model, attention_variants()[1])
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(removed(images), without(images))
        assert not torch.allclose(removed(images), model(images))
    assert isinstance(model.head.attention, SpatialSelfAttention)  # left alone


def test_match_chooses_layers():
    model = nn.ModuleDict({"a": layers()[0], "b": layers()[1]})
    changed = make_variant(model, attention_variants(["4"])[-1], "a")
    assert isinstance(changed["a"], FrequencySelfAttention)
    assert (changed["a"].band.h1, changed["b"].band.h1) == (4, 3)
    for one, names in ((model, "a, b"), (nn.ModuleDict({"b": layers()[1]}), "b")):
        message = f"match: 'c' matches no attention to convert; there are {names}$"
        with pytest.raises(InputError, match=message):
            make_variant(one, attention_variants(["4"])[-1], "c")
        with pytest.raises(InputError, match=message):  # before anything is evaluated
            next(evaluate_variants(one, attention_variants(), pytest.fail, match="c"))
    with pytest.raises(InputError, match=r"Identity has no attention to convert \(match='c'\)"):
        make_variant(nn.Identity(), attention_variants(["4"])[-1], "c")


def test_token_attention_is_converted_but_cannot_be_removed():
    timm = pytest.importorskip("timm")
    vit = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=12, depth=1, num_heads=2, num_classes=2
    ).eval()
    variants = attention_variants(["2", "full"])
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(make_variant(vit, variants[-1])(image), vit(image), atol=1e-5)
        assert not torch.allclose(make_variant(vit, variants[-2])(image), vit(image), atol=1e-5)
    with pytest.raises(InputError, match="cannot be removed"):
        make_variant(vit, variants[1])


@pytest.mark.parametrize(
    ("k", "bands", "cuts", "line"),
    [
        (["0"], [], (8, 16), "--k 0: give numbers from 1 up, or full"),
        (["many"], [], (8, 16), "--k many"),
        (["4", "4"], [], (8, 16), "k=4: given twice"),
        ([], ["lowest"], (8, 16), "--bands lowest: give low, middle, high, full, or ranges"),
        ([], ["8:8"], (8, 16), "--bands 8:8: .*empty"),
        ([], ["0:1,0:2,0:3"], (8, 16), "--bands 0:1,0:2,0:3"),
        ([], ["low"], (8, 8), "--cuts 8 8"),
    ],
)
def test_invalid_variants(k, bands, cuts, line):
    with pytest.raises(InputError, match=line):
        attention_variants(k, bands, cuts)


def test_each_band_is_evaluated_once():
    model = nn.ModuleDict({"attention": layers()[0]})
    variants = attention_variants(["2", "4", "full"], ["low", "full", "3:"], (2, 4))
    seen = []

    def evaluate(network):
        band = getattr(network["attention"], "band", None)
        seen.append(type(network["attention"]).__name__ if band is None else str(band))
        return len(seen)

    found = dict(evaluate_variants(model, variants, evaluate, known={"k=2": 20}))
    assert seen == [
        "SpatialSelfAttention", "Identity", "[0:4) x [0:4)", "[0:) x [0:)", "[3:) x [3:)"
    ]  # fmt: skip
    names = {variant.name: result for variant, result in found.items()}
    assert names["k=2"] == names["low 0:2"] == 20
    assert names["k=full"] == names["full"] == 4


def test_a_failure_names_its_variant():
    def evaluate(network):
        raise InputError("no such image")

    with pytest.raises(InputError, match="as trained: no such image"):
        list(evaluate_variants(layers()[0], attention_variants(), evaluate))
