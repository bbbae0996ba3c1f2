"""The folder of a run: who may write to it, and where the run in it stands."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from fsanet.errors import InputError
from fsanet.files import read_checkpoint, write_text
from fsanet.models.saving import check_state

_PARTS = ("config.yaml", "metrics.csv", "checkpoints", "model", "tensorboard")


def prepare(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Makes sure that `out` can be written, and holds no other run."""
    present = [name for name in _PARTS if (out / name).exists()]
    if present and not resume:
        if not overwrite:
            raise InputError(
                f"{out}: holds a run already ({', '.join(present)}); "
                "give --resume, --overwrite or another --out"
            )
        for name in present:
            path = out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    probe = out / ".writable"
    write_text(probe, "")
    probe.unlink()


def steps_done(last: Path, task: nn.Module) -> int:
    """Optimiser steps done in the checkpoint, once it is clear that it fits."""
    if not last.is_file():
        raise InputError(f"{last}: nothing to resume; leave out --resume to start a run")
    weights, rest = read_checkpoint(last)
    if "global_step" not in rest:
        raise InputError(f"{last}: not a checkpoint written by fsanet train (no 'global_step')")
    check_state(task, weights, last)
    return int(rest["global_step"])
