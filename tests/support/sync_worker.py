"""The second of two processes in the test of synchronised batch norm; a module, to be spawned."""

import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from fsanet import FrequencySelfAttention
from support.layers import opened

#: The band of each case. "softmax" is torch's SyncBatchNorm on the map, which needs a GPU.
CASES = {"dot": 4, "dot, no DC": ((1, 4), (0, 3)), "linear_softmax": 3, "linear": 3}


def layer_of(case, **norm_options):
    similarity = case.split(",")[0]
    layer = opened(
        FrequencySelfAttention(8, k=CASES[case], similarity=similarity, recurrence=2), seed=1
    )
    if norm_options:
        layer.norm = nn.BatchNorm2d(8, **norm_options).double()
    return layer


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 8, 7, 6, dtype=torch.float64, generator=generator)


def step(layer, x):
    """What one training step gives: output, gradients, running averages."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    norm = layer.norm
    return y.detach(), x.grad, norm.running_mean, norm.running_var, layer.value.weight.grad


def work(rank, store, out):
    """Every case on this process's share, written to ``out``."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        part = images()[:1] if rank == 0 else images()[1:]  # 1 and 2 images: unequal shares
        results = {}
        warnings.simplefilter("error", FutureWarning)  # of what torch is going to remove
        for case in CASES:
            layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer_of(case))
            results[case] = step(layer, part)
        torch.save(results, out)
        dist.barrier()
    finally:
        dist.destroy_process_group()
