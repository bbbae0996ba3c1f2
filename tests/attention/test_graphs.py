"""torch.compile, torch.export and ONNX give what eager gives, at other sizes than the traced."""

import pytest
import torch
from support.layers import BLOCKS, SIMILARITIES, opened
from torch import nn

from fsanet import BandTreatments, FrequencySelfAttention

DYNAMIC = (
    {2: torch.export.Dim("height", min=8, max=256), 3: torch.export.Dim("width", min=8, max=256)},
)


def layer_of(similarity, block="nonlocal", **options):
    torch.manual_seed(0)
    layer = opened(
        FrequencySelfAttention(8, k=4, similarity=similarity, recurrence=2, block=block, **options)
    )
    return layer.float()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
def test_export_with_dynamic_size(similarity, block):
    layer = layer_of(similarity, block, qkv_bias=True).eval()
    exported = torch.export.export(layer, (torch.randn(2, 8, 20, 24),), dynamic_shapes=DYNAMIC)
    for size in ((20, 24), (33, 17), (8, 64)):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(exported.module()(x), layer(x), rtol=1e-5, atol=1e-5)


def test_export_of_bands_with_dynamic_size():
    layer = BandTreatments(
        [
            (3, FrequencySelfAttention(8, zero_init=False)),
            (((3, 6), (0, 6)), nn.Conv2d(8, 8, 1, bias=False)),
        ]
    ).eval()
    exported = torch.export.export(layer, (torch.randn(2, 8, 20, 24),), dynamic_shapes=DYNAMIC)
    x = torch.randn(2, 8, 31, 15)
    torch.testing.assert_close(exported.module()(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_compile_full_graph(similarity):
    """One graph, no break, one recompilation at most for all later sizes; training too."""
    layer = layer_of(similarity)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    layer.eval()
    for size in ((20, 24), (33, 17), (12, 40), (25, 31)):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) <= 2


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
def test_compile_with_inductor_forward_and_backward(similarity):
    layer = layer_of(similarity).eval()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    a = torch.randn(2, 8, 20, 24, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    got, want = compiled(a), layer(b)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_onnx_with_dynamic_size(similarity, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = layer_of(similarity, qkv_bias=True).eval()
    path = tmp_path / "layer.onnx"
    torch.onnx.export(
        layer,
        (torch.randn(2, 8, 20, 24),),
        path,
        dynamo=True,
        dynamic_shapes=DYNAMIC,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((20, 24), (33, 17)):
        x = torch.randn(2, 8, *size)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), layer(x).detach(), rtol=1e-4, atol=1e-4)
