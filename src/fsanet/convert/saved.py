"""Saved networks: `load_model` opens any of them, `save_converted` writes a converted one.

A converted network is a folder of ``save_pretrained`` with `fsanet_conversion.json` beside the
weights. That file holds the format version and, for each converted module, its name, k,
similarity, route and grid.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fsanet.convert.conversion import Conversion, convert_attention
from fsanet.errors import InputError
from fsanet.files import write_json

__all__ = [
    "CONVERSION_FILE",
    "Task",
    "apply_conversion",
    "load_model",
    "network_folder",
    "save_converted",
    "saved_task",
]

Task = Literal["semantic", "instances"]

CONVERSION_FILE = "fsanet_conversion.json"
_FORMAT = 1
_PURPOSES: dict[Task, str] = {
    "semantic": "semantic segmentation",
    "instances": "instance segmentation",
}


def load_model(
    source: nn.Module | str | os.PathLike[str], *, task: Task | None = None, **overrides: Any
) -> nn.Module:
    """Load a saved network of any class; `config.json` says which class it is.

    Args:
        source: one of

            - a folder written by ``save_pretrained`` (FsaNet, SegformerFsa, MaskRcnnFsa);
            - the folder of a training run, whose best network is in ``model/``;
            - a folder with a conversion (``fsanet_conversion.json``): the converted network;
            - a SegFormer as transformers saves it: a SegformerFsa without attention block;
            - a hub id, ``owner/name``;
            - a network, which is returned unchanged.
        task: "semantic" or "instances" to accept only networks for that task; None for any.
        **overrides: constructor arguments that replace the saved ones, such as ``k=4``.

    Returns:
        The network, in training mode as any new module; call ``eval()`` before using it.

    Raises:
        InputError: no such folder, no network in it, a class this version does not know, or a
            network for another task.
    """
    if isinstance(source, nn.Module):
        return source
    from fsanet.models import FsaNet, MaskRcnnFsa, SegformerFsa

    source = network_folder(source)
    name = _class_name(source)
    if task is not None and _task_of(name) != task:
        raise InputError(
            f"{source}: a {name}, which is a network for {_PURPOSES[_task_of(name)]}; this needs "
            f"one for {_PURPOSES[task]}"
        )
    loaders: dict[str, Callable[..., nn.Module]] = {
        "FsaNet": FsaNet.from_pretrained,
        "MaskRcnnFsa": MaskRcnnFsa.from_pretrained,
        "SegformerFsa": SegformerFsa.from_pretrained,
        "segformer": SegformerFsa.from_transformers,
    }
    if name not in loaders:
        raise InputError(
            f"{source}: config.json names the network {name!r}, which this version does not know; "
            "update fsanet"
        )
    if not Path(source, CONVERSION_FILE).is_file():
        return loaders[name](source, **overrides)
    modules = _read_conversion(source)
    if overrides.keys() & {"attention", "k", "similarity"}:
        raise InputError(
            f"{source}: its attention is set by {CONVERSION_FILE}; leave attention, k and "
            "similarity out, or convert the original network again"
        )
    if name == "FsaNet":  # its config.json describes the converted network, without the grid
        overrides["attention"] = "spatial"
    return _convert_modules(loaders[name](source, **overrides), modules).model


def saved_task(source: str | os.PathLike[str]) -> Task:
    """The task of a saved network, read from its `config.json` without loading any weights.

    Raises:
        InputError: no such folder, or a `config.json` that cannot be read.
    """
    return _task_of(_class_name(network_folder(source)))


def network_folder(source: str | os.PathLike[str]) -> str:
    """The folder that holds the network: ``model/`` of a training run, else ``source`` itself."""
    inner = Path(source, "model")
    if (inner / "config.json").is_file() and not Path(source, "config.json").is_file():
        return str(inner)
    return os.fspath(source)


def save_converted(conversion: Conversion, folder: str | os.PathLike[str]) -> None:
    """Save the weights and config of a converted network, with the conversion beside them.

    The weights keep the names and shapes of the original network, so transformers (or the class in
    this library) opens the folder as the network before the conversion; :func:`load_model` opens
    it converted. With an `FsaNet` on route "tokens", ``FsaNet.from_pretrained`` does so, too.

    Raises:
        InputError: a network without ``save_pretrained``, or a folder that is not writable.
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


def apply_conversion(model: nn.Module, folder: str | os.PathLike[str]) -> Conversion:
    """Convert a network in place as described by the ``fsanet_conversion.json`` of a folder.

    For networks that :func:`load_model` does not open: load the weights as usual, then use this.

    Raises:
        InputError: no such file, or modules that the network does not have.
    """
    return _convert_modules(model, _read_conversion(folder))


def _convert_modules(model: nn.Module, modules: list[dict[str, Any]]) -> Conversion:
    done = []
    for module in modules:
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
        originals={name: was for one in done for name, was in one.originals.items()},
    )


def _read_conversion(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The converted modules in the conversion file of a folder."""
    file = Path(folder, CONVERSION_FILE)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a folder written by save_converted")
    content = _read_json(file)
    if content.get("format") != _FORMAT:
        raise InputError(f"{file}: has a format that this version does not know; update fsanet")
    keys = {"name", "k", "similarity", "route", "grid"}
    modules = content.get("modules")
    if not modules or not all(isinstance(m, dict) and keys <= m.keys() for m in modules):
        raise InputError(f"{file}: lists no modules, or not all of {', '.join(sorted(keys))}")
    return modules


def _class_name(source: str) -> str:
    """The class in the config.json of a folder or hub id; "segformer" for transformers' own.

    FsaNet where there is no such file: `FsaNet.from_pretrained` reports that.
    """
    # Imported here because convert_attention needs neither the hub nor the networks.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    from fsanet.models.saving import check_source

    folder = check_source(source)
    if folder is None:
        try:
            file = Path(hf_hub_download(source, "config.json"))
        except (HfHubHTTPError, OSError, ValueError):
            return "FsaNet"
    else:
        file = folder / "config.json"
        if not file.is_file():
            return "FsaNet"
    config = _read_json(file)
    if config.get("model_type") == "segformer":
        return "segformer"
    return str(config.get("network", "FsaNet"))  # files before 0.2 name no class


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no JSON object")
    return content


def _task_of(class_name: str) -> Task:
    return "instances" if class_name == "MaskRcnnFsa" else "semantic"
