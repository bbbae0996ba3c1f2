"""timm's ViT attention on low-passed patch tokens, against every matrix written out."""

import copy

import numpy as np
import pytest
import scipy.fft
import timm
import torch
from timm.layers import Attention
from torch import nn

from fsanet import convert_attention
from fsanet.convert import compare_grids
from fsanet.convert.vit import PatchGrid, TimmFrequencyAttention
from fsanet.errors import InputError


def attention(**options):
    torch.manual_seed(0)
    made = Attention(12, num_heads=3, qkv_bias=True, **options).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.6)
    return made


def network(**options):
    torch.manual_seed(0)
    made = timm.create_model("test_vit", num_classes=5, **options).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    return made


def sampled(size, k, count):
    """The first k cosines of an axis at ``count`` evenly spread points: (k, count)."""
    basis = scipy.fft.dct(np.eye(count), type=2, norm="ortho", axis=0)[:k]
    return torch.from_numpy(basis * np.sqrt(count / size))


def dense(module, x, grid, k, prefix, points):
    """Weights of P + N queries over P + M keys, each of the M counted N / M times."""
    height, width = grid
    low = torch.kron(sampled(height, k, height), sampled(width, k, width))  # (K, N)
    few = torch.kron(sampled(height, k, points[0]), sampled(width, k, points[1]))  # (K, M)
    head, patches = x[:, :prefix], x[:, prefix:]
    queries = torch.cat([head, low.T @ low @ patches], 1)
    keys = torch.cat([head, few.T @ low @ patches], 1)
    wq, wk, wv = module.qkv.weight.chunk(3)
    bq, bk, bv = module.qkv.bias.chunk(3)
    count = torch.ones(keys.shape[1], dtype=torch.float64)
    count[prefix:] = height * width / (points[0] * points[1])
    out = []
    for part in torch.arange(12).split(4):
        q = module.q_norm(queries @ wq[part].T + bq[part])
        key = module.k_norm(keys @ wk[part].T + bk[part])
        weights = torch.exp(q @ key.mT / 2) * count
        weights = weights / weights.sum(-1, keepdim=True)
        out.append(weights @ (keys @ wv[part].T + bv[part]))
    out = module.norm(torch.cat(out, -1))
    if module.gate is not None:
        out = out * torch.sigmoid(module.gate(queries))
    return module.proj(out)


@pytest.mark.parametrize("points", [(5, 7), (4, 4)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True, "scale_norm": True, "norm_layer": nn.LayerNorm}, {"gated": True}],
)
def test_against_dense_attention(options, prefix, points):
    module = attention(**options)
    x = torch.randn(2, prefix + 35, 12, dtype=torch.float64)
    route = "tokens" if points == (5, 7) else "grid"
    converted = TimmFrequencyAttention(
        module, patch_grid=PatchGrid((5, 7)), prefix=prefix, k=3, route=route, grid=points
    )
    expected = dense(module, x, (5, 7), 3, prefix, points)
    torch.testing.assert_close(converted(x), expected, rtol=0, atol=1e-10)
    full = TimmFrequencyAttention(module, patch_grid=PatchGrid((5, 7)), prefix=prefix, k=None)
    torch.testing.assert_close(full(x), module(x), rtol=0, atol=1e-10)


def test_prefix_tokens_pass_unharmed():
    """A class token's own query, key and value are never low-passed, whatever the patches are."""
    module = attention()
    converted = TimmFrequencyAttention(module, patch_grid=PatchGrid((4, 4)), prefix=2, k=1)
    x = torch.randn(1, 18, 12, dtype=torch.float64)
    constant = x.clone()
    constant[:, 2:] = x[:, 2:].mean(1, keepdim=True)  # what k=1 leaves of the patches
    torch.testing.assert_close(converted(x), module(constant), rtol=0, atol=1e-10)


def test_network_of_any_size_follows_its_images():
    """test_vit takes images of other sizes, so that the grid is known at run time only."""
    model = network()
    found = convert_attention(model, k=None)
    assert [m.name for m in found.modules] == [f"blocks.{i}.attn" for i in range(6)]
    low = convert_attention(model, k=2)
    with torch.no_grad():
        for size in ((160, 160), (96, 64)):
            images = torch.randn(2, 3, *size, dtype=torch.float64)
            expected = model(images)
            torch.testing.assert_close(found.model(images), expected, rtol=0, atol=1e-10)
            assert (low.model(images) - expected).norm() > 1e-3 * expected.norm()
    assert not model.patch_embed._forward_hooks  # the original knows nothing of it
    again = copy.deepcopy(found.model)
    with torch.no_grad():
        torch.testing.assert_close(again(images), expected, rtol=0, atol=1e-10)
    assert again.blocks[0].attn.patch_grid is not found.model.blocks[0].attn.patch_grid


def test_network_of_one_size():
    model = network(dynamic_img_size=False, img_size=(32, 64), reg_tokens=2)
    images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    found = convert_attention(model, k=None)
    with torch.no_grad():
        torch.testing.assert_close(found.model(images), model(images), rtol=0, atol=1e-10)
    assert found.model.blocks[0].attn.prefix == 3


def test_grid_converges_to_all_keys():
    model, images = network(), torch.randn(1, 3, 160, 160, dtype=torch.float64)
    found = compare_grids(model, images, k=3, grids=(2, 3, 5, 8, 10), match="blocks.3.attn")
    (row,) = found.values()
    assert row[2] > row[3] > row[5] > row[8]
    assert row[8] < 1e-4 * row[2]
    assert row[10] < 1e-12


def test_attention_without_a_grid():
    alone = nn.Sequential(attention())
    with pytest.raises(InputError, match=r"0: the grid of its tokens .* give token_grid"):
        convert_attention(alone)
    found = convert_attention(alone, k=None, token_grid=(3, 4), prefix_tokens=1)
    x = torch.randn(1, 13, 12, dtype=torch.float64)
    torch.testing.assert_close(found.model(x), alone(x), rtol=0, atol=1e-10)
    with pytest.raises(InputError, match=r"11 patch tokens after 1 .* do not form a 3x4 grid"):
        found.model(x[:, :12])


def test_masks():
    module = attention()
    x = torch.randn(1, 12, 12, dtype=torch.float64)
    mask = torch.randn(12, 12, dtype=torch.float64)
    options = {"patch_grid": PatchGrid((3, 4)), "prefix": 0, "k": None}
    converted = TimmFrequencyAttention(module, **options)
    expected = module(x, attn_mask=mask)
    torch.testing.assert_close(converted(x, attn_mask=mask), expected, rtol=0, atol=1e-10)
    few = TimmFrequencyAttention(module, **options, route="grid", grid=2)
    with pytest.raises(InputError, match="other keys than the mask"):
        few(x, attn_mask=mask)


def test_a_band_over_the_whole_map_costs_no_more():
    original = network()
    found = convert_attention(original, k=64)
    flops = found.flops(160)
    assert flops.after == flops.before
    x = torch.randn(1, 3, 160, 160, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), original(x), rtol=1e-10, atol=1e-10)


def test_a_smaller_band_of_a_converted_network():
    original = network()
    x = torch.randn(1, 3, 160, 160, dtype=torch.float64)
    wide = convert_attention(original, k=6).model
    with torch.no_grad():
        got, before = convert_attention(wide, k=3).model(x), wide(x)
        assert torch.equal(wide(x), before)  # a copy was narrowed
        torch.testing.assert_close(got, convert_attention(original, k=3).model(x))
    with pytest.raises(InputError, match="give a band inside it"):
        convert_attention(wide, k=None)
