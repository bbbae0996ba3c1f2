"""The Triton kernels under Triton's interpreter, against the mathematics."""

import pytest
import torch
from support.reference import dct_rows, low_pass

from fsanet import FrequencySelfAttention
from fsanet.attention import kernels

pytest.importorskip("triton", reason="Triton comes with the CUDA build of torch")
triton_kernels = pytest.importorskip("fsanet.attention.triton_kernels")
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="compiled: see test_cuda.py")
H, W = 17, 66  # more than one group of rows, and of columns
BAND = (0, 3, 1, 6)


def bases():
    return dct_rows(H, *BAND[:2]).float(), dct_rows(W, *BAND[2:]).float()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_analysis_and_synthesis(dtype, memory_format):
    rows, columns = bases()
    x = torch.randn(1, 17, H, W).to(dtype).to(memory_format=memory_format)
    wide = x.double()
    c = triton_kernels.analyse(x, rows, columns)
    torch.testing.assert_close(c.double(), rows.double() @ wide @ columns.double().T, **near(1e-5))
    y = triton_kernels.synthesise(c, rows, columns)
    torch.testing.assert_close(y.double(), low_pass(wide, BAND), **near(1e-5))
    shift = torch.randn(1, 17)
    expected = wide + low_pass(wide, BAND) + shift[..., None, None]
    # half a unit in the last place; of bfloat16 a whole one, which the interpreter cuts off
    step = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-11}[dtype]
    y = triton_kernels.synthesise(c, rows, columns, residual=x, constant=shift)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y.double(), expected, rtol=step, atol=1e-4)
    result = triton_kernels.synthesise(c, rows, columns, residual=x, constant=shift, inplace=True)
    assert result.data_ptr() == x.data_ptr()
    assert torch.equal(x, y)


def near(tolerance):
    return {"rtol": tolerance, "atol": tolerance}


@interpreted
def test_a_map_with_gaps():
    rows, columns = bases()
    x = torch.randn(1, 3, H, 2 * W)[..., ::2]
    c = triton_kernels.analyse(x, rows, columns)
    torch.testing.assert_close(c, rows @ x @ columns.T, **near(1e-5))
    y = triton_kernels.synthesise(c, rows, columns, residual=x)
    torch.testing.assert_close(y, x + rows.T @ c @ columns, **near(1e-5))


@interpreted
@pytest.mark.parametrize(
    ("k", "training", "dtype", "memory_format"),
    [
        (3, False, torch.float32, torch.contiguous_format),
        (((1, 3), (0, 2)), True, torch.float32, torch.contiguous_format),
        (3, True, torch.float32, torch.channels_last),
        (3, False, torch.bfloat16, torch.channels_last),
        (3, False, torch.float16, torch.contiguous_format),
    ],
)
def test_the_layer_and_its_gradients(k, training, dtype, memory_format, monkeypatch):
    torch.manual_seed(0)
    layer = FrequencySelfAttention(6, k=k, recurrence=2, zero_init=False).train(training)
    x = torch.randn(2, 6, 5, 18).to(dtype, memory_format=memory_format).requires_grad_()
    weight = torch.randn_like(x)
    results = []
    for taken in (True, False):
        monkeypatch.setattr(kernels, "_takes_triton", lambda *arguments, taken=taken: taken)
        y = layer(x)
        grads = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
        results.append([y, *grads])
    # Values may be rounded to the next one of the dtype.
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = max(1e-4, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(ours, theirs, **near(tolerance))


def test_rule(monkeypatch):
    class Cuda:
        is_cuda, dtype, shape = True, torch.float32, (1, 16, 4, 4)

        def numel(self):
            return 256

    monkeypatch.setattr(kernels, "is_transformed", lambda x: False)
    monkeypatch.delenv("FSANET_TRITON", raising=False)
    monkeypatch.setattr(kernels, "_is_channels_last", lambda x: False)
    choose = kernels.choose_route
    assert choose(Cuda(), torch.float32, frequencies=64) == "planes"
    monkeypatch.setenv("FSANET_TRITON", "1")
    assert choose(Cuda(), torch.float32, frequencies=64) == "triton"
    assert choose(Cuda(), torch.float32, products=9) == "planes"
    assert choose(Cuda(), torch.float32, frequencies=2048) == "planes"
    assert choose(torch.zeros(1, 16, 4, 4), torch.float32, frequencies=64) == "planes"
