"""The library on a CUDA device, against itself in float64 on the CPU: `pytest -m gpu -n 0`.

The layer's own formulas are tested on the CPU against independent code. Here it is the device that
is in question, so the CPU is the reference.
"""

import copy
from functools import partial

import pytest
import torch
from support.layers import BLOCKS, SIMILARITIES, opened, relative_error

from fsanet import FrequencySelfAttention, FsaNet, Predictor, SpatialSelfAttention
from fsanet.bench.compare_layers import LayerSettings, make_layer
from fsanet.bench.measure import Findings, measure_alone
from fsanet.data import SceneData
from fsanet.train import SemanticSegmentation, evaluate, train

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def pair(similarity, block="nonlocal", recurrence=2):
    """A layer in float64 on the CPU, the same on the device, and an input."""
    layer = opened(
        FrequencySelfAttention(
            32, k=(4, 5), similarity=similarity, block=block, recurrence=recurrence
        )
    )
    x = torch.randn(2, 32, 17, 23, generator=torch.Generator().manual_seed(2)).double()
    return layer, copy.deepcopy(layer).to(DEVICE), x


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_values_and_gradients(similarity, block, mode):
    here, there, x = pair(similarity, block)
    results = []
    for layer, device in ((here, "cpu"), (there, DEVICE)):
        layer.train(mode == "train")
        given = x.to(device).requires_grad_()
        out = layer(given)
        out.square().sum().backward()
        grads = {name: p.grad.cpu() for name, p in layer.named_parameters()}
        results.append((out.detach().cpu(), given.grad.cpu(), grads, dict(layer.named_buffers())))
    (out, grad, grads, buffers), (out_, grad_, grads_, buffers_) = results
    assert relative_error(out_, out) < 1e-12
    assert relative_error(grad_, grad) < 1e-10
    for name in grads:
        assert relative_error(grads_[name], grads[name]) < 1e-8, name
    for name, value in buffers.items():
        torch.testing.assert_close(buffers_[name].cpu(), value)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    ("dtype", "channels_last", "tolerance"),
    [
        (torch.float32, False, 1e-3),  # TF32 products are allowed to differ by this
        (torch.float32, True, 1e-3),
        (torch.bfloat16, False, 3e-2),
        (torch.float16, True, 5e-3),
    ],
)
def test_dtypes_and_memory_formats(similarity, dtype, channels_last, tolerance):
    here, there, x = pair(similarity)
    want = here.eval()(x)
    given = x.to(DEVICE, dtype)
    if channels_last:
        given = given.to(memory_format=torch.channels_last)
    with torch.no_grad():
        got = there.eval().to(dtype)(given)
    assert got.dtype == dtype
    assert relative_error(got.double().cpu(), want.detach()) < tolerance


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_autocast_and_one_graph(similarity):
    here, there, x = pair(similarity)
    want = here.eval()(x).detach()
    there = there.eval().float()
    compiled = torch.compile(there, fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(x.to(DEVICE).float()).double().cpu(), want) < 1e-3
        with torch.autocast(torch.device(DEVICE).type, dtype=torch.bfloat16):
            mixed = there(x.to(DEVICE).float())
    assert relative_error(mixed.double().cpu(), want) < 3e-2


def test_all_frequencies_equal_the_regular_layer():
    full = opened(FrequencySelfAttention(16, k=None, similarity="softmax")).eval().to(DEVICE)
    regular = SpatialSelfAttention(16, similarity="softmax").double().eval().to(DEVICE)
    regular.load_state_dict(full.state_dict())
    x = torch.randn(2, 16, 9, 13, dtype=torch.float64, device=DEVICE)
    assert relative_error(full(x), regular(x)) < 1e-10


@pytest.mark.parametrize("name", ["floor", "sdpa", "dot-R1", "linear_softmax-R2"])
def test_bench_measures_memory_of_the_device(name):
    settings = LayerSettings(
        layers=(name,), sizes=((33, 33),), channels=64, batch=2, device=DEVICE, threads=1
    )
    make = partial(make_layer, settings, name, (33, 33))
    found = measure_alone(make, settings, Findings(), backward=name != "floor")
    assert found.problem is None
    assert found.peak >= 2 * 64 * 33 * 33 * 4  # the output at least


@pytest.mark.parametrize("offload", [False, True])
def test_prediction(offload):
    model = FsaNet("resnet10t", num_classes=5, head_channels=16, aux_channels=0).eval()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    how = {"window": 64, "scales": (0.75, 1.0), "flip": True}
    want = Predictor(model, **how)(image).mask
    there = Predictor(copy.deepcopy(model).to(DEVICE), offload=offload, **how)(image).mask
    assert (torch.as_tensor(want) == torch.as_tensor(there)).double().mean() > 0.999


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training(precision, tmp_path):
    data = SceneData(
        size=(64, 128), train_length=8, val_length=2, batch_size=4, steps_per_epoch=4, workers=1
    )
    names = {"num_classes": data.num_classes, "classes": data.classes}
    model = FsaNet("resnet10t", head_channels=16, aux_channels=8, **names)
    task = SemanticSegmentation(model, classes=data.classes, optimizer="adamw", lr=1e-3)
    accelerator = "gpu" if DEVICE == "cuda" else DEVICE
    options = {"accelerator": accelerator, "precision": precision, "progress": False}
    result = train(task, data, out=tmp_path / "run", steps=8, **options)
    assert result.steps == 8
    # The score is that of the saved network, computed again on the CPU in float32.
    again = evaluate(result.model, data, split="val", accelerator="cpu", progress=False)
    assert result.best_score == pytest.approx(again.miou, abs=0.02)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [8, ((1, 12), (0, 3))])
def test_triton_kernels_equal_the_eager_route(monkeypatch, k, dtype, memory_format):
    layer = FrequencySelfAttention(48, k=k, recurrence=2, zero_init=False).to(DEVICE)
    x = torch.randn(2, 48, 37, 83, device=DEVICE).to(dtype).to(memory_format=memory_format)
    results = []
    for wanted in "01":
        monkeypatch.setenv("FSANET_TRITON", wanted)
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = layer(given)
        out.float().square().sum().backward()
        with torch.no_grad():
            inplace = layer.eval()(x.clone(memory_format=torch.preserve_format), inplace=True)
            inferred = layer(x)
        layer.train()
        assert torch.equal(inplace, inferred)
        results.append((out.detach(), given.grad, inferred))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for eager, triton in zip(*results, strict=True):
        assert relative_error(triton.double(), eager.double()) < tolerance
