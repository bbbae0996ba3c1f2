"""Modules of the user's own, imported because the command line names them: ``--plugin``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from fsanet.errors import InputError, one_line

__all__ = ["load_plugin"]


def load_plugin(plugin: str) -> None:
    """Import a module, so that recipes can name the data modules and networks in it.

    Args:
        plugin: a file, ``mydata.py``, or a module, ``package.module``, found from the current
            folder.

    Raises:
        InputError: there is no such module, or it fails to import.
    """
    file = Path(plugin)
    is_file = file.suffix == ".py"
    if is_file and not file.is_file():
        raise InputError(f"--plugin {plugin}: no such file")
    folder, name = (str(file.resolve().parent), file.stem) if is_file else (os.getcwd(), plugin)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:
        line = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"--plugin {plugin}: cannot be imported ({line})") from error
    where = getattr(module, "__file__", None)
    if is_file and (where is None or Path(where).resolve() != file.resolve()):
        raise InputError(f"--plugin {plugin}: another module has the name {name}; rename the file")
