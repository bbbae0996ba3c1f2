"""Every route of every operation computes the same, and the rule picks the intended one."""

import pytest
import torch
from support.layers import Written
from support.reference import dct_rows, low_pass

from fsanet import FrequencySelfAttention
from fsanet.attention import kernels
from fsanet.attention.dct import full_precision
from fsanet.attention.kernels import (
    add_row_products,
    analyse,
    analyse_with_residual,
    choose_route,
    synthesise,
)

B, C, H, W = 2, 17, 9, 7
BAND = (0, 3, 1, 4)
ROUTES = ["planes", "channels_last", "channel_groups", "compiled"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def random(*shape, **options):
    return torch.randn(*shape, dtype=torch.float64, **options)


def bases(dtype=torch.float64):
    return dct_rows(H, *BAND[:2]).to(dtype), dct_rows(W, *BAND[2:]).to(dtype)


@pytest.fixture(params=[*ROUTES, None])
def route(request, monkeypatch):
    """Every operation takes this route; None: the one the rule picks."""
    if request.param:
        monkeypatch.setattr(kernels, "choose_route", lambda *args, **options: request.param)
    return request.param


@pytest.fixture(params=[None, (8, 2), (2 * H * W * 8, 16)])
def parts(request, monkeypatch):
    """A map is large, and its parts have so many bytes and at least so many lines; None: small."""
    if request.param:
        part_bytes, lines = request.param
        monkeypatch.setattr(kernels, "PART_BYTES", part_bytes // torch.get_num_threads())
        monkeypatch.setattr(kernels, "FEWEST_LINES", lines)
        monkeypatch.setattr(kernels, "_adds_products_fast", lambda: False)


@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("constant", [False, True])
def test_analysis_and_synthesis(route, parts, memory_format, constant):
    rows, columns = bases()
    x = random(B, C, H, W).to(memory_format=memory_format)
    low = low_pass(x, BAND)
    before = x.clone()
    c = analyse(x, rows, columns)
    torch.testing.assert_close(c, rows @ x @ columns.T)
    torch.testing.assert_close(synthesise(c, rows, columns), low)
    shift = random(B, C) if constant else None
    added = shift[..., None, None] if constant else 0
    y = synthesise(c, rows, columns, residual=x, constant=shift)
    torch.testing.assert_close(y, x + low + added)
    torch.testing.assert_close(synthesise(c, rows, columns, constant=shift), low + added)
    assert torch.equal(x, before)
    if route in ("compiled", None):
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_row_products(route, parts, memory_format):
    x = random(B, C, H, W).to(memory_format=memory_format)
    left, right = random(B, H, 4, C), random(B, H, 4, W)
    before = x.clone()
    y = add_row_products(x, left, right)
    torch.testing.assert_close(y, x + torch.einsum("bhjc,bhjw->bchw", left, right))
    assert torch.equal(x, before)
    if route in ("compiled", None):
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [*LAYOUTS, None])
def test_in_place_is_the_same_in_the_memory_of_the_map(route, parts, memory_format, dtype):
    rows, columns = bases(torch.float32)
    c, left, right = (torch.randn(B, *shape) for shape in ((C, 3, 3), (H, 4, C), (H, 4, W)))
    x = torch.randn(B, C, H, 2 * W).to(dtype)[..., ::2]  # neither layout
    if memory_format is not None:
        x = x.contiguous(memory_format=memory_format)
    for operation in (
        lambda y, **how: synthesise(c, rows, columns, residual=y, constant=c[..., 0, 0], **how),
        lambda y, **how: add_row_products(y, left, right, **how),
    ):
        expected, place = operation(x), x.data_ptr()
        result = operation(x, inplace=True)
        assert result.data_ptr() == x.data_ptr() == place
        assert result.shape == x.shape
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("channels", [5, 40])
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_half_precision_is_rounded_once(route, channels, memory_format):
    rows, columns = bases(torch.float32)
    x = torch.randn(B, channels, H, W).bfloat16().to(memory_format=memory_format)
    c = analyse(x, rows, columns)
    assert c.dtype == torch.float32
    torch.testing.assert_close(c, rows @ x.float() @ columns.T, rtol=1e-5, atol=1e-5)
    left, right = torch.randn(B, H, 4, channels), torch.randn(B, H, 4, W)
    products = torch.einsum("bhjc,bhjw->bchw", left.double(), right.double())
    for got, added in (
        (synthesise(c, rows, columns, residual=x), low_pass(x.double(), BAND)),
        (add_row_products(x, left, right), products),
    ):
        assert got.dtype == torch.bfloat16
        # half a unit in the last place
        torch.testing.assert_close(got.double(), x.double() + added, rtol=2**-8, atol=1e-5)


def test_strided_map():
    rows, columns = bases()
    x = random(B, C, H, 2 * W)[..., ::2]
    c, left, right = random(B, C, 3, 3), random(B, H, 4, C), random(B, H, 4, W)
    close = torch.testing.assert_close
    close(analyse(x, rows, columns), analyse(x.contiguous(), rows, columns))
    close(
        synthesise(c, rows, columns, residual=x),
        synthesise(c, rows, columns, residual=x.contiguous()),
    )
    close(add_row_products(x, left, right), add_row_products(x.contiguous(), left, right))


def test_rule(monkeypatch):
    x = torch.zeros(1, 16, 4, 4)
    half, last = x.half(), x.to(memory_format=torch.channels_last)
    assert choose_route(x, torch.float32) == "planes"
    assert choose_route(last, torch.float32, products=4) == "channels_last"
    assert choose_route(last.half(), torch.float32) == "channel_groups"
    assert choose_route(last[:, :8].half(), torch.float32) == "channels_last"
    assert choose_route(half, torch.float32) == "channel_groups"
    assert choose_route(half[:, :8], torch.float32) == "planes"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose_route(x, torch.float32, products=18) == "compiled"
    assert choose_route(x, torch.float32, products=19) == "planes"
    assert choose_route(last, torch.float32, products=19) == "channels_last"
    assert choose_route(half, torch.float32) == "planes"
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for exported in (x, last, half):
        assert choose_route(exported, torch.float32, products=4) == "planes"


@pytest.mark.parametrize(
    ("mkl", "cpu", "fast"),
    [
        (True, {"cpu_name": "Intel Xeon"}, True),
        (True, {"cpu_name": "AMD EPYC"}, False),
        (False, {"cpu_name": "Intel Xeon"}, False),
        (True, {}, False),
        (True, None, False),  # a torch without get_capabilities
    ],
)
def test_a_product_is_added_at_once_where_that_is_fast(monkeypatch, mkl, cpu, fast):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    if cpu is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    adds_fast = kernels._adds_products_fast.__wrapped__
    assert adds_fast() is fast
    monkeypatch.setattr(kernels, "_adds_products_fast", adds_fast)
    large = torch.empty(8 * kernels.PART_BYTES * torch.get_num_threads(), 1, 1, dtype=torch.uint8)
    assert (kernels._part_bytes(large) is None) is fast


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_analysis_with_residual_has_the_gradients_of_both(memory_format):
    rows, columns = bases()
    x = random(B, C, H, W).to(memory_format=memory_format)
    grad_x, grad_c = torch.randn_like(x), random(B, C, 3, 3)
    a = x.clone().requires_grad_()
    residual, coefficients = analyse_with_residual(a, rows, columns)
    assert torch.equal(residual, x)
    torch.testing.assert_close(coefficients, analyse(x, rows, columns))
    torch.autograd.backward([residual, coefficients], [grad_x, grad_c])
    torch.testing.assert_close(a.grad, grad_x + rows.T @ grad_c @ columns)


def test_second_derivatives_of_the_analysis():
    rows, columns = bases()
    x = random(1, 2, H, W, requires_grad=True)

    def squares(x):
        residual, c = analyse_with_residual(x, rows, columns)
        return residual.square(), c.square()

    for output in (0, 1):
        assert torch.autograd.gradcheck(lambda x, i=output: squares(x)[i], x, fast_mode=True)
    assert torch.autograd.gradgradcheck(squares, x, fast_mode=True)


def test_derivatives_of_row_products():
    x = random(2, 3, 4, 5, requires_grad=True)
    left, right = random(2, 4, 2, 3, requires_grad=True), random(2, 4, 2, 5, requires_grad=True)
    assert torch.autograd.gradcheck(add_row_products, (x, left, right))
    assert torch.autograd.gradgradcheck(add_row_products, (x, left, right), fast_mode=True)
    empty = add_row_products(x[:0], left[:0], right[:0])
    assert empty.shape == (0, 3, 4, 5)


def test_backward_writes_one_map():
    layer = FrequencySelfAttention(64, k=4, zero_init=False).eval()
    x = torch.randn(1, 64, 24, 32, requires_grad=True)
    y, upstream = layer(x), torch.randn(1, 64, 24, 32)
    with Written() as written:
        torch.autograd.grad(y, x, upstream)
    assert written.sizes()[0] == x.numel()
    assert written.sizes()[1] < x.numel()


def test_autocast_does_not_reach_the_gradient():
    rows, columns = bases(torch.float32)
    x = torch.randn(1, 4, H, W, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(x):
            _, c = analyse_with_residual(x, rows, columns)
        (gradient,) = torch.autograd.grad(c, x, torch.ones_like(c))
    want = (rows.sum(0)[:, None] * columns.sum(0)).expand_as(x)
    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-5)
