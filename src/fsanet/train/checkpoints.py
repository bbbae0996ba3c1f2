"""`checkpoints/` and `model/` of a run folder: what is saved and when, and what is resumed from."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from fsanet.data.batches import Loader
from fsanet.errors import InputError, one_line, printable
from fsanet.files import disk_error, read_checkpoint, write_whole
from fsanet.models.card import TrainingFacts
from fsanet.models.saving import check_state
from fsanet.signals import Interrupted, received
from fsanet.train.task import SegmentationTask

__all__ = ["CheckpointFiles", "Checkpoints", "export_model", "find_checkpoint", "network_options"]

_LAST, _PREVIOUS, _BEST = "last.ckpt", "last-previous.ckpt", "best.ckpt"
# Of the callback that earlier versions had in the place of `Checkpoints`; run folders keep it.
_STATE_KEY = "KeepBest"
_LOADER = "combined_loader"  # in the state of the loop, within an epoch


class Checkpoints(Callback):
    """Saves what a run needs to continue, and its best network; ends it when a signal arrives.

    `last.ckpt` is written after each epoch, before each validation, and after the optimiser step in
    which a signal arrives; the file before it stays as `last-previous.ckpt`. The weights with the
    highest validation score are written to `best.ckpt` and `model/`.

    Lightning's ModelCheckpoint would forget the best score when a run folder is moved before it is
    resumed, and could then replace the best weights with worse ones; it writes no `model/`, and
    saves within an epoch only in steps of a fixed length. A subclass would have to override its
    private methods for each of these, and would be longer than this class.

    Args:
        out: run folder.
        monitor: logged metric, the same on every process; nan is never the best.
        steps: optimiser steps of the run.
        epoch: optimiser steps per epoch, and batches per optimiser step.
        network: options of the network, see `network_options`.

    Attributes:
        score: the best score so far, -inf before the first validation.
        step: optimiser steps done when it was reached; 0 before the first validation.
        saved: optimiser steps done in `last.ckpt`, None without that file.
    """

    state_key = _STATE_KEY

    def __init__(
        self,
        out: Path,
        monitor: str,
        *,
        steps: int,
        epoch: tuple[int, int],
        network: Mapping[str, Any] | None = None,
        command: str | None = None,
    ) -> None:
        self.folder = out / "checkpoints"
        self.model = out / "model"
        self.monitor = monitor
        self.steps = steps
        self.epoch = epoch
        self.network = network
        self.command = command
        self.score = -math.inf
        self.step = 0
        self.saved: int | None = None
        self._stopping = False

    def state_dict(self) -> dict[str, Any]:
        names = ("score", "step", "steps", "epoch", "network")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step = float(state_dict["score"]), int(state_dict["step"])

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.saved = trainer.global_step or None
        self._stop_if_told()

    def on_train_batch_start(self, *args: Any) -> None:
        if self._stopping:  # not when it was saved, because the log of that step follows
            raise Interrupted(received() or Interrupted().number)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or trainer.is_last_batch or trainer.should_stop:
            return  # at the end of the epoch, what follows saves and stops
        told = received() is not None
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        if told:
            self._stopping = True
            loader = trainer.train_dataloader
            if isinstance(loader, Loader) and hasattr(loader.sampler, "first_batch"):
                self._save_last(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._save_last(trainer)
        self._stop_if_told()

    def on_validation_batch_end(self, *args: Any) -> None:
        self._stop_if_told()

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if score > self.score:
            self.score, self.step = score, trainer.global_step
            trainer.save_checkpoint(self.folder / _BEST, weights_only=True)
            if trainer.is_global_zero:
                module.network.training_facts = self.facts(trainer)
                export_model(module.network, self.model)

    def facts(self, trainer: lightning.Trainer) -> TrainingFacts:
        """What the model card says of the training."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return TrainingFacts(
            command=self.command,
            data=type(data).__name__,
            images=len(data.dataset("train")),
            step=trainer.global_step,
            metric=self.monitor,
            score=self.score if self.step else math.nan,
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._save_last(trainer)
        self._stop_if_told()

    def _save_last(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.folder / _LAST, weights_only=False)
        self.saved = trainer.global_step

    def _stop_if_told(self) -> None:
        number = received()
        if number is not None:
            raise Interrupted(number)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Before a validation, save Lightning's progress so that it resumes with all of it."""
        if not trainer.validating:
            return
        fit_loop = checkpoint["loops"]["fit_loop"]
        batches = {"ready": int(trainer.num_training_batches)}
        batches |= dict.fromkeys(("started", "processed", "completed"), batches["ready"])
        fit_loop["epoch_loop.batch_progress"]["current"].update(batches)
        validation = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        for progress in ("total", "current"):
            fit_loop["epoch_loop.val_loop.batch_progress"][progress].update(validation)


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole, and keeps the `last.ckpt` before the newest."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        keep = path.with_name(_PREVIOUS) if path.name == _LAST else None
        write_whole(path, partial(torch.save, checkpoint), keep=keep)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        # Earlier versions wrote last.ckpt by Lightning's callback, which misses its state.
        checkpoint["callbacks"] = {
            name: state
            for name, state in checkpoint["callbacks"].items()
            if not name.startswith("ModelCheckpoint")
        }
        return checkpoint


def find_checkpoint(
    out: Path, task: SegmentationTask, *, steps: int, epoch: tuple[int, int]
) -> tuple[Path, int]:
    """The newest checkpoint of a run folder that is whole, and the optimiser steps done in it.

    Args:
        out: run folder.
        task: what is to be trained on, with its `total_steps`.
        steps, epoch: as for `Checkpoints`.

    Raises:
        InputError: there is none, or it does not fit.
    """
    folder = out / "checkpoints"
    problem = None
    for file in (folder / _LAST, folder / _PREVIOUS):
        try:
            done, state = _read(file, task)
        except InputError as error:
            problem = problem or error
            continue
        if done > steps:
            raise InputError(f"{out}: {done} steps are done already; give --steps of at least that")
        ended = done == state.get("steps", done)
        if done < steps and done % epoch[0] and (ended or tuple(state["epoch"]) != epoch):
            raise InputError(
                f"{file}: the run ended within an epoch, at step {done} of epochs of {epoch[0]} "
                "steps, and cannot be made longer"
            )
        if problem is not None:
            warnings.warn(f"{problem}; resuming from {file.name}, step {done}", stacklevel=1)
        return file, done
    assert problem is not None
    raise problem


def _read(file: Path, task: SegmentationTask) -> tuple[int, dict[str, Any]]:
    """Optimiser steps done in a checkpoint that fits the task, and the state of `Checkpoints`."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with zipfile.ZipFile(file) as content:
            damaged = content.testzip()
    except Exception as error:  # zipfile raises anything but BadZipFile for some flipped bits
        raise InputError(f"{file}: damaged ({error})") from error
    if damaged is not None:
        raise InputError(f"{file}: damaged (its checksum is wrong in {damaged})")
    weights, rest = read_checkpoint(file)
    parts = {
        "global_step": int,
        "epoch": int,
        "pytorch-lightning_version": str,
        "callbacks": dict,
        "loops": dict,
        "optimizer_states": list,
        "lr_schedulers": list,
    }
    for name, expected in parts.items():
        if not isinstance(rest.get(name), expected):
            raise InputError(f"{file}: not a checkpoint written by fsanet train (no {name!r})")
    check_state(task, weights, file)
    state = rest["callbacks"].get(_STATE_KEY, {})
    optimizer: Any = task.configure_optimizers()["optimizer"]
    try:
        _check_network(network_options(task.network), state.get("network"))
        _check_optimizer(optimizer, rest["optimizer_states"])
        _check_steps(rest, state)
    except _Mismatch as error:
        raise InputError(f"{file}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{file}: damaged, or not of such a training ({found})") from error
    return rest["global_step"], state


class _Mismatch(Exception):
    """A checkpoint disagrees with itself or with the task; the message says in what."""


def network_options(network: nn.Module) -> dict[str, Any] | None:
    """Options a network was built with, as its config.json has them; None for one without."""
    config = getattr(network, "_hub_mixin_config", None)
    return None if config is None else json.loads(json.dumps(config))  # lists for tuples


def _check_network(ours: Mapping[str, Any] | None, theirs: Any) -> None:
    """Compare options that weights do not show, such as the band; raise `_Mismatch`."""
    if ours is None or theirs is None:  # checkpoints of version 0.2 and before have none
        return
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise _Mismatch(
                f"of a network with {printable(name)}={printable(repr(theirs.get(name)))}, not "
                f"{ours.get(name)!r}; resume with the options that it was started with"
            )


def _check_steps(content: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Compare the places in a checkpoint that count optimiser steps; raise `_Mismatch`."""
    step = content["global_step"]
    loop = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    schedule, groups = content["lr_schedulers"][0], content["optimizer_states"][0]["param_groups"]
    steps_per_epoch, accumulated = state.get("epoch", (1, 1))
    if not (
        _same_type((0.0,) * len(groups), tuple(schedule["base_lrs"]))
        and _same_type((0,) * 3, (schedule["_step_count"], steps_per_epoch, accumulated))
    ):
        raise _Mismatch(
            "damaged (the rates or the step of its schedule, or the length of its epochs)"
        )
    counts = {
        "the training loop": loop["optimizer"]["step"]["total"]["completed"],
        "the learning-rate schedule": schedule["last_epoch"],
    }
    for name, count in counts.items():
        if count != step:
            raise _Mismatch(f"damaged (global_step is {step}, but {name} has done {count} steps)")
    best = state.get("step", 0)
    if step < 0 or not 0 <= best <= step:
        raise _Mismatch(f"damaged (global_step is {step}, the best step {best})")
    _check_loop(_new_loop(), content["loops"]["fit_loop"])
    # AdamW counts itself; fewer steps where 16-mixed left some out.
    for parameter, values in content["optimizer_states"][0]["state"].items():
        if "step" in values and not 0 <= float(values["step"]) <= step:
            raise _Mismatch(
                f"damaged (global_step is {step}, but the optimiser has done "
                f"{float(values['step']):g} on parameter {parameter})"
            )


def _new_loop() -> dict[str, Any]:
    """What Lightning saves of a training that has not begun, with the state of its loader."""
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, enable_progress_bar=False, **quiet)
    state = trainer.fit_loop.state_dict()
    state["state_dict"][_LOADER] = [{"batches": 0}]
    return state


def _check_loop(ours: Any, theirs: Any, path: str = "fit_loop") -> None:
    """Check that a state has the same counters as ours, none below 0; raise `_Mismatch`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = ours.keys() | theirs.keys()
        pairs = [(n, ours.get(n), theirs.get(n)) for n in names if n in theirs or n != _LOADER]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [*zip(range(len(ours)), ours, theirs, strict=True)]
    elif isinstance(ours, int) and isinstance(theirs, int) and theirs >= 0:
        return
    else:
        found = f"{printable(path)} is {printable(repr(theirs))}"
        raise _Mismatch(f"damaged, or of another version of Lightning ({found})")
    for name, value, there in pairs:
        _check_loop(value, there, f"{path}.{name}")


def _same_type(ours: Any, theirs: Any) -> bool:
    """Whether two values have the same type; int and float count as one."""
    if isinstance(ours, tuple):
        same = isinstance(theirs, tuple) and len(theirs) == len(ours)
        return same and all(map(_same_type, ours, theirs))
    if ours is None or isinstance(ours, bool):
        return theirs is None or isinstance(theirs, bool)
    number = isinstance(ours, int | float) and not isinstance(theirs, bool)
    return isinstance(theirs, int | float) if number else isinstance(theirs, type(ours))


def _check_optimizer(optimizer: torch.optim.Optimizer, states: Sequence[Any]) -> None:
    """Compare an optimiser's state with the parameters it would update; raise `_Mismatch`."""
    (state,) = states
    unfit = "does not fit this training (%s); resume with the options that it was started with"
    groups = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group["params"]) for group in state["param_groups"]]
    if found != groups:
        raise _Mismatch(unfit % f"its optimiser has groups of {found} parameters, not {groups}")
    for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name in ours.keys() & theirs.keys() - {"params"}:
            if not _same_type(ours[name], theirs[name]):
                raise _Mismatch(
                    unfit % f"{name} of its optimiser is {printable(repr(theirs[name]))}"
                )
    names = {"SGD": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}
    expected = names[type(optimizer).__name__]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for index, values in state["state"].items():
        if values.keys() != expected:
            raise _Mismatch(unfit % f"its optimiser is not {type(optimizer).__name__}")
        shape = parameters[index].shape
        for name, value in values.items():
            if name == "momentum_buffer" and value is None:  # momentum 0
                continue
            if not isinstance(value, Tensor) or value.shape != (() if name == "step" else shape):
                raise _Mismatch(unfit % f"{name} of parameter {index} has another shape")


def export_model(model: nn.Module, folder: Path) -> None:
    """Save the model in a folder; each file is replaced as a whole, config.json last.

    Raises:
        InputError: the disk is full.
    """
    partly = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partly, ignore_errors=True)
        model.save_pretrained(partly)  # type: ignore[operator]
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(partly.iterdir(), key=lambda path: path.suffix == ".json"):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(file, folder / file.name)
    except Exception as error:
        full = disk_error(error)
        if full is None:
            raise
        raise InputError(f"{folder}: cannot be written ({full.strerror}); free space") from error
    finally:
        shutil.rmtree(partly, ignore_errors=True)
