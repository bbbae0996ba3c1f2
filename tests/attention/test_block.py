"""Published weights load by renaming keys alone."""

import pytest
import torch
from support.reference import low_pass
from torch import nn

from fsanet import FrequencySelfAttention
from fsanet.attention import rename_published_keys


def ccnet_block(c):
    """State of a published CCNet-lineage block: Conv1d weights, (1, C, 1) bias, (1,) gate."""
    inner = max(c // 8, 2)
    return {
        "query_conv.weight": torch.randn(inner, c, 1),
        "key_conv.weight": torch.randn(inner, c, 1),
        "value_conv.weight": torch.randn(c, c, 1),
        "out_bias": torch.randn(1, c, 1),
        "gamma": torch.randn(1),
    }


def nonlocal_block(c, dims, bias):
    """State of a published non-local block, with Conv1d (the paper's) or Conv2d weights."""
    ones = (1,) * dims
    state = {}
    for name, o, i in (("theta", c // 2, c), ("phi", c // 2, c), ("g", c // 2, c)):
        state[f"{name}.conv.weight"] = torch.randn(o, i, *ones)
        if bias:
            state[f"{name}.conv.bias"] = torch.randn(o)
    state["conv_out.conv.weight"] = torch.randn(c, c // 2, *ones)
    bn = nn.BatchNorm1d(c)
    for key, value in bn.state_dict().items():
        state[f"conv_out.bn.{key}"] = torch.rand_like(value) if value.ndim else value + 7
    return state


def published_forward(state, x, band, dims):
    """What the published dot-product block computes in eval mode, from its own keys."""
    f = nn.functional
    conv = f.conv1d if dims == 1 else (lambda t, w, b=None: f.conv1d(t, w.flatten(2), b))
    tokens = low_pass(x, band).flatten(2)
    n = tokens.shape[-1]
    if "gamma" in state:
        q, k, v = (conv(tokens, state[f"{m}_conv.weight"]) for m in ("query", "key", "value"))
        out = v @ (k.transpose(1, 2) @ q / n) + state["out_bias"]
        return x + state["gamma"] * out.view_as(x)
    q, k, v = (
        conv(tokens, state[f"{m}.conv.weight"], state.get(f"{m}.conv.bias"))
        for m in ("theta", "phi", "g")
    )
    out = conv(v @ (k.transpose(1, 2) @ q / n), state["conv_out.conv.weight"])
    bn = "conv_out.bn."
    out = f.batch_norm(
        out,
        state[bn + "running_mean"],
        state[bn + "running_var"],
        state[bn + "weight"],
        state[bn + "bias"],
    )
    return x + out.view_as(x)


def check(state, block, dims, qkv_bias):
    state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    layer = FrequencySelfAttention(16, k=3, block=block, qkv_bias=qkv_bias).double().eval()
    before = {k: v.shape for k, v in state.items()}
    layer.load_state_dict(rename_published_keys(state, block), strict=True)
    assert {k: v.shape for k, v in state.items()} == before
    x = torch.randn(2, 16, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(
        layer(x).detach(), published_forward(state, x, (0, 3, 0, 3), dims), rtol=1e-10, atol=1e-12
    )


def test_ccnet_lineage():
    check(ccnet_block(16), "ccnet", 1, False)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_nonlocal_lineage(dims, bias):
    check(nonlocal_block(16, dims, bias), "nonlocal", dims, bias)


def test_unknown_keys_are_named():
    with pytest.raises(
        ValueError, match=r"not keys of a published ccnet block: theta\.conv\.weight"
    ):
        rename_published_keys(
            {"theta.conv.weight": torch.zeros(1), "gamma": torch.zeros(1)}, "ccnet"
        )


def test_strict_loading_still_names_what_is_missing():
    state = rename_published_keys(ccnet_block(16), "ccnet")
    del state["gate"]
    with pytest.raises(RuntimeError, match="gate"):
        FrequencySelfAttention(16, block="ccnet").load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        FrequencySelfAttention(24, block="ccnet").load_state_dict(
            rename_published_keys(ccnet_block(16), "ccnet")
        )
