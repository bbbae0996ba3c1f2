"""What every published layer does, whatever its formula."""

import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench import layers as bench_layers
from fsanet.bench.layers import (
    CrissCrossAttention,
    DoubleAttention,
    EMAttention,
    ExternalAttention,
    FourierMixing,
    InterlacedAttention,
    LinearAttention,
    MaterialisedSelfAttention,
    PaperFrequencyAttention,
    PyramidNonLocal,
    SpatialReductionAttention,
)
from fsanet.cost import count_flops

# The options that differ from the defaults, at 8 channels.
VARIANTS = {
    "materialised": (MaterialisedSelfAttention, {}),
    "materialised-R2": (MaterialisedSelfAttention, {"recurrence": 2, "value_channels": 3}),
    "paper": (PaperFrequencyAttention, {"k": 3}),
    "paper-R2": (PaperFrequencyAttention, {"k": (2, 3), "recurrence": 2, "value_channels": 3}),
    "paper-linear": (PaperFrequencyAttention, {"k": 3, "similarity": "linear_softmax"}),
    "criss-cross": (CrissCrossAttention, {}),
    "criss-cross-R1": (CrissCrossAttention, {"recurrence": 1, "qk_channels": 3}),
    "ema": (EMAttention, {"bases": 4}),
    "ema-T1": (EMAttention, {"bases": 3, "iterations": 1}),
    "double": (DoubleAttention, {}),
    "double-m3-n5": (DoubleAttention, {"feature_channels": 3, "attention_maps": 5}),
    "interlaced": (InterlacedAttention, {}),
    "interlaced-P3": (InterlacedAttention, {"block_size": 3, "inner_channels": 3}),
    "pyramid": (PyramidNonLocal, {}),
    "pyramid-2-3": (PyramidNonLocal, {"pool_sizes": (2, 3), "inner_channels": 3}),
    "linear": (LinearAttention, {"heads": 2}),
    "linear-inner6": (LinearAttention, {"inner_channels": 6}),
    "external": (ExternalAttention, {"slots": 5}),
    "reduction": (SpatialReductionAttention, {"ratio": 2, "heads": 2}),
    "reduction-r1": (SpatialReductionAttention, {"ratio": 1}),
    "fourier": (FourierMixing, {"blocks": 2}),
    "fourier-b8": (FourierMixing, {"shrinkage": 0.0}),
}
CHANNELS = 8
every_variant = pytest.mark.parametrize("variant", VARIANTS)
# A batch of one takes another way back to the map.
SIZES = [(1, 7, 5), (2, 9, 13), (1, 1, 6), (3, 1, 1), (2, 16, 17)]


def build(variant, **options):
    layer, own = VARIANTS[variant]
    torch.manual_seed(0)
    return layer(CHANNELS, **own, **options)


def test_every_layer_is_listed():
    names = {layer.__name__ for layer, _ in VARIANTS.values()}
    assert names == set(bench_layers.__all__)


@every_variant
@pytest.mark.parametrize("size", SIZES)
def test_any_map_to_the_same_shape(variant, size):
    layer = opened(build(variant)).eval()
    x = torch.randn(size[0], CHANNELS, *size[1:], dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        y = layer(x)
        assert y.shape == x.shape
        assert y.is_contiguous()
        assert torch.isfinite(y).all()
        assert torch.equal(x, before)
        assert relative_error(y, x) > 1e-4  # not the identity
        # the images of a batch do not see each other
        alone = torch.cat([layer(image[None]) for image in x])
        assert relative_error(y, alone) < 1e-12
        memory = x.contiguous(memory_format=torch.channels_last)
        assert relative_error(layer(memory), y) < 1e-12


@every_variant
@pytest.mark.parametrize("training", [True, False])
def test_gradient_reaches_input_and_every_parameter(variant, training):
    layer = opened(build(variant)).train(training)
    x = torch.randn(2, CHANNELS, 7, 5, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    ((y - x) * torch.randn_like(x)).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert gradient.norm() > 1e-6, name


@every_variant
def test_gradcheck(variant):
    layer = opened(build(variant)).eval()
    x = torch.randn(2, CHANNELS, 4, 5, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@torch.no_grad()
@every_variant
def test_nothing_but_ffts_escapes_the_flop_counter(variant):
    layer = build(variant).eval()
    assert hasattr(layer, "uncounted_flops") == isinstance(layer, FourierMixing)
    assert count_flops(lambda: layer(torch.randn(2, CHANNELS, 9, 13))) > 0


@every_variant
def test_half_precision_stays_near_single(variant):
    layer = build(variant).eval()
    for p in layer.parameters():
        if p.ndim < 2:  # move gates and norms away from zero
            torch.nn.init.uniform_(p, 0.5, 1.0)
    x = torch.randn(2, CHANNELS, 9, 13)
    with torch.no_grad():
        want = layer(x) - x
        y = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    # input and sum are rounded, both relative to the size of the output
    assert (y.float() - x.bfloat16().float() - want).norm() < 0.03 * (want.norm() + x.norm())


@every_variant
def test_evaluation_changes_no_state(variant):
    layer = opened(build(variant)).eval()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(2, CHANNELS, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name


@every_variant
def test_training_differs_only_where_there_is_state(variant):
    layer = opened(build(variant))
    x = torch.randn(2, CHANNELS, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        still = layer.eval()(x)
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        trained = layer.train()(x)
    changed = {name for name, value in layer.state_dict().items() if not value.equal(state[name])}
    if isinstance(layer, EMAttention):
        assert changed == {"bases"}  # used by the next call
        assert relative_error(trained, still) < 1e-12
    elif isinstance(layer, MaterialisedSelfAttention | PaperFrequencyAttention):
        assert changed == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
        assert relative_error(trained, still) > 1e-3
    else:
        assert not changed
        assert relative_error(trained, still) < 1e-12


@every_variant
def test_inputs_that_are_refused(variant):
    layer = build(variant)
    with pytest.raises(ValueError, match=r"expected a feature map \(B, 8, H, W\)"):
        layer(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="expected a floating-point feature map"):
        layer(torch.zeros(1, CHANNELS, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"channels=0.*(at least 1|>= 1)"):
        type(layer)(0)
