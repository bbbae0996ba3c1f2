"""Converted networks on disk: weights as they were, and a small JSON file that says what to do.

`fsanet_conversion.json` holds the format's version and, for each module, its name, k, similarity,
route and grid.
"""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from fsanet.convert.modules import convert_attention
from fsanet.convert.report import Conversion
from fsanet.errors import InputError
from fsanet.files import write_json

__all__ = ["CONVERSION_FILE", "apply_conversion", "load_converted", "save_converted"]

CONVERSION_FILE = "fsanet_conversion.json"
_FORMAT = 1


def save_converted(conversion: Conversion, folder: str | os.PathLike[str]) -> None:
    """Write the network's weights and config, and the conversion beside them.

    The weights have the names and shapes of the original network, so transformers (or a network
    of this library) opens the folder, too; it then is the network before the conversion. An
    exception is `FsaNet` on route "tokens": ``FsaNet.from_pretrained`` gives the converted one.

    Raises:
        InputError: a network without ``save_pretrained``, or a folder that cannot be written to.
    """
    model: Any = conversion.model
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"{type(model).__name__} has no save_pretrained; save its state_dict, which is the "
            "original's, and convert it again after loading"
        )
    modules = [module.as_dict() for module in conversion.modules]
    if type(model).__name__ == "FsaNet":
        changed = {"attention": "frequency", **{k: modules[0][k] for k in ("k", "similarity")}}
        model._hub_mixin_config = {**model._hub_mixin_config, **changed}
    try:
        model.save_pretrained(Path(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    write_json(Path(folder, CONVERSION_FILE), {"format": _FORMAT, "modules": modules})


def load_converted(folder: str | os.PathLike[str]) -> nn.Module:
    """The network that :func:`save_converted` wrote, converted.

    Args:
        folder: with ``fsanet_conversion.json``, of an `FsaNet`, a `SegformerFsa` or, in
            transformers' format, a SegFormer of a published size, which comes back as a
            `SegformerFsa`. For any other network load the weights as usual, then use
            :func:`apply_conversion`.

    Raises:
        InputError: no conversion there, or a network that it does not fit.
    """
    from fsanet.models import load_model

    _read(Path(folder))
    config = Path(folder, "config.json")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{config}: not readable as JSON") from error
    of_fsanet = "model_type" not in content and content.get("network", "FsaNet") == "FsaNet"
    # An FsaNet would come converted already, and on route "tokens" only.
    model = load_model(folder, attention="spatial") if of_fsanet else load_model(folder)
    return apply_conversion(model, folder).model


def apply_conversion(model: nn.Module, folder: str | os.PathLike[str]) -> Conversion:
    """Convert ``model`` in place as the folder's ``fsanet_conversion.json`` says.

    Raises:
        InputError: no such file, or modules that the network does not have.
    """
    done = []
    for module in _read(Path(folder)):
        grid = module["grid"] or 1  # not used on the other route
        done.append(
            convert_attention(
                model,
                k=module["k"],
                similarity=module["similarity"],
                match=glob.escape(module["name"]),
                route=module["route"],
                grid=tuple(grid) if isinstance(grid, list) else grid,
                in_place=True,
            )
        )
    return Conversion(
        model=model,
        modules=tuple(entry for one in done for entry in one.modules),
        replaced={name: was for one in done for name, was in one.replaced.items()},
    )


def _read(folder: Path) -> list[dict[str, Any]]:
    file = folder / CONVERSION_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); give a folder of save_converted"
        ) from error
    except ValueError as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{file}: of a format that this version does not know; update fsanet")
    keys = {"name", "k", "similarity", "route", "grid"}
    modules = content.get("modules")
    if not modules or not all(isinstance(m, dict) and keys <= m.keys() for m in modules):
        raise InputError(f"{file}: lists no modules, or not all of {', '.join(sorted(keys))}")
    return modules
