"""FrequencySelfAttention against plain N x N attention on the low-passed map, in float64."""

import copy

import pytest
import torch
from support.layers import BLOCKS, SIMILARITIES, Written, opened, relative_error
from support.reference import apply_block, low_pass
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsanet import FrequencySelfAttention, SpatialSelfAttention


def expected(layer, x, band, norm=None):
    with torch.no_grad():
        return apply_block(x, layer, band, norm)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize(
    ("k", "band"),
    [
        (3, (0, 3, 0, 3)),
        ((4, 2), (0, 4, 0, 2)),
        (((1, 4), (2, 6)), (1, 4, 2, 6)),  # no DC
        (((0, 3), (1, 4)), (0, 3, 1, 4)),  # no DC, first row
    ],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_plain_attention_on_the_low_passed_map(
    similarity, block, qkv_bias, recurrence, k, band, mode
):
    torch.manual_seed(1)
    layer = FrequencySelfAttention(
        12, k=k, similarity=similarity, recurrence=recurrence, block=block, qkv_bias=qkv_bias
    )
    layer = opened(layer).train(mode == "train")
    norm = None
    if layer.norm is not None:
        norm = copy.deepcopy(layer.norm)
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64) + 0.7
    want = expected(layer, x, band, norm)
    with torch.no_grad():
        got = layer(x)
    assert relative_error(got - x, want - x) <= 1e-10
    if norm is not None:
        assert relative_error(layer.norm.running_mean, norm.running_mean) <= 1e-12
        assert relative_error(layer.norm.running_var, norm.running_var) <= 1e-12
        assert layer.norm.num_batches_tracked == norm.num_batches_tracked


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("size", [(1, 13), (13, 1), (1, 1), (5, 5), (16, 9)])
def test_any_size_and_bands_larger_than_the_map(similarity, size):
    layer = opened(FrequencySelfAttention(8, k=8, similarity=similarity, recurrence=2)).eval()
    x = torch.randn(3, 8, *size, dtype=torch.float64)
    band = (0, min(8, size[0]), 0, min(8, size[1]))
    want = expected(layer, x, band, copy.deepcopy(layer.norm))
    assert relative_error(layer(x).detach() - x, want - x) <= 1e-10


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("k", [None, 64])
def test_full_band_is_the_spatial_layer(similarity, block, qkv_bias, k):
    """With the same state_dict, in training mode, gradients and running averages included."""
    options = {"similarity": similarity, "block": block, "qkv_bias": qkv_bias, "recurrence": 2}
    layer = opened(FrequencySelfAttention(8, k=k, **options))
    spatial = SpatialSelfAttention(8, **options).double()
    spatial.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 6, 11, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = layer(a), spatial(b)
    assert relative_error(got, want) <= 1e-10
    weight = torch.randn_like(x)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    assert relative_error(a.grad, b.grad) <= 1e-9
    # batch norm takes out a constant: the value bias has a gradient of zero but for rounding
    largest = max(q.grad.norm() for q in spatial.parameters())
    for (name, p), q in zip(layer.named_parameters(), spatial.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-9 * q.grad.norm() + 1e-11 * largest, name
    for (name, p), q in zip(layer.named_buffers(), spatial.buffers(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_wide_band_equals_narrow_route(similarity, block, mode):
    """Bands with more coefficients than channels take another route to the same function."""
    layer = opened(
        FrequencySelfAttention(4, k=7, similarity=similarity, recurrence=2, block=block)
    ).train(mode == "train")
    norm = copy.deepcopy(layer.norm)
    x = torch.randn(2, 4, 10, 9, dtype=torch.float64)
    want = expected(layer, x, (0, 7, 0, 7), norm)
    assert relative_error(layer(x).detach() - x, want - x) <= 1e-10


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("k", [2, ((1, 3), (0, 2))])
def test_gradcheck(similarity, block, k):
    torch.manual_seed(0)
    layer = opened(
        FrequencySelfAttention(
            4, k=k, similarity=similarity, recurrence=2, block=block, qkv_bias=True
        )
    )
    if layer.norm is not None:
        layer.norm.track_running_stats = False
        layer.norm.running_mean = layer.norm.running_var = layer.norm.num_batches_tracked = None
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax", "linear"])
@pytest.mark.parametrize("recurrence", [1, 4])
def test_one_analysis_and_one_synthesis(similarity, recurrence):
    """For any recurrence nothing in forward is as large as the map, except the output."""
    layer = FrequencySelfAttention(96, k=4, similarity=similarity, recurrence=recurrence)
    x = torch.randn(1, 96, 48, 64)
    with torch.no_grad(), Written() as written:
        layer(x)
    output, largest = written.sizes()[:2]
    assert output == x.numel()
    # one product along H; for the linear forms kw + 1 columns per row of the grid and round
    assert largest <= (96 * 4 * 64 if similarity == "dot" else (recurrence * 5 + 1) * 48 * 96)


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_map_has_no_wider_copy(similarity, memory_format):
    layer = FrequencySelfAttention(128, k=4, similarity=similarity, zero_init=False).eval()
    x = torch.randn(2, 128, 24, 32, dtype=torch.bfloat16).to(memory_format=memory_format)
    with torch.no_grad(), Written() as written:
        y = layer(x)
    assert y.is_contiguous(memory_format=memory_format)
    assert written.sizes(torch.float32)[0] <= x.numel() // 4
    want = layer(x.float())
    assert relative_error(y.float(), want) <= torch.finfo(torch.bfloat16).eps
    y = x.float().requires_grad_()
    layer(y.bfloat16()).float().square().sum().backward()
    assert y.grad.isfinite().all()


def test_recurrence_costs_coefficients_only():
    x = torch.randn(1, 64, 64, 96)

    def flops(recurrence):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            FrequencySelfAttention(64, k=4, recurrence=recurrence)(x)
        return counter.get_total_flops()

    c, e, k, n = 64, 32, 16, 64 * 96
    transform = 2 * (2 * c * 4 * n + 2 * c * k * 96)  # there and back
    round_ = 2 * k * (3 * c * e + c * e) + 2 * k * k * 2 * e  # q, k, v, out; k^T q and v F
    assert flops(1) == transform + round_
    assert flops(4) == transform + 4 * round_


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_n_by_n_at_full_band(similarity):
    layer = FrequencySelfAttention(8, k=None, similarity=similarity)
    with torch.no_grad(), Written() as written:
        layer(torch.randn(1, 8, 40, 40))
    assert written.sizes()[0] < 1600 * 1600 / 10


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_within_its_rounding(similarity, dtype, autocast):
    layer = opened(FrequencySelfAttention(16, k=4, similarity=similarity, recurrence=2)).eval()
    x = torch.randn(2, 16, 20, 24, dtype=torch.float64) + 3
    want = layer(x).detach()
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            got = layer.float()(x.float())
        assert got.dtype == torch.float32
    else:
        got = layer.to(dtype)(x.to(dtype))
        assert got.dtype == dtype
    eps = torch.finfo(dtype).eps
    # the exact low-pass in float32 leaves the rounding of input, weights and output
    tolerance = 8 * eps if similarity != "softmax" or not autocast else 16 * eps
    assert relative_error(got.double(), want) <= tolerance
    if autocast and similarity != "softmax":
        assert relative_error(got.double(), want) <= 1e-5


def test_whole_band_does_not_overflow_in_float16():
    layer = opened(FrequencySelfAttention(64, k=None)).eval()
    torch.manual_seed(0)
    x = 20 * torch.randn(1, 64, 48, 64, dtype=torch.float64)
    want = layer(x).detach()
    got = layer.half()(x.half())
    assert relative_error(got.double(), want) <= 8 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_float32_is_within_its_rounding(similarity):
    layer = opened(FrequencySelfAttention(32, k=8, similarity=similarity, recurrence=2)).eval()
    torch.manual_seed(0)
    x = torch.randn(1, 32, 40, 56, dtype=torch.float64) + 5
    want = layer(x).detach()
    # "dot" is cubic in its input, twice over: nine times the input's rounding, at the least
    assert relative_error(layer.float()(x.float()).double(), want) <= 64 * torch.finfo().eps


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_constant_maps_give_finite_values_and_gradients(similarity, fill):
    layer = FrequencySelfAttention(8, k=3, similarity=similarity, zero_init=False)
    x = torch.full((2, 8, 6, 7), fill, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_linear_survives_a_denominator_of_zero():
    layer = FrequencySelfAttention(2, k=1, similarity="linear", block="ccnet", qk_channels=2)
    with torch.no_grad():
        layer.query.weight.copy_(torch.eye(2))
        layer.key.weight.copy_(-torch.eye(2))
        layer.gate.fill_(1.0)
    x = torch.ones(1, 2, 4, 4) * (2**0.5 / 2) ** 0.5  # scale * q.k = -1 at every pair
    assert layer(x).isfinite().all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_channels_last_in_channels_last_out(similarity):
    layer = opened(FrequencySelfAttention(8, k=4, similarity=similarity, recurrence=2)).eval()
    x = torch.randn(2, 8, 10, 12, dtype=torch.float64)
    got = layer(x.to(memory_format=torch.channels_last))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(got, layer(x)) <= 1e-12


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_meta_empty_and_strided_inputs(similarity):
    layer = FrequencySelfAttention(8, k=4, similarity=similarity, recurrence=2).eval()
    assert layer(torch.randn(0, 8, 10, 12)).shape == (0, 8, 10, 12)
    x = torch.randn(2, 8, 10, 24)[..., ::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    meta = copy.deepcopy(layer).to("meta")
    assert meta(torch.randn(2, 8, 10, 12, device="meta")).device.type == "meta"


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_vmap_and_functional_call(similarity):
    layer = opened(FrequencySelfAttention(8, k=4, similarity=similarity, recurrence=2)).eval()
    x = torch.randn(3, 2, 8, 10, 12, dtype=torch.float64)
    want = torch.stack([layer(part) for part in x])
    torch.testing.assert_close(torch.func.vmap(layer)(x), want)
    # an ensemble: other weights for each of three copies
    copies = [opened(copy.deepcopy(layer), seed).eval() for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(copies)
    got = torch.func.vmap(lambda p, b, x: torch.func.functional_call(layer, (p, b), (x,)))(
        parameters, buffers, x
    )
    want = torch.stack([c(part) for c, part in zip(copies, x, strict=True)])
    torch.testing.assert_close(got, want)
    # gradients for each sample of a batch
    loss = lambda x: layer(x[None]).square().sum()  # noqa: E731
    per_sample = torch.func.vmap(torch.func.grad(loss))(x[0])
    torch.testing.assert_close(per_sample[1], torch.func.grad(loss)(x[0][1]))


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_vmap_of_half_precision_in_inference(similarity, memory_format):
    layer = FrequencySelfAttention(32, k=3, similarity=similarity, zero_init=False).eval()
    x = torch.randn(4, 32, 9, 10).bfloat16().to(memory_format=memory_format)
    with torch.no_grad():
        got = torch.func.vmap(lambda one: layer(one[None])[0])(x)
        torch.testing.assert_close(got, layer(x))


def test_zero_init_is_the_identity():
    x = torch.randn(2, 16, 9, 9)
    for options in ({}, {"block": "ccnet"}, {"norm": False}):
        layer = FrequencySelfAttention(16, **options)
        torch.testing.assert_close(layer(x), x)
        assert not torch.equal(FrequencySelfAttention(16, zero_init=False, **options)(x), x)


def test_high_frequencies_pass_untouched():
    layer = opened(FrequencySelfAttention(8, k=3, recurrence=2))
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    change = layer(x) - x
    assert change.norm() > 1
    torch.testing.assert_close(low_pass(change.detach(), (0, 3, 0, 3)), change.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "at least 1 row frequency"),
        ({"similarity": "cosine"}, "use one of dot, linear_softmax, linear, softmax"),
        ({"block": "other"}, "use one of nonlocal, ccnet"),
        ({"recurrence": 0}, "recurrence=0"),
        ({"qk_channels": 0}, "qk_channels=0"),
        ({"block": "ccnet", "value_channels": 4}, "no output projection"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        FrequencySelfAttention(8, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 7, 4, 4), r"expected a feature map \(B, 8, H, W\), got \(1, 7, 4, 4\)"),
        (torch.zeros(8, 4, 4), "expected a feature map"),
        (torch.zeros(1, 8, 4, 4, dtype=torch.long), "floating-point"),
    ],
)
def test_invalid_inputs(x, message):
    with pytest.raises(ValueError, match=message):
        FrequencySelfAttention(8)(x)


def test_band_outside_the_map():
    layer = FrequencySelfAttention(8, k=((6, 9), (0, 4)))
    with pytest.raises(ValueError, match="outside the frequencies of the 5x9 feature map"):
        layer(torch.zeros(1, 8, 5, 9))


def test_parameters_move_with_the_module():
    layer = FrequencySelfAttention(8, dtype=torch.float64, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert isinstance(layer.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("k", [3, ((1, 3), (2, 4)), None])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_in_place_overwrites_the_map_in_inference(similarity, k):
    layer = FrequencySelfAttention(
        8, k=k, similarity=similarity, recurrence=2, zero_init=False, inplace=True
    ).eval()
    x = torch.randn(2, 8, 6, 7)
    with torch.inference_mode():
        expected = layer(x, inplace=False)
        assert not torch.equal(expected, x)
        result = layer(x)
    assert result.data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, expected)
    with pytest.raises(ValueError, match=r"call the layer under torch.no_grad"):
        layer(x.requires_grad_())
