"""The gradient of a map that is kept and analysed is one map, written once."""

import pytest
import torch

from fsanet import FrequencySelfAttention
from fsanet.attention.dct import analyse, dct_basis, full_precision
from fsanet.attention.kernels import analyse_and_keep

SIZE = (9, 7)


def bases(dtype):
    kwargs = {"dtype": dtype, "device": torch.device("cpu")}
    return dct_basis(9, 0, 3, **kwargs), dct_basis(7, 1, 4, **kwargs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_same_values_and_gradients_as_without(memory_format):
    rows, columns = bases(torch.float64)
    x = torch.randn(2, 5, *SIZE, dtype=torch.float64).to(memory_format=memory_format)
    of_x, of_c = torch.randn_like(x), torch.randn(2, 5, 3, 3, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    kept, coefficients = analyse_and_keep(a, rows, columns)
    assert torch.equal(kept, b)
    torch.testing.assert_close(coefficients, analyse(b, rows, columns))
    torch.autograd.backward([kept, coefficients], [of_x, of_c])
    torch.autograd.backward([b * 1, analyse(b, rows, columns)], [of_x, of_c])
    torch.testing.assert_close(a.grad, b.grad)


def test_either_output_alone_and_second_derivatives():
    rows, columns = bases(torch.float64)
    x = torch.randn(1, 2, *SIZE, dtype=torch.float64, requires_grad=True)
    for pick in (0, 1):
        assert torch.autograd.gradcheck(lambda x, i=pick: analyse_and_keep(x, rows, columns)[i], x)

    def squares(x):
        kept, c = analyse_and_keep(x, rows, columns)
        return kept.square(), c.square()

    assert torch.autograd.gradgradcheck(squares, x)


def test_backward_writes_one_map():
    layer = FrequencySelfAttention(64, k=4, zero_init=False).eval()
    x = torch.randn(1, 64, 48, 64, requires_grad=True)
    y, upstream = layer(x), torch.randn(1, 64, 48, 64)
    written = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            if (
                isinstance(out, torch.Tensor)
                and out.numel() == x.numel()
                and out.untyped_storage().data_ptr() not in known
            ):
                written.append(str(func))
            return out

    with Record():
        torch.autograd.grad(y, x, upstream)
    assert len(written) == 1


def test_autocast_does_not_reach_the_gradient():
    rows, columns = bases(torch.float32)
    x = torch.randn(1, 4, *SIZE, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(x):
            _, c = analyse_and_keep(x, rows, columns)
        (gradient,) = torch.autograd.grad(c, x, torch.ones_like(c))
    want = (rows.sum(0)[:, None] * columns.sum(0)).expand_as(x)
    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-5)
