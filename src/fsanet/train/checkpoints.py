"""Reading training checkpoints without running code that may be in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

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
