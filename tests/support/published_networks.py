"""Independent reference of the published networks: names and shapes of weights, forward pass.

Written from the facts of the published code (names, shapes, strides, dilations, rounding), on the
published names, with functions of torch and SciPy only.
"""

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F

FULL = {"blocks": (3, 4, 23, 3), "planes": (64, 128, 256, 512)}
THIN = {"blocks": (3, 4, 23, 3), "planes": (3, 6, 12, 24), "head": 16, "auxiliary": 6}


def conv(name, out, inner, *kernel, bias=False):
    shapes = {f"{name}.weight": (out, inner, *kernel)}
    return shapes | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, channels):
    shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias")}
    shapes |= {f"{name}.{part}": (channels,) for part in ("running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def stages(prefix, blocks, planes, channels):
    shapes = {}
    for number, (count, width) in enumerate(zip(blocks, planes, strict=True), 1):
        for block in range(count):
            name = f"{prefix}layer{number}.{block}"
            shapes |= conv(f"{name}.conv1", width, channels, 1, 1) | norm(f"{name}.bn1", width)
            shapes |= conv(f"{name}.conv2", width, width, 3, 3) | norm(f"{name}.bn2", width)
            shapes |= conv(f"{name}.conv3", 4 * width, width, 1, 1)
            shapes |= norm(f"{name}.bn3", 4 * width)
            if block == 0:
                shapes |= conv(f"{name}.downsample.0", 4 * width, channels, 1, 1)
                shapes |= norm(f"{name}.downsample.1", 4 * width)
            channels = 4 * width
    return shapes


def ccnet_shapes(blocks, planes, *, stem=64, head=512, auxiliary=512, classes=19):
    shapes = conv("conv1", stem, 3, 3, 3) | norm("bn1", stem)
    shapes |= conv("conv2", stem, stem, 3, 3) | norm("bn2", stem)
    shapes |= conv("conv3", 2 * stem, stem, 3, 3) | norm("bn3", 2 * stem)
    shapes |= stages("", blocks, planes, 2 * stem)
    middle, last = 4 * planes[2], 4 * planes[3]
    shapes |= conv("dsn.0", auxiliary, middle, 3, 3, bias=True) | norm("dsn.1", auxiliary)
    shapes |= conv("dsn.4", classes, auxiliary, 1, 1, bias=True)
    shapes |= conv("head.conva.0", head, last, 3, 3) | norm("head.conva.1", head)
    for name, width in (("query", head // 8), ("key", head // 8), ("value", head)):
        shapes |= conv(f"head.fsa.{name}_conv", width, head, 1)
    shapes |= {"head.fsa.out_bias": (1, head, 1), "head.fsa.gamma": (1,)}
    shapes |= conv("head.convb.0", head, head, 3, 3) | norm("head.convb.1", head)
    shapes |= conv("head.bottleneck.0", head, last + head, 3, 3) | norm("head.bottleneck.1", head)
    return shapes | conv("head.bottleneck.4", classes, head, 1, 1, bias=True)


def mmseg_shapes(
    blocks, planes, *, own=False, biases=False, stem=64, head=512, auxiliary=256, classes=19
):
    """Shapes of MMSegmentation's own non-local network (``own``, 2-d) or of the paper's head."""
    kernel = (1, 1) if own else (1,)
    half = stem // 2
    shapes = conv("backbone.stem.0", half, 3, 3, 3) | norm("backbone.stem.1", half)
    shapes |= conv("backbone.stem.3", half, half, 3, 3) | norm("backbone.stem.4", half)
    shapes |= conv("backbone.stem.6", stem, half, 3, 3) | norm("backbone.stem.7", stem)
    shapes |= stages("backbone.", blocks, planes, stem)
    middle, last = 4 * planes[2], 4 * planes[3]
    top = "decode_head"
    shapes |= conv(f"{top}.conv_seg", classes, head, 1, 1, bias=True)
    for name, width, inner in (("convs.0", head, last), ("convs.1", head, head)):
        shapes |= conv(f"{top}.{name}.conv", width, inner, 3, 3) | norm(f"{top}.{name}.bn", width)
    shapes |= conv(f"{top}.conv_cat.conv", head, last + head, 3, 3)
    shapes |= norm(f"{top}.conv_cat.bn", head)
    for name in ("g", "theta", "phi"):
        shapes |= conv(f"{top}.nl_block.{name}.conv", head // 2, head, *kernel, bias=biases)
    shapes |= conv(f"{top}.nl_block.conv_out.conv", head, head // 2, *kernel)
    shapes |= norm(f"{top}.nl_block.conv_out.bn", head)
    shapes |= conv("auxiliary_head.conv_seg", classes, auxiliary, 1, 1, bias=True)
    shapes |= conv("auxiliary_head.convs.0.conv", auxiliary, middle, 3, 3)
    return shapes | norm("auxiliary_head.convs.0.bn", auxiliary)


def random_state(shapes, seed=0, dtype=torch.float64):
    """Random weights at a scale at which each of them changes the output of the network."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name, shape):
        if name.endswith("num_batches_tracked"):
            return torch.tensor(80000)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            return noise.abs() + 0.5
        if len(shape) > 1 and name != "head.fsa.out_bias":
            return noise * (1.5 / np.prod(shape[1:])) ** 0.5
        if name.endswith((".bn3.weight", "gamma")):
            return 0.4 + 0.1 * noise
        return 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise

    state = {name: draw(name, shape) for name, shape in shapes.items()}
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}


# -- forward passes -----------------------------------------------------------------------------


class Published:
    """Forward pass of a published network in evaluation mode, from its weights.

    ``lineage`` is "ccnet" or "mmseg"; ``band`` (h0, h1, w0, w1) or None for regular attention.
    """

    def __init__(self, state, lineage, *, similarity, recurrence, band, align_corners):
        self.state, self.ccnet = state, lineage == "ccnet"
        self.similarity, self.recurrence, self.band = similarity, recurrence, band
        self.align_corners = align_corners

    def conv(self, x, name, stride=1, dilation=1):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)

    def norm(self, x, name):
        weight, bias, mean, variance = (
            self.state[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def step(self, x, conv, norm, **options):
        return self.norm(self.conv(x, conv, **options), norm).relu()

    def stage(self, x, number):
        stride = 2 if number == 2 else 1
        dilation = {1: 1, 2: 1, 3: 2, 4: 4}[number]
        prefix = f"layer{number}" if self.ccnet else f"backbone.layer{number}"
        block = 0
        while f"{prefix}.{block}.conv1.weight" in self.state:
            name = f"{prefix}.{block}"
            first = block == 0
            # MMSegmentation halves the dilation of a stage's first block, CCNet does not.
            here = dilation // 2 if first and dilation > 1 and not self.ccnet else dilation
            y = self.step(x, f"{name}.conv1", f"{name}.bn1")
            step = stride if first else 1
            y = self.step(y, f"{name}.conv2", f"{name}.bn2", stride=step, dilation=here)
            y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
            if first:
                x = self.conv(x, f"{name}.downsample.0", stride=stride)
                x = self.norm(x, f"{name}.downsample.1")
            x = (x + y).relu()
            block += 1
        return x

    def features(self, images):
        if self.ccnet:
            names = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
        else:
            names = [(f"backbone.stem.{i}", f"backbone.stem.{i + 1}") for i in (0, 3, 6)]
        x = images
        for index, pair in enumerate(names):
            x = self.step(x, *pair, stride=2 if index == 0 else 1)
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.ccnet)
        middle = self.stage(self.stage(self.stage(x, 1), 2), 3)
        return middle, self.stage(middle, 4)

    def low_pass(self, x):
        if self.band is None:
            return x
        h0, h1, w0, w1 = self.band
        spectrum = scipy.fft.dctn(x.numpy(), norm="ortho", axes=(-2, -1))
        kept = np.zeros_like(spectrum)
        kept[..., h0:h1, w0:w1] = spectrum[..., h0:h1, w0:w1]
        return torch.from_numpy(scipy.fft.idctn(kept, norm="ortho", axes=(-2, -1)))

    def tokens(self, x, name):
        weight = self.state[f"{name}.weight"].flatten(1)  # (o, i)
        out = torch.einsum("oi,bin->bon", weight, x)
        bias = self.state.get(f"{name}.bias")
        return out if bias is None else out + bias[:, None]

    def attention(self, x):
        low = self.low_pass(x).flatten(2)
        if self.ccnet:
            names = [f"head.fsa.{name}_conv" for name in ("query", "key", "value")]
        else:
            names = [f"decode_head.nl_block.{name}.conv" for name in ("theta", "phi", "g")]
        q, k, v = (self.tokens(low, name) for name in names)
        positions = low.shape[-1]
        if self.similarity == "linear_softmax":
            q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
        scores = torch.einsum("bcq,bck->bqk", q, k)  # (B, N, N)
        if self.similarity == "dot":
            scores = scores / positions
        elif self.similarity == "linear_softmax":
            scores = (1 + scores) / (1 + scores).sum(-1, keepdim=True)
        elif self.similarity == "linear":
            scores = 1 + scores / q.shape[1] ** 0.5
            scores = scores / scores.sum(-1, keepdim=True)
        else:
            scores = (scores / q.shape[1] ** 0.5).softmax(-1)
        out = torch.einsum("bqk,bck->bcq", scores, v)
        if self.ccnet:
            out = self.state["head.fsa.gamma"] * (out + self.state["head.fsa.out_bias"])
            return x + out.reshape(x.shape)
        out = self.tokens(out, "decode_head.nl_block.conv_out.conv").reshape(x.shape)
        return x + self.norm(out, "decode_head.nl_block.conv_out.bn")

    def __call__(self, images):
        """Logits of the head and of the auxiliary head, at the size of the images."""
        middle, last = self.features(images)
        if self.ccnet:
            reduce, refine = ("head.conva.0", "head.conva.1"), ("head.convb.0", "head.convb.1")
            join, classify = ("head.bottleneck.0", "head.bottleneck.1"), "head.bottleneck.4"
            auxiliary, classify_auxiliary = ("dsn.0", "dsn.1"), "dsn.4"
        else:
            reduce, refine, join = (
                (f"decode_head.{name}.conv", f"decode_head.{name}.bn")
                for name in ("convs.0", "convs.1", "conv_cat")
            )
            auxiliary = ("auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn")
            classify, classify_auxiliary = "decode_head.conv_seg", "auxiliary_head.conv_seg"
        x = self.step(last, *reduce)
        for _ in range(self.recurrence):
            x = self.attention(x)
        x = self.step(x, *refine)
        x = self.step(torch.cat([last, x], 1), *join)
        y = self.step(middle, *auxiliary)
        return tuple(
            F.interpolate(
                self.conv(z, name),
                images.shape[-2:],
                mode="bilinear",
                align_corners=self.align_corners,
            )
            for z, name in ((x, classify), (y, classify_auxiliary))
        )
