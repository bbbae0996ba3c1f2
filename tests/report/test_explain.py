"""Explanations of a pixel: what the parts add up to, and that they follow the weights."""

import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from support.layers import SIMILARITIES
from support.tiny import draw_weights, small_fsanet

from fsanet.data.datasets.scenes import ProceduralScenes
from fsanet.errors import InputError
from fsanet.report.explain import (
    attend_from,
    explain,
    find_layer,
    grid_position,
    reduce_image,
)

AT = (100, 30)  # x, y


def network(seed=0, **options):
    options = {"num_classes": 4, "head_channels": 16, "k": 3, "zero_init": False} | options
    net = small_fsanet(**options)
    draw_weights(net, seed)
    return net


@pytest.fixture(scope="module")
def image():
    return ProceduralScenes(1, split="test", size=(56, 136))[0][0].as_subclass(torch.Tensor)


@pytest.fixture(scope="module")
def net():
    return network(similarity="linear_softmax", recurrence=2)


@pytest.fixture(scope="module")
def found(net, image):
    return explain(net, image, AT, steps=100)


def features(net, image):
    """The input of the attention, and what follows it, without hooks."""
    inputs = net.normalise(image[None])
    encoded = net.encoder(inputs)[-1]
    return inputs, encoded, net.head.reduce(encoded)


def logits_after(net, inputs, encoded, x):
    x = net.head.join(torch.cat([encoded, net.head.refine(x)], 1))
    return net.upsample(net.head.classify(x), inputs)


def test_what_the_network_says(net, found, image):
    net.eval()
    with torch.no_grad():
        logits = net(net.normalise(image[None]))[0]
    here = logits[:, AT[1], AT[0]]
    assert found.outcome.class_at_pixel == net.classes[int(here.argmax())]
    assert found.outcome.probability == pytest.approx(here.softmax(0).max().item(), rel=1e-4)
    assert torch.equal(found.result.mask, logits.argmax(0).to(torch.uint8))


def test_maps_of_the_bands_add_up_to_the_input_of_the_block(net, found, image):
    net.eval()
    with torch.no_grad():
        _, _, x = features(net, image)
    row, column = found.position
    here = x[0, :, row, column]
    along = torch.einsum("c,chw->hw", here / here.norm(), x[0])
    total = sum(part.map for part in found.parts)
    torch.testing.assert_close(total.double(), along.double(), rtol=1e-4, atol=1e-5)
    assert found.split_error < 1e-6
    assert sum(part.at_pixel for part in found.parts) == pytest.approx(1)
    assert sum(part.energy for part in found.parts) == pytest.approx(1)
    assert [part.name for part in found.parts] == ["constant", "1:3", "3:6", "6:"]


def test_a_dropped_band_is_taken_out_of_the_input_of_the_block(net, found, image):
    net.eval()
    with torch.no_grad():
        inputs, encoded, x = features(net, image)
        low = x.mean((2, 3), keepdim=True)
        logits = logits_after(net, inputs, encoded, net.head.attention(x - low))[0]
        skipped = logits_after(net, inputs, encoded, x)[0]
    target = net.classes.index(found.outcome.class_at_pixel)
    want = logits[target, AT[1], AT[0]].item()
    assert found.parts[0].without.logit == pytest.approx(want, rel=1e-3, abs=1e-4)
    mask = logits.argmax(0)
    changed = (mask != found.result.mask).double().mean().item()
    assert found.parts[0].without.changed == pytest.approx(changed, abs=2e-3)
    want = skipped[target, AT[1], AT[0]].item()
    assert found.no_attention.logit == pytest.approx(want, rel=1e-3, abs=1e-4)


def test_integrated_gradients_are_complete(found):
    assert found.gradients.map.shape == found.result.mask.shape
    assert float(found.gradients.map.sum()) == pytest.approx(found.gradients.total, rel=1e-4)
    assert found.gradients.error < 0.05


def test_each_step_of_the_integral_is_reported(net, image):
    watch = Mock()
    explain(net, image, AT, steps=5, watch=watch)
    watch.assert_called_once_with("integrated gradients", 5)
    assert watch.return_value.call_count == 5


def correlation(one, other):
    return abs(np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1])


def with_statistics(net, image):
    """The network with the batch statistics of an image, as any trained network has its own.

    Without them the features of random networks share a large mean. It makes the direction onto
    which bands are projected nearly the same everywhere, and the maps those of the image: between
    seeds they correlated by 0.77 to 0.96, and by 0.22 to 0.68 with statistics.
    """
    norms = [one for one in net.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(net.normalise(torch.stack([image, image.flip(-1)])))
    return net.eval()


@pytest.mark.parametrize(
    "similarity",
    ["dot", *(pytest.param(s, marks=pytest.mark.slow) for s in SIMILARITIES if s != "dot")],
)
def test_random_weights_give_other_maps(image, similarity):
    """Sanity check of saliency maps (arXiv 1810.03292): they explain weights, not edges."""
    one, again, other = (
        explain(with_statistics(network(seed, similarity=similarity), image), image, AT, steps=8)
        for seed in (1, 1, 2)
    )
    for name, maps in {
        "rows": [e.rows[0] for e in (one, again, other)],
        "gradients": [e.gradients.map for e in (one, again, other)],
        "bands": [torch.stack([p.map for p in e.parts[1:]]) for e in (one, again, other)],
    }.items():
        assert correlation(maps[0], maps[1]) > 0.999, name
        assert correlation(maps[0], maps[2]) < 0.7, name


def test_rows_alone(net, found, image):
    torch.testing.assert_close(attend_from(net, image, AT), found.rows)
    assert found.rows.shape == (2, 7, 17)


def test_mode_and_weights_are_left(image):
    net = network().train()
    net.head.reduce.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    explain(net, image, AT, gradients=False)
    assert net.training
    assert not net.head.reduce[0].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.head.attention._forward_hooks
    assert all(parameter.grad is None for parameter in net.parameters())


def test_another_layer_and_no_layer(image):
    name, layer = find_layer(network(attention="spatial"))
    assert (name, type(layer).__name__) == ("head.attention", "SpatialSelfAttention")
    spatial = explain(network(attention="spatial"), image, AT, gradients=False)
    assert spatial.gradients is None
    names = [part.name for part in spatial.parts]
    assert names == ["constant", "1:3x4", "3x4:7x8", "7x8:7x16", "7x16:"]
    with pytest.raises(InputError, match="FsaNet has no FrequencySelfAttention"):
        explain(network(attention=None), image, AT, gradients=False)
    with pytest.raises(InputError, match=r"layer 'head': .* one of head\.attention"):
        explain(network(), image, AT, layer="head", gradients=False)


def test_wrong_pixels_and_no_captum(image, monkeypatch):
    with pytest.raises(InputError, match=r"136,0 lies outside .* x from 0 to 135"):
        explain(network(), image, (136, 0), gradients=False)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"pip install 'fsanet\[explain\]'"):
        explain(network(), image, AT)


def test_weights_that_give_nan(image):
    broken = network()
    with torch.no_grad():
        broken.head.classify.weight.fill_(3e38)
    with pytest.raises(InputError, match="gives nan or infinity for this image"):
        explain(broken, image, AT, gradients=False)


def test_grid_and_reduction(image):
    assert grid_position((0, 0), (56, 136), (7, 17)) == (0, 0)
    assert grid_position((135, 55), (56, 136), (7, 17)) == (6, 16)
    same, at = reduce_image(image, AT, 136)
    assert same is image
    assert at == AT
    smaller, at = reduce_image(image, (135, 55), 68)
    assert smaller.shape == (3, 28, 68)
    assert at == (67, 27)
