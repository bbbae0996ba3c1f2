import copy

import pytest
import torch
from support.layers import opened, relative_error
from support.reference import apply_block

from fsanet import FrequencySelfAttention
from fsanet.bench.layers import PaperFrequencyAttention


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [3, (4, 2), ((1, 4), (2, 6))])
def test_is_the_function_of_our_layer(similarity, recurrence, training, k):
    options = {"k": k, "similarity": similarity, "recurrence": recurrence}
    paper = opened(PaperFrequencyAttention(10, **options)).train(training)
    ours = FrequencySelfAttention(10, block="nonlocal", **options).double()
    ours.load_state_dict(paper.state_dict())
    ours.train(training)
    a = (torch.randn(2, 10, 9, 7, dtype=torch.float64) + 0.5).requires_grad_()
    b = a.detach().clone().requires_grad_()
    got, want = paper(a), ours(b)
    assert relative_error(got - a, want - b) < 1e-10
    weight = torch.randn_like(got)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    assert relative_error(a.grad, b.grad) < 1e-9
    for (name, p), q in zip(paper.named_parameters(), ours.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < 1e-8, name
    for (name, p), q in zip(paper.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
def test_equals_plain_attention_on_the_low_passed_map(similarity):
    layer = opened(PaperFrequencyAttention(6, k=(3, 2), similarity=similarity, recurrence=2))
    norm = copy.deepcopy(layer.norm)
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        want = apply_block(x, layer, (0, 3, 0, 2), norm)
        assert relative_error(layer(x) - x, want - x) < 1e-10


def test_basis_follows_the_size():
    """The published code kept the basis of the first size; here the second size has its own."""
    layer = opened(PaperFrequencyAttention(6, k=3)).eval()
    for height, width in [(6, 8), (8, 6), (2, 9)]:
        x = torch.randn(1, 6, height, width, dtype=torch.float64)
        band = (0, min(3, height), 0, 3)
        with torch.no_grad():
            want = apply_block(x, layer, band, copy.deepcopy(layer.norm))
            assert relative_error(layer(x) - x, want - x) < 1e-10


def test_other_similarities_are_refused():
    with pytest.raises(ValueError, match='choose "dot" or "linear_softmax"'):
        PaperFrequencyAttention(6, similarity="softmax")
