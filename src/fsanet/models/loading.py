"""A saved network, of whatever class it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from fsanet.errors import InputError
from fsanet.models.fsanet import FsaNet
from fsanet.models.mask_rcnn import MaskRcnnFsa
from fsanet.models.saving import check_source
from fsanet.models.segformer import SegformerFsa

__all__ = ["load_model"]


def load_model(
    source: str | os.PathLike[str], **overrides: Any
) -> FsaNet | MaskRcnnFsa | SegformerFsa:
    """The network in a folder or on the hub; the class is the one its config.json names.

    Args:
        source: folder written by ``save_pretrained``, or a hub id. A folder or id of a plain
            SegFormer, as `transformers` writes it, gives a :class:`SegformerFsa` without the
            attention block.
        **overrides: constructor arguments that differ from the saved ones.

    Raises:
        InputError: no such folder, no network in it, or one of a class that is not known here.
    """
    source = os.fspath(source)
    config = _config(source)
    network = config.get("network", "FsaNet")  # files before 0.2 do not say
    if network == "SegformerFsa":
        return SegformerFsa.from_pretrained(source, **overrides)
    if network == "MaskRcnnFsa":
        return MaskRcnnFsa.from_pretrained(source, **overrides)
    if config.get("model_type") == "segformer":
        return SegformerFsa.from_transformers(source, **overrides)
    if network == "FsaNet":
        return FsaNet.from_pretrained(source, **overrides)
    raise InputError(
        f"{source}: config.json names the network {network!r}, which this version does not know; "
        "update fsanet"
    )


def _config(source: str) -> dict[str, Any]:
    """The content of config.json; empty where there is none, for from_pretrained to tell of."""
    folder = check_source(source)
    if folder is None:
        try:
            file = Path(hf_hub_download(source, "config.json"))
        except (HfHubHTTPError, OSError, ValueError):
            return {}
    else:
        file = folder / "config.json"
        if not file.is_file():
            return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no JSON object")
    return content
