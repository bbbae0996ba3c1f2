"""Layers as the tests want them, and how far two results are apart."""

import itertools

import torch

SIMILARITIES = ["dot", "linear_softmax", "linear", "softmax"]
BLOCKS = ["nonlocal", "ccnet"]


def opened(layer, seed=0):
    """The layer in float64 with every parameter and running average away from its start."""
    layer = layer.double()
    generator = torch.Generator().manual_seed(seed)
    for name, p in itertools.chain(layer.named_parameters(), layer.named_buffers()):
        if p.is_floating_point():
            noise = torch.rand(p.shape, generator=generator, dtype=p.dtype)
            with torch.no_grad():
                p.copy_(noise + 0.5 if p.ndim < 2 else (noise - 0.5) * 1.5 / p.shape[1] ** 0.5)
            if name.endswith("norm.bias"):
                p.data -= 1
    return layer


def relative_error(got, want):
    return ((got - want).norm() / want.norm()).item()
