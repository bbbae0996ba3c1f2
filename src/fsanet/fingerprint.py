"""A short text that tells whether two networks compute the same."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["about_model", "fingerprint"]

# What these networks keep outside their weights, and prediction uses.
_ATTRIBUTES = (
    *("classes", "palette", "category_ids", "mean", "std", "bgr", "align_corners"),
    "_hub_mixin_config",
)


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a network.

    It covers every entry of the state_dict (name, dtype, shape, bytes), the modules as they print
    themselves, class names, colours, normalisation, and the options the network is saved with. It
    does not depend on the device. A version of a library that prints its modules in another way
    gives another fingerprint.

    >>> layers = [nn.Linear(2, 1), nn.Linear(2, 1)]
    >>> fingerprint(layers[0]) == fingerprint(layers[1])
    False
    >>> _ = layers[0].load_state_dict(layers[1].state_dict())
    >>> fingerprint(layers[0]) == fingerprint(layers[1])
    True
    """
    about = {name: getattr(model, name, None) for name in _ATTRIBUTES}
    printed = re.sub(r"0x[0-9a-fA-F]+", "", repr(model))  # addresses differ between processes
    digest = hashlib.sha256(f"{type(model).__qualname__}\n{printed}\n".encode())
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"\n{name} ".encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
        else:  # what a module keeps as its extra state
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def about_model(model: nn.Module) -> dict[str, Any]:
    """What results say of the network they come from, as values for JSON."""
    return {
        "name": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fingerprint": fingerprint(model),
    }
