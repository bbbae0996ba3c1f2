"""One of two processes of the synchronised batch norm test; a module, so that it can be spawned."""

import torch
import torch.distributed as dist
from torch import nn

from fsanet import FrequencySelfAttention
from support.layers import opened


def layer_of(similarity, k, **norm_options):
    layer = opened(FrequencySelfAttention(8, k=k, similarity=similarity, recurrence=2))
    if norm_options:
        layer.norm = nn.BatchNorm2d(8, **norm_options).double()
    return layer


def work(rank, port, similarity, k, x, state, out):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    layer = layer_of(similarity, k)
    layer.load_state_dict(state)
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    part = x[:1] if rank == 0 else x[1:]  # 1 and 2 images: unequal shares
    part = part.clone().requires_grad_()
    y = layer(part)
    y.square().sum().backward()
    out[rank] = (
        y.detach(),
        part.grad,
        layer.norm.running_mean.clone(),
        layer.norm.running_var.clone(),
        layer.value.weight.grad,
    )
    dist.destroy_process_group()
