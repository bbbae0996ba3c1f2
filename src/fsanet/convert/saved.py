"""Saved networks: `load_model` opens any of them, `save_converted` writes a converted one.

A converted network is a folder of ``save_pretrained`` with `fsanet_conversion.json` beside the
weights. That file holds the format version and, for each converted module, its name, k,
similarity, route and grid.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from fsanet.convert.conversion import Conversion, Converted, convert_attention
from fsanet.errors import InputError, printable
from fsanet.files import write_json

if TYPE_CHECKING:
    from fsanet.models.exported import ExportedNetwork, Runtime

__all__ = [
    "CONVERSION_FILE",
    "Task",
    "apply_conversion",
    "load_model",
    "network_folder",
    "open_exported",
    "save_converted",
    "save_like",
]

Task = Literal["semantic", "instances"]

CONVERSION_FILE = "fsanet_conversion.json"
_FORMAT = 1
_MOST_MODULES = 1_000
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
            - an ``.onnx`` file of `fsanet export`: an `ExportedNetwork`, which ONNX Runtime runs;
            - a network, which is returned unchanged.
        task: "semantic" or "instances" to accept only networks for that task; None for any.
        **overrides: constructor arguments that replace the saved ones, such as ``k=4``. With
            ``num_classes`` or ``classes`` it is a network to be fine-tuned: further options may
            change its head, such as ``decoder="multiscale"``, weights that have the same name and
            shape are taken, and stderr says which start new.

    Returns:
        The network, in training mode as any new module; call ``eval()`` before using it.

    Raises:
        InputError: no such folder, no network in it, a class this version does not know, or a
            network for another task.
    """
    if isinstance(source, nn.Module):
        return source
    # Imported here because convert_attention needs neither the hub nor the networks.
    from fsanet import models
    from fsanet.models.saved_folder import find_file, find_folder, read_object
    from fsanet.models.saving import MODEL_TYPE, take_weights

    exported = open_exported(source)
    if isinstance(exported, nn.Module):
        if task == "instances":
            raise InputError(f"{source}: exported networks are for semantic segmentation")
        if overrides:
            raise InputError(
                f"{source}: an exported file; {', '.join(overrides)} cannot be changed"
            )
        return exported
    folder = network_folder(find_folder(os.fspath(source)))
    file = find_file(folder, "config.json")
    config = {} if file is None else read_object(file)  # from_pretrained reports a missing file
    name = config.get("network", "FsaNet")  # files before 0.2 name no class
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        name = "segformer"  # the only network of transformers; any other is reported as it is read
    tasks: dict[str, Task] = {
        "FsaNet": "semantic",
        "MaskRcnnFsa": "instances",
        "SegformerFsa": "semantic",
        "segformer": "semantic",
    }
    if not isinstance(name, str) or name not in tasks:
        raise InputError(
            f"{folder}: config.json names the network '{printable(str(name))}', which this version "
            "does not know; update fsanet"
        )
    purpose = tasks[name]
    if task is not None and purpose != task:
        raise InputError(
            f"{folder}: a {name}, which is a network for {_PURPOSES[purpose]}; this needs one for "
            f"{_PURPOSES[task]}"
        )
    load: Callable[..., nn.Module] = (  # its class is imported here: Mask R-CNN takes a second
        models.SegformerFsa.from_transformers
        if name == "segformer"
        else getattr(models, name).from_pretrained
    )
    conversion = find_file(folder, CONVERSION_FILE)
    modules = [] if conversion is None else _read_conversion(conversion)
    # config.json of a converted FsaNet describes the converted network, without the grid.
    spatial = {"attention": "spatial"} if conversion is not None and name == "FsaNet" else {}
    if overrides.keys() & {"num_classes", "classes"}:
        saved = load_model(folder)
        model = _for_other_classes(saved, spatial | overrides)
        if conversion is not None:
            _convert_modules(model, modules, conversion)
        print(take_weights(model, saved.state_dict(), str(folder)), file=sys.stderr, flush=True)
        return model
    if conversion is None:
        return load(folder, **overrides)
    if overrides.keys() & {"attention", "k", "similarity"}:
        raise InputError(
            f"{folder}: its attention is set by {CONVERSION_FILE}; leave attention, k and "
            "similarity out, or convert the original network again"
        )
    return _convert_modules(load(folder, **overrides | spatial), modules, conversion).model


def _for_other_classes(saved: Any, overrides: dict[str, Any]) -> nn.Module:
    """A new network with the settings of a saved one, except its classes and the overrides."""
    of_classes = {"network", "classes", "num_classes", "palette", "category_ids"}
    config = saved._hub_mixin_config
    settings = {name: value for name, value in config.items() if name not in of_classes}
    if overrides.get("classes") is not None:
        settings["num_classes"] = len(overrides["classes"])
    return type(saved)(**settings | overrides)


def open_exported(
    source: str | os.PathLike[str], runtime: Runtime = "onnxruntime"
) -> ExportedNetwork | str | os.PathLike[str]:
    """Open an ``.onnx`` file with a runtime; anything else is returned as it is.

    Raises:
        InputError: see `fsanet.models.exported.ExportedNetwork`; or a ``.pt2`` file.
    """
    if Path(source).suffix.lower() not in (".onnx", ".pt2") or Path(source).is_dir():
        return source
    from fsanet.models.exported import ExportedNetwork

    return ExportedNetwork(source, runtime)


def network_folder(source: str | os.PathLike[str]) -> Path:
    """The folder that holds the network: ``model/`` of a training run, else ``source`` itself.

    Raises:
        InputError: ``model/`` is a link that leads out of the run folder.
    """
    run, inner = Path(source), Path(source, "model")
    if (run / "config.json").is_file() or not (inner / "config.json").is_file():
        return run
    if inner.resolve().parent != run.resolve():
        raise InputError(f"{inner}: a link to another folder; give that folder")
    return inner


def save_converted(conversion: Conversion, folder: str | os.PathLike[str]) -> None:
    """Save the weights and config of a converted network, with the conversion beside them.

    The weights keep the names and shapes of the original network, so transformers (or the class in
    this library) opens the folder as the network before the conversion; :func:`load_model` opens
    it converted. With an `FsaNet` on route "tokens", ``FsaNet.from_pretrained`` does so, too.

    Raises:
        InputError: a network without ``save_pretrained``, a k or grid that `load_model` refuses, or
            a folder that is not writable.
    """
    from fsanet.models.saved_folder import check_values

    model: Any = conversion.model
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"{type(model).__name__} has no save_pretrained; save its state_dict, which is the "
            "original's, and convert it again after loading"
        )
    modules = [module.as_dict() for module in conversion.modules]
    for module in modules:
        check_values(module, Converted, module["name"])  # what is saved can be opened
    if type(model).__name__ == "FsaNet":
        changed = {"attention": "frequency", **{k: modules[0][k] for k in ("k", "similarity")}}
        model._hub_mixin_config = {**model._hub_mixin_config, **changed}
    try:
        model.save_pretrained(Path(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    write_json(Path(folder, CONVERSION_FILE), {"format": _FORMAT, "modules": modules})


def save_like(
    conversion: Conversion, source: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> None:
    """As `save_converted`, in the format that `source` has: this library's, or transformers'."""
    from fsanet.models.saved_folder import find_file, read_object
    from fsanet.models.saving import MODEL_TYPE
    from fsanet.models.segformer import load_plain

    original = network_folder(source)
    file = find_file(original, "config.json")
    if file is not None and read_object(file).get("model_type", MODEL_TYPE) != MODEL_TYPE:
        modules = [module.as_dict() for module in conversion.modules]
        conversion = _convert_modules(load_plain(original), modules, source)
    save_converted(conversion, folder)


def apply_conversion(
    model: nn.Module, folder: str | os.PathLike[str], **options: Any
) -> Conversion:
    """Convert a network in place as described by the ``fsanet_conversion.json`` of a folder.

    For networks that :func:`load_model` does not open: load the weights as usual, then use this.

    Args:
        model: the network, with the weights of the folder.
        folder: written by :func:`save_converted`.
        **options: token_grid, prefix_tokens and kinds, where the conversion was given them.

    Raises:
        InputError: no such file, or modules that the network does not have.
    """
    from fsanet.models.saved_folder import find_file

    file = find_file(Path(folder), CONVERSION_FILE)
    if file is None:
        wanted = Path(folder, CONVERSION_FILE)
        raise InputError(f"{wanted}: no such file; give a folder written by save_converted")
    return _convert_modules(model, _read_conversion(file), file, **options)


def _convert_modules(
    model: nn.Module,
    modules: list[dict[str, Any]],
    source: str | os.PathLike[str],
    **options: Any,
) -> Conversion:
    """Convert modules one by one; errors name where they are from."""
    done = []
    for module in modules:
        grid = module["grid"] or 1  # not used on the other route
        try:
            one = convert_attention(
                model,
                k=module["k"],
                similarity=module["similarity"],
                match=glob.escape(module["name"]),
                route=module["route"],
                grid=tuple(grid) if isinstance(grid, list) else grid,
                in_place=True,
                **options,
            )
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        done.append(one)
    return Conversion(
        model=model,
        modules=tuple(entry for one in done for entry in one.modules),
        originals={name: was for one in done for name, was in one.originals.items()},
    )


def _read_conversion(file: Path) -> list[dict[str, Any]]:
    """The converted modules in a conversion file."""
    from fsanet.models.saved_folder import check_values, read_object

    content = read_object(file)
    if content.get("format") != _FORMAT:
        raise InputError(f"{file}: has a format that this version does not know; update fsanet")
    modules = content.get("modules")
    if not isinstance(modules, list) or not modules or len(modules) > _MOST_MODULES:
        raise InputError(f"{file}: lists no modules, or more than {_MOST_MODULES}")
    for index, module in enumerate(modules):
        if not isinstance(module, dict):
            raise InputError(f"{file}: modules[{index}] is no object")
        check_values(module, Converted, f"{file}: modules[{index}]")
    return modules
