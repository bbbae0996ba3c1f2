"""Reading checkpoints safely, and saying how one differs from a model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsanet.errors import InputError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint, on the CPU; tensors and plain values only, no code is run.

    Raises:
        InputError: the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors and plain values, so it is not read "
            "(it could run code); give a checkpoint written by fsanet train"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path}: damaged or not a checkpoint") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path}: not a checkpoint of fsanet train (no 'state_dict')")
    return checkpoint


def state_difference(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """What keeps `given` from being loaded into a model with `expected`, or None if it fits.

    Example:
        >>> state_difference({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
        '1 of another shape (a: 3 in the file, 2 in the model)'
    """
    missing = [name for name in expected if name not in given]
    surplus = [name for name in given if name not in expected]
    shapes = [
        name for name in expected if name in given and given[name].shape != expected[name].shape
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing (first: {missing[0]})")
    if surplus:
        parts.append(f"{len(surplus)} unknown to the model (first: {surplus[0]})")
    if shapes:
        name = shapes[0]
        parts.append(
            f"{len(shapes)} of another shape ({name}: {_shape(given[name])} in the file, "
            f"{_shape(expected[name])} in the model)"
        )
    return ", ".join(parts) or None


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
