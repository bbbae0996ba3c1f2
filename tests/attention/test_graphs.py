"""torch.compile, torch.export and ONNX give what eager gives, at other sizes than the traced."""

import pytest
import torch
from support.layers import SIMILARITIES, opened
from torch import nn

from fsanet import BandTreatments, FrequencySelfAttention

DYNAMIC = (
    {2: torch.export.Dim("height", min=8, max=256), 3: torch.export.Dim("width", min=8, max=256)},
)


def layer_of(similarity, recurrence=2, **options):
    options = {"k": 4, "similarity": similarity, "recurrence": recurrence, **options}
    return opened(FrequencySelfAttention(8, **options)).float().eval()


def random(height=20, width=24):
    return torch.randn(2, 8, height, width)


@pytest.mark.parametrize(
    ("similarity", "block"),
    [
        ("dot", "ccnet"),
        pytest.param("linear_softmax", "nonlocal", marks=pytest.mark.slow),
        pytest.param("linear", "ccnet", marks=pytest.mark.slow),
        pytest.param("softmax", "nonlocal", marks=pytest.mark.slow),
    ],
)
def test_export_with_dynamic_size(similarity, block):
    recurrence = 2 if similarity == "dot" else 1
    layer = layer_of(similarity, recurrence, block=block, qkv_bias=True)
    exported = torch.export.export(layer, (random(),), dynamic_shapes=DYNAMIC).module()
    for size in ((33, 17), (8, 64)):
        x = random(*size)
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_export_of_bands_with_dynamic_size():
    layer = BandTreatments(
        [
            (3, FrequencySelfAttention(8, zero_init=False)),
            (((3, 6), (0, 6)), nn.Conv2d(8, 8, 1, bias=False)),
        ]
    ).eval()
    exported = torch.export.export(layer, (random(),), dynamic_shapes=DYNAMIC).module()
    x = random(31, 15)
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "similarity",
    ["dot", *(pytest.param(s, marks=pytest.mark.slow) for s in SIMILARITIES if s != "dot")],
)
def test_compile_full_graph(similarity):
    """One graph, no break, and one recompilation at most for all later sizes."""
    layer = layer_of(similarity, 1)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for size in ((20, 24), (33, 17), (12, 40)):
        x = random(*size)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) <= 2


def check_compiled(layer, x, **options):
    """Output, memory layout and gradient of the compiled layer are those of the eager one."""
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, **options)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = compiled(a), layer(b)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    if not torch.__version__.startswith("2.11."):  # which returns a contiguous map
        assert got.stride() == want.stride()
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("similarity", "memory_format"),
    [
        pytest.param("dot", torch.channels_last, marks=pytest.mark.slow),
        pytest.param("dot", torch.contiguous_format, marks=pytest.mark.slow),
        pytest.param("linear_softmax", torch.contiguous_format, marks=pytest.mark.slow),
        pytest.param("linear_softmax", torch.channels_last, marks=pytest.mark.slow),
    ],
)
def test_compile_forward_and_backward(similarity, memory_format):
    """The graphs that Inductor is given, without its C++ compiler."""
    x = random().to(memory_format=memory_format)
    check_compiled(layer_of(similarity, 1), x, backend="aot_eager_decomp_partition")


@pytest.mark.slow
def test_compile_with_inductor():
    """The C++ compiler takes 10 s for its headers and 5 s per graph: one graph."""
    layer, x = layer_of("dot"), random()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, options={"compile_threads": 1})
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compile_forward_and_backward_with_inductor(similarity, memory_format):
    check_compiled(layer_of(similarity), random().to(memory_format=memory_format))


ONNX_MODELS = {
    "dot and linear_softmax": lambda: nn.Sequential(
        layer_of("dot", qkv_bias=True), layer_of("linear_softmax", 1, qkv_bias=True)
    ),
    **{s: lambda s=s: layer_of(s, qkv_bias=True) for s in SIMILARITIES},
}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dot and linear_softmax", *SIMILARITIES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_with_dynamic_size(model, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = ONNX_MODELS[model]().eval()
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer, (random(),), path, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((20, 24), (33, 17)):
        x = random(*size)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), layer(x).detach(), rtol=1e-4, atol=1e-4)
