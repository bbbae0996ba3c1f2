"""Reading a published checkpoint: tensors and plain values, never other Python objects."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fsanet.errors import InputError

__all__ = ["read_state"]


def read_state(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a checkpoint file, and what it says about them.

    A ``.pth`` (or any other name) is read by ``torch.load(weights_only=True)``, a
    ``.safetensors`` by safetensors. The weights are the whole file, or its ``"state_dict"`` or
    ``"model"`` entry; a ``module.`` in front of all of them is taken off.

    Returns:
        Tensors by name, on the CPU, and the ``"meta"`` entry (empty where there is none).

    Raises:
        InputError: no such file, not a checkpoint, or one with other Python objects in it.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give the path of a checkpoint")
    content = _content(file)
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__}, not weights by name")
    state, meta = content, content.get("meta")
    for entry in ("state_dict", "model"):
        if isinstance(content.get(entry), Mapping):
            state = content[entry]
            break
    state = dict(state)
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        what = f"{others[0]} is no tensor" if others else "it is empty"
        raise InputError(f"{file}: not weights by name ({what}); give the state_dict of a network")
    if all(name.startswith("module.") for name in state):  # of nn.DataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state, dict(meta) if isinstance(meta, Mapping) else {}


def _content(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"Unsupported \w+: GLOBAL (\S+)", str(error))
        if refused is None:
            raise InputError(f"{file}: not a checkpoint that torch can read") from error
        raise InputError(
            f"{file}: holds {refused[1]} beside its weights, and only tensors and plain values are "
            "read; if you trust the file, save its weights alone first, as docs/checkpoints.md "
            "shows under 'A file that is refused'"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{file}: cannot be read as a checkpoint ({reason})") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{file}: cannot be read as safetensors ({error})") from error
