"""Layers set up for tests, what they write, and the distance between two results."""

import itertools

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SIMILARITIES = ["dot", "linear_softmax", "linear", "softmax"]
BLOCKS = ["nonlocal", "ccnet"]


def opened(layer, seed=0):
    """The layer in float64, with every parameter and running average away from its start."""
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


class Written(TorchDispatchMode):
    """Records the operators called within it, and the tensors they write to fresh memory."""

    def __init__(self):
        super().__init__()
        self.operators, self.tensors = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators.append(str(func))
        read = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for o in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(o, torch.Tensor) and o.untyped_storage().data_ptr() not in read:
                self.tensors.append(o)
        return out

    def sizes(self, dtype=None):
        """Numbers of elements of the tensors written, largest first."""
        return sorted((t.numel() for t in self.tensors if dtype in (None, t.dtype)), reverse=True)
