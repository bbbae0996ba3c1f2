"""SegFormer's attention on low-passed tokens, against the same with every matrix written out."""

import numpy as np
import pytest
import scipy.fft
import torch

from fsanet import convert_attention
from fsanet.convert import compare_grids
from fsanet.convert.segformer import SegformerFrequencyAttention
from fsanet.errors import InputError

pytest.importorskip("transformers")
from transformers import SegformerConfig, SegformerForSemanticSegmentation

NAMES = [f"segformer.stages.{stage}.blocks.0.attention" for stage in range(4)]


def network(**options):
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=3,
        hidden_sizes=[8, 12, 18, 16],
        num_attention_heads=[1, 2, 3, 4],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=8,
        **options,
    )
    made = SegformerForSemanticSegmentation(config).double().eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            # Weights large enough for softmax to choose; biases that count.
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim < 2 or "attention" in name else 0.1))
    return made


def basis(size):
    """All of the orthonormal DCT-II, a frequency a row."""
    return torch.from_numpy(scipy.fft.dct(np.eye(size), type=2, norm="ortho", axis=0))


def dense(attention, tokens, height, width, k):
    """(B, N, C) -> (B, N, C): P, the patches, and every head's N x M weights written out."""
    low = torch.kron(basis(height)[:k], basis(width)[:k])  # (K, N)
    tokens = (low.T @ low) @ tokens  # the low-passed map
    r = attention.sequence_reduction_ratio
    keys = tokens
    if r > 1:
        convolution = attention.sequence_reduction.sequence_reduction
        plane = tokens.unflatten(1, (height, width))
        rows, columns = height // r, width // r
        keys = torch.stack(
            [
                torch.einsum(
                    "bxyc,ocxy->bo",
                    plane[:, i * r : i * r + r, j * r : j * r + r],
                    convolution.weight,
                )
                + convolution.bias
                for i in range(rows)
                for j in range(columns)
            ],
            1,
        )
        keys = attention.sequence_reduction.layer_norm(keys)
    q = tokens @ attention.q_proj.weight.T + attention.q_proj.bias
    key = keys @ attention.k_proj.weight.T + attention.k_proj.bias
    v = keys @ attention.v_proj.weight.T + attention.v_proj.bias
    d = q.shape[2] // attention.num_attention_heads
    out = []
    for head in range(attention.num_attention_heads):
        part = slice(head * d, head * d + d)
        weights = torch.softmax(q[..., part] @ key[..., part].mT / d**0.5, -1)
        out.append(weights @ v[..., part])
    return torch.cat(out, -1) @ attention.o_proj.weight.T + attention.o_proj.bias


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("k", [2, 7])  # the reduction's convolution on coefficients, on the map
def test_every_stage_against_dense_attention(stage, k):
    attention = network().get_submodule(NAMES[stage])
    height, width = (17, 24) if stage == 0 else (9, 12)
    tokens = torch.randn(2, height * width, attention.q_proj.in_features, dtype=torch.float64)
    converted = SegformerFrequencyAttention(attention, k=k)
    got, weights = converted(tokens, height, width)
    assert weights is None
    expected = dense(attention, tokens, height, width, k)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert (got - attention(tokens, height, width)[0]).norm() > 0.01 * got.norm()


@pytest.mark.parametrize("route", ["tokens", "grid"])
def test_full_band_is_the_original(route):
    model, images = network(), torch.randn(2, 3, 96, 160, dtype=torch.float64)
    found = convert_attention(model, k=None, route=route, grid=99)
    assert [m.name for m in found.modules] == NAMES
    with torch.no_grad():
        expected = model(images).logits
        assert expected.std() > 0.01
        torch.testing.assert_close(found.model(images).logits, expected, rtol=0, atol=1e-10)
    assert found.model.state_dict().keys() == model.state_dict().keys()


def test_a_pattern_selects_a_stage():
    found = convert_attention(network(), k={"*stages.2*": 4, "*stages.3*": 2})
    assert [(m.name, m.k) for m in found.modules] == [(NAMES[2], 4), (NAMES[3], 2)]
    with pytest.raises(InputError, match=r"'\*stages.4\*' matches no attention .*stages.0"):
        convert_attention(network(), match="*stages.4*")


@pytest.mark.parametrize("similarity", ["dot", "linear", "linear_softmax"])
def test_linear_forms_per_head(similarity):
    attention = network().get_submodule(NAMES[3])
    height, width = 5, 6
    tokens = torch.randn(1, 30, 16, dtype=torch.float64)
    got, _ = SegformerFrequencyAttention(attention, k=3, similarity=similarity)(
        tokens, height, width
    )
    low = torch.kron(basis(height)[:3], basis(width)[:3])
    low_tokens = low.T @ low @ tokens
    q, key, v = (
        (low_tokens @ m.weight.T + m.bias).unflatten(2, (4, 4)).transpose(1, 2)
        for m in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if similarity == "linear_softmax":
        q, key = q / q.norm(dim=-1, keepdim=True), key / key.norm(dim=-1, keepdim=True)
    scores = q @ key.mT
    if similarity == "dot":
        weights = scores / 30
    else:
        scores = 1 + scores * (0.5 if similarity == "linear" else 1)
        weights = scores / scores.sum(-1, keepdim=True)
    out = (weights @ v).transpose(1, 2).flatten(2)
    expected = out @ attention.o_proj.weight.T + attention.o_proj.bias
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_grid_converges_to_all_keys():
    """The midpoint rule of smooth sums: the error falls fast, to none at as many points as keys."""
    model, images = network(), torch.randn(1, 3, 192, 256, dtype=torch.float64)
    found = compare_grids(model, images, k=3, grids=(2, 3, 4, 6, 8), match="*stages.2*")
    row = found[NAMES[2]]
    assert row[2] > 1e-4
    assert row[3] < 0.5 * row[2]
    assert row[4] < 0.2 * row[2]
    assert row[6] < 0.2 * row[4]
    assert row[8] < 1e-12  # 6 x 8 keys: all of them


def test_half_precision_and_autocast():
    model, images = network().float(), torch.randn(1, 3, 64, 64)
    converted = convert_attention(model, k=4).model
    with torch.no_grad():
        expected = converted(images).logits
        half = converted.to(torch.bfloat16)(images.bfloat16()).logits
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.15)
        with torch.autocast("cpu", torch.bfloat16):
            again = convert_attention(model, k=4).model(images).logits
    torch.testing.assert_close(again.float(), expected, rtol=0.1, atol=0.15)


def test_mask_is_refused():
    attention = SegformerFrequencyAttention(network().get_submodule(NAMES[3]), k=2)
    tokens = torch.zeros(1, 4, 16, dtype=torch.float64)
    with pytest.raises(InputError, match="no attention mask"):
        attention(tokens, 2, 2, attention_mask=torch.ones(1))
