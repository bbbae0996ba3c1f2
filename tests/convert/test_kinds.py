"""Attention of timm, transformers, torchvision and PyTorch over a grid of tokens, converted.

The reference is the network itself, with the input of its attention low-passed by scipy.
"""

import functools
import inspect
import math
import warnings

import pytest
import scipy.fft
import timm
import torch
import torchvision
from timm.layers import AttentionRope
from torch import nn

from fsanet import calibrate, convert_attention
from fsanet.convert import apply_conversion, save_converted
from fsanet.convert.rotation import Rotation
from fsanet.convert.vit import PatchGrid, TimmFrequencyAttention
from fsanet.errors import InputError

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


def transformers_network(name, config, **options):
    transformers = pytest.importorskip("transformers")
    options = TINY | {"intermediate_size": 32, "image_size": 48} | options
    return getattr(transformers, name)(getattr(transformers, config)(**options))


def eva(**options):
    for name in options.keys() - inspect.signature(timm.models.Eva).parameters.keys():
        pytest.skip(f"this timm has no {name}")
    return timm.models.Eva(
        img_size=48,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=5,
        dynamic_img_size=True,
        **options,
    )


class Detector(nn.Module):
    """A convolution whose map is flattened, and PyTorch's encoder over it."""

    def __init__(self, **options):
        super().__init__()
        self.project = nn.Conv2d(3, 16, 8, stride=8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on nested tensors
            self.encoder = nn.TransformerEncoder(layer, 2)
        self.batch_first = options.get("batch_first", False)

    def forward(self, images, padding=None):
        tokens = self.project(images).flatten(2).mT
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        return self.encoder(tokens, src_key_padding_mask=padding)


class PositionedAttention(nn.Module):
    """As in DETR's encoder: positions are added to queries and keys, not to values."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 16, 8, stride=8)
        self.position = nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 2, bias=False)

    def forward(self, images):
        tokens = self.project(images).flatten(2).permute(2, 0, 1)
        turned = (
            tokens + self.position * torch.arange(len(tokens), device=tokens.device)[:, None, None]
        )
        return self.attention(turned, turned, value=tokens)[0]


DINOV3 = {"rope_type": "dinov3", "use_rot_pos_emb": True, "rope_rotate_half": True}
NETWORKS = {
    "timm ViT": (
        lambda: timm.create_model(
            "test_vit", num_classes=5, img_size=64, patch_size=8, reg_tokens=2
        ),
        {},
    ),
    "timm EVA": (functools.partial(eva, use_rot_pos_emb=True), {}),
    "timm EVA, projections apart": (
        functools.partial(eva, use_rot_pos_emb=True, qkv_fused=False, scale_attn_inner=True),
        {},
    ),
    "timm EVA, learned rotation": (
        functools.partial(eva, use_rot_pos_emb=True, rope_type="mixed", use_abs_pos_emb=False),
        {},
    ),
    "timm DINOv3": (
        functools.partial(eva, **DINOV3, attn_type="eva", num_reg_tokens=4, init_values=0.5),
        {},
    ),
    "timm AttentionRope, several queries a key": (
        functools.partial(eva, **DINOV3, attn_type="rope", qkv_fused=False, num_kv_heads=1),
        {},
    ),
    "transformers ViT": (
        lambda: transformers_network("ViTForImageClassification", "ViTConfig"),
        {"interpolate_pos_encoding": True},
    ),
    "transformers DeiT": (
        lambda: transformers_network("DeiTForImageClassification", "DeiTConfig"),
        {"interpolate_pos_encoding": True},
    ),
    "transformers DINOv2": (
        lambda: transformers_network("Dinov2ForImageClassification", "Dinov2Config"),
        {},
    ),
    "transformers DINOv2 with registers": (
        lambda: transformers_network("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
        {},
    ),
    "transformers DINOv3": (
        lambda: transformers_network("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4),
        {},
    ),
    "transformers EoMT": (
        lambda: transformers_network(
            "EomtForUniversalSegmentation",
            "EomtConfig",
            num_blocks=1,
            num_queries=3,
            num_upscale_blocks=1,
        ),
        None,
    ),
    "transformers EoMT on DINOv3": (
        lambda: transformers_network(
            "EomtDinov3ForUniversalSegmentation",
            "EomtDinov3Config",
            num_blocks=1,
            num_queries=3,
            num_upscale_blocks=1,
        ),
        None,
    ),
    "torchvision ViT": (
        lambda: torchvision.models.VisionTransformer(48, 8, 2, 2, 16, 32, num_classes=5),
        None,
    ),
    "nn.TransformerEncoder": (lambda: Detector(batch_first=True), {}),
    "nn.TransformerEncoder, tokens first": (Detector, {}),
    "as in DETR": (PositionedAttention, {}),
}
GRIDLESS = {
    name: {"token_grid": "project"}
    for name in ("nn.TransformerEncoder", "nn.TransformerEncoder, tokens first", "as in DETR")
}


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    network = NETWORKS[name][0]().to(dtype).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        if hasattr(network, "attn_mask_probs"):
            network.attn_mask_probs.zero_()  # as at the end of EoMT's training
    return network


def output(network, images, **options):
    with torch.no_grad():
        found = network(images, **options)
    if isinstance(found, torch.Tensor):
        return found
    found = [x for x in found.values() if isinstance(x, torch.Tensor)]
    return torch.cat([x.flatten(1) for x in found], 1)


def low_passed(network, names, grid, k):
    """Hooks that low-pass what the attention modules of the original are given."""

    def low_pass(tokens, first):
        """Tokens (B, P + N, C), or (P + N, B, C)."""
        axis = 0 if first else 1
        count = tokens.shape[axis] - grid[0] * grid[1]
        prefix, patches = tokens.split([count, grid[0] * grid[1]], axis)
        axes = (axis, axis + 1)
        spectrum = scipy.fft.dctn(patches.unflatten(axis, grid).numpy(), norm="ortho", axes=axes)
        spectrum[(slice(None),) * axis + (slice(k, None),)] = 0
        spectrum[(slice(None),) * (axis + 1) + (slice(k, None),)] = 0
        patches = torch.from_numpy(scipy.fft.idctn(spectrum, norm="ortho", axes=axes))
        return torch.cat([prefix, patches.flatten(axis, axis + 1)], axis)

    def hook(module, arguments, keywords):
        first = isinstance(module, nn.MultiheadAttention) and not module.batch_first
        count = 3 if isinstance(module, nn.MultiheadAttention) else 1
        head = [low_pass(x, first) for x in arguments[:count]]
        if "value" in keywords:
            keywords = keywords | {"value": low_pass(keywords["value"], first)}
        return (*head, *arguments[count:]), keywords

    for name in names:
        network.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    """Full band: the original at two sizes. Low-pass: the original with low-passed inputs."""
    network, call = made(name), NETWORKS[name][1]
    options = GRIDLESS.get(name, {})
    full = convert_attention(network, k=None, **options)
    low = convert_attention(network, k=2, **options)
    assert len(full.modules) == (1 if name == "as in DETR" else 6 if name == "timm ViT" else 2)
    names = [module.name for module in full.modules]
    assert full.model.state_dict().keys() == network.state_dict().keys()
    square = (64, 64) if name == "timm ViT" else (48, 48)
    for size in (square,) if call is None else (square, (40, 72)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        expected = output(network, images, **call or {})
        found = output(full.model, images, **call or {})
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        found = output(low.model, images, **call or {})
        assert (found - expected).norm() > 1e-4 * expected.norm()
        grid = (size[0] // 8, size[1] // 8)
        reference = low_passed(made(name), names, grid, 2)
        expected = output(reference, images, **call or {})
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    single, images = made(name, torch.float32), torch.randn(1, 3, *square)
    found = output(convert_attention(single, k=None, **options).model, images)
    torch.testing.assert_close(found, output(single, images), rtol=1e-5, atol=1e-5)


#: Parts of the names of their weights, over the versions of the libraries.
_QUERIES_AND_KEYS = ("qkv.w", "q_proj.w", "k_proj.w", "query.w", "key.w", "in_proj_w")


@pytest.mark.parametrize(
    "name",
    [n if n == "timm ViT" else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS],
)
def test_coarse_keys(name):
    """Route "grid" with all points is route "tokens"; with fewer it computes less and is near."""
    network, options = made(name), GRIDLESS.get(name, {})
    with torch.no_grad():  # so that softmax chooses
        for parameter, values in network.named_parameters():
            if any(part in parameter for part in _QUERIES_AND_KEYS):
                values.mul_(5)
    low = convert_attention(network, k=2, **options)
    images = torch.randn(1, 3, *((64, 64) if name == "timm ViT" else (48, 48)), dtype=torch.float64)
    expected = output(low.model, images)
    errors = []
    for m in (2, 5, 8):
        grid = convert_attention(network, k=2, route="grid", grid=m, **options)
        errors.append((output(grid.model, images) - expected).norm() / expected.norm())
        if m == 2:
            flops, tokens = grid.flops(images.shape[-2:]), low.flops(images.shape[-2:])
            assert flops.after < tokens.after < tokens.before
            assert all(after < before for before, after in tokens.modules.values())
    assert errors[0] > max(errors[1], 1e-6)
    assert errors[2] < 1e-12


@pytest.mark.parametrize("half", [True, False])
def test_rotation_between_positions(half):
    """Angles linear in the position are continued exactly; the turn is that of complex numbers."""
    height, width, points = 6, 9, (4, 5)
    frequencies = torch.linspace(-3.0, 3.0, 8, dtype=torch.float64).reshape(2, 4)

    def angles(rows, columns):
        rows, columns = (rows + 0.3).reshape(-1, 1, 1), columns.reshape(1, -1, 1)
        return (rows * frequencies[0] + columns * frequencies[1]).flatten(0, 1)  # (N, d/2)

    def rotation(angle):
        angle = angle.repeat(1, 2) if half else angle.repeat_interleave(2, 1)
        return Rotation(angle.cos(), angle.sin(), half)

    axis = [torch.arange(size, dtype=torch.float64) for size in (height, width, *points)]
    fractional = [(axis[2] + 0.5) * 1.5 - 0.5, (axis[3] + 0.5) * 1.8 - 0.5]
    x = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    found = rotation(angles(*axis[:2])).at((height, width), points).turn(x)
    pairs = [x[..., :4], x[..., 4:]] if half else [x[..., ::2], x[..., 1::2]]
    turned = torch.complex(*pairs) * torch.exp(1j * angles(*fractional))
    parts = [turned.real, turned.imag]
    expected = torch.cat(parts, -1) if half else torch.stack(parts, -1).flatten(-2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_masks_of_transformers():
    """EoMT masks the keys of its queries with the masks that it has predicted so far."""
    network = made("transformers EoMT", torch.float32)
    network.attn_mask_probs.fill_(1)
    images = torch.randn(2, 3, 48, 48)
    expected = output(network, images)
    found = output(convert_attention(network, k=None).model, images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="other keys than the mask"):
        output(convert_attention(network, k=2, route="grid", grid=3).model, images)


@pytest.mark.parametrize("padded", [0, 7])
@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_pytorch(batch_first, padded):
    """Without the fused kernels, which would neither low-pass nor keep the grid."""
    network = made("nn.TransformerEncoder" + ("" if batch_first else ", tokens first"))
    images = torch.randn(2, 3, 48, 40, dtype=torch.float64)
    padding = torch.zeros(2, 30, dtype=torch.bool)
    padding[1, 30 - padded :] = True
    found = convert_attention(network, k=None, token_grid="project").model
    for mask in (padding, torch.zeros(2, 30).double().masked_fill(padding, -math.inf)):
        expected = made_reference(network)(images, mask)
        with torch.no_grad():
            given = found(images, mask)
        if batch_first:
            expected, given = expected[~padding], given[~padding]
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-10)


def made_reference(network):
    """With gradients the encoder takes its plain path."""
    return lambda *arguments: network(*arguments).detach()


@pytest.mark.parametrize("heads", [False, True])
def test_mask_of_multihead_attention(heads):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2).double().eval()
    x = torch.randn(12, 3, 8, dtype=torch.float64)
    mask = torch.randn(*([6] if heads else []), 12, 12, dtype=torch.float64)
    padding = torch.rand(3, 12) < 0.3
    found = convert_attention(nn.Sequential(attention), k=None, token_grid=(3, 4)).model[0]
    expected = attention(x, x, x, padding.double() * -5, attn_mask=mask)
    given, weights = found(x, x, x, padding.double() * -5, attn_mask=mask)
    torch.testing.assert_close(given, expected[0], rtol=0, atol=1e-10)
    assert weights is None


def test_refusals():
    other = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4))
    with pytest.raises(InputError, match="0: it has keys and values of other widths"):
        convert_attention(other, token_grid=(2, 2))
    with pytest.raises(InputError, match="0: it adds a key"):
        convert_attention(
            nn.Sequential(nn.MultiheadAttention(8, 2, add_bias_kv=True)), token_grid=(2, 2)
        )
    network = Detector()
    with pytest.raises(InputError, match=r"grid of its tokens is unknown.*exclude it with match"):
        convert_attention(network)
    with pytest.raises(InputError, match="token_grid='projection': no module of this name"):
        convert_attention(network, token_grid="projection")
    with pytest.raises(InputError, match="the output of LayerNorm is no map"):
        PatchGrid()(nn.LayerNorm(4), (), torch.zeros(1, 9, 4))
    cross = convert_attention(nn.Sequential(nn.MultiheadAttention(8, 2)), token_grid=(2, 2))
    few, many = torch.randn(4, 1, 8), torch.randn(9, 1, 8)
    with pytest.raises(InputError, match="one set of tokens to another has no grid"):
        cross.model[0](few, many, many)
    adapted = made("transformers ViT")

    class Adapter(nn.Linear):
        pass

    adapted.vit.layers[0].attention.q_proj = Adapter(16, 16)
    with pytest.raises(
        InputError, match=r"q_proj: expected nn\.Linear, got Adapter; merge adapters"
    ):
        convert_attention(adapted)
    swin = torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [4, 4])
    with pytest.raises(InputError, match=r"features\.1\.0\.attn is a .*Attention.*with kinds="):
        convert_attention(swin)


def test_calibrate():
    network = made("transformers DINOv2")
    images = torch.randn(2, 3, 48, 72, dtype=torch.float64)
    found = calibrate(network, images, tolerance=1e-9, candidates=(2, 4, 9), grids=(3, 9))
    assert set(found.k.values()) == {9}
    assert list(found.k) == [m.name for m in convert_attention(network).modules]
    for name in found.k:
        assert found.errors[name][2] > found.errors[name][4] > 1e-3
        assert found.energy[name][2] < found.energy[name][4] < found.energy[name][9] * (1 + 1e-9)
        assert found.grid_errors[name][3] > found.grid_errors[name][9]
    detector = made("nn.TransformerEncoder")
    found = calibrate(detector, images, tolerance=1e-9, candidates=(2, 9), token_grid="project")
    assert found.k == {"encoder.layers.0.self_attn": 9, "encoder.layers.1.self_attn": 9}


def test_published_weights(tmp_path):
    """Weights on disk, converted for two k, saved, and opened again; the snippet of the docs."""
    transformers = pytest.importorskip("transformers")
    made("transformers DINOv3", torch.float32).save_pretrained(tmp_path / "published")
    images = torch.randn(1, 3, 48, 48)
    for k in (2, 4):
        network = transformers.AutoModel.from_pretrained(tmp_path / "published").eval()
        conversion = convert_attention(network, k=k)
        save_converted(conversion, tmp_path / f"k{k}")
        again = transformers.AutoModel.from_pretrained(tmp_path / f"k{k}").eval()
        plain = output(again, images)
        apply_conversion(again, tmp_path / f"k{k}")
        found = output(again, images)
        torch.testing.assert_close(found, output(conversion.model, images), rtol=0, atol=0)
        assert (found - plain).norm() > 1e-4 * plain.norm()
    network = made("timm DINOv3", torch.float32)
    conversion = convert_attention(network, k=2)
    with pytest.raises(InputError, match="Eva has no save_pretrained; save its state_dict"):
        save_converted(conversion, tmp_path / "timm")
    again = convert_attention(made("timm DINOv3", torch.float32), k=2).model
    again.load_state_dict(conversion.model.state_dict())
    torch.testing.assert_close(output(again, images), output(conversion.model, images))


def test_per_layer():
    """Layers by the pattern of their names; the others stay as they are."""
    network = made("transformers ViT")
    converted = convert_attention(network, k={"*layers.1.*": 3}).model
    assert type(converted.vit.layers[0].attention) is type(network.vit.layers[0].attention)
    low = low_passed(made("transformers ViT"), ["vit.layers.1.attention"], (6, 6), 3)
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(output(converted, images), output(low, images), rtol=0, atol=1e-10)
    both = convert_attention(network, k={"*layers.0.*": 2, "*": None})
    assert [m.k for m in both.modules] == [2, None]


def test_rope_on_a_grid_of_keys():
    """Every matrix written out, with each key of the map turned as far as its point lies."""
    torch.manual_seed(0)
    module = AttentionRope(8, 2, num_prefix_tokens=1, rotate_half=True).double().eval()
    (height, width), points, k = (5, 6), (3, 4), 2
    frequencies = torch.tensor([[0.9, 0.0], [0.0, 0.7]], dtype=torch.float64)

    def angles(rows, columns):
        where = torch.cartesian_prod(rows, columns)  # (N, 2)
        return (where @ frequencies).repeat(1, 2)  # (N, d)

    def sampled(size, count):
        t = (torch.arange(count, dtype=torch.float64) + 0.5) * size / count - 0.5
        u = torch.arange(k, dtype=torch.float64)[:, None]
        scale = torch.tensor([[1.0], [math.sqrt(2)]], dtype=torch.float64) / math.sqrt(size)
        return t, scale * torch.cos(math.pi * u * (2 * t + 1) / (2 * size))

    (rows, low_h), (columns, low_w) = sampled(height, height), sampled(width, width)
    (few_rows, few_h), (few_columns, few_w) = sampled(height, points[0]), sampled(width, points[1])
    x = torch.randn(1, 31, 8, dtype=torch.float64)
    spectrum = torch.kron(low_h, low_w) @ x[:, 1:]
    tokens = torch.cat([x[:, :1], torch.kron(low_h, low_w).T @ spectrum], 1)
    keys = torch.cat([x[:, :1], torch.kron(few_h, few_w).T @ spectrum], 1)

    def turned(x, angle):
        quarter = torch.cat([-x[..., 2:], x[..., :2]], -1)
        angle = torch.cat([torch.zeros(1, 4, dtype=torch.float64), angle])
        return x * angle.cos() + quarter * angle.sin()

    weights, biases = module.qkv.weight.chunk(3), module.qkv.bias.chunk(3)
    count = torch.ones(13, dtype=torch.float64)
    count[1:] = 30 / 12
    out = []
    for head in torch.arange(8).split(4):
        q, key, v = (
            t @ weight[head].T + bias[head]
            for t, weight, bias in zip((tokens, keys, keys), weights, biases, strict=True)
        )
        scores = turned(q, angles(rows, columns)) @ turned(key, angles(few_rows, few_columns)).mT
        scores = torch.exp(scores / 2) * count
        out.append(scores / scores.sum(-1, keepdim=True) @ v)
    expected = module.proj(torch.cat(out, -1))
    angle = angles(rows, columns)
    rope = torch.cat([angle.sin(), angle.cos()], -1)
    converted = TimmFrequencyAttention(
        module, patch_grid=PatchGrid((5, 6)), prefix=1, k=k, route="grid", grid=points
    )
    torch.testing.assert_close(converted(x, rope=rope), expected, rtol=0, atol=1e-10)
