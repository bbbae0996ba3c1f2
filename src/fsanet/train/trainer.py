"""Lightning's trainer as this library sets it up, and checks before it starts."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import lightning
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from fsanet.cost import has_bfloat16
from fsanet.errors import InputError, check_range, one_line
from fsanet.files import first_process
from fsanet.signals import handled, install

if TYPE_CHECKING:
    from fsanet.data.batches import InstanceData, SegmentationData

__all__ = ["check_batch", "check_classes", "check_shares", "interruptible", "make_trainer"]


def make_trainer(
    settings: Mapping[str, Any],
    *,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true",
    deterministic: bool = False,
) -> lightning.Trainer:
    """Make a trainer that leaves sampling to the data module and prints nothing by itself.

    Args:
        settings: arguments of Lightning's trainer that the caller decides, "callbacks" among them.
        accelerator: "cpu", "gpu", or "auto".
        devices: processes per node (each takes `data.batch_size` images per batch), or "auto".
        num_nodes: number of machines.
        strategy: how processes work together, such as "ddp"; "auto" chooses.
        precision: of the computation; "bf16-mixed" and "16-mixed" save memory on a GPU; on a CPU
            without instructions for bfloat16 "bf16-mixed" is slow.
        deterministic: use only deterministic kernels, which are slower on a GPU.

    Raises:
        InputError: Lightning refuses the options.
    """
    _check_processes(accelerator, devices, num_nodes)
    if re.search("spawn|fork|notebook", strategy):
        raise InputError(
            f"strategy={strategy}: what its processes have learned would be lost; give ddp, which "
            "starts this command once for each device"
        )
    settings = {**settings, "callbacks": [*settings["callbacks"], _OwnSignals()]}
    try:
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
            deterministic=deterministic,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(c, RichProgressBar) for c in settings["callbacks"]),
            **settings,
        )
    except (ValueError, RuntimeError, TypeError, ImportError, MisconfigurationException) as error:
        raise InputError(f"trainer options: {one_line(error)}") from error
    on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if precision == "bf16-mixed" and on_cpu and not has_bfloat16() and first_process():
        warnings.warn(
            "precision=bf16-mixed: this processor has no instructions for bfloat16, and a step "
            "takes up to ten times as long as with 32-true",
            stacklevel=1,
        )
    return trainer


def _check_processes(accelerator: str, devices: int | str, num_nodes: int) -> None:
    """Raise `InputError` for numbers that Lightning would try to start, or wait for."""
    check_range("num_nodes", num_nodes, 1, 65536)
    launched = {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys()  # torchrun sets the first
    if num_nodes > 1 and not launched:
        raise InputError(
            f"num_nodes={num_nodes}: start the command with torchrun or SLURM on each machine, or "
            "set MASTER_ADDR, MASTER_PORT and NODE_RANK there"
        )
    if not re.fullmatch("[0-9]{1,4000}", str(devices)):
        return  # "auto", -1 for all, or numbers of GPUs: Lightning compares them with the machine
    gpus = accelerator not in ("cpu", "auto") or torch.cuda.is_available()
    most = 1024 if gpus else max(4 * (os.cpu_count() or 1), 8)  # processes of one machine
    check_range("devices", int(devices), 1, most)


class _OwnSignals(Callback):
    """Keeps Lightning from handling signals: on SIGTERM it would wait for all other processes."""

    def _install(self, *args: Any) -> None:
        install()

    on_train_start: Any = _install
    on_validation_start: Any = _install
    on_test_start: Any = _install
    on_exception: Any = _install


def interruptible(run: Callable[[], object]) -> None:
    """Run, and raise `Interrupted` on a signal, which Lightning would turn into exit code 1."""
    try:
        with handled():
            run()
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


def check_classes(model: nn.Module, data: SegmentationData | InstanceData) -> None:
    """Raise `InputError` unless model and data have the same number of classes; compare names."""
    count = getattr(model, "num_classes", None)
    if count is not None and count != data.num_classes:
        raise InputError(
            f"the model has {count} classes and the data set {data.num_classes}: they must agree"
        )
    names = tuple(getattr(model, "classes", ()) or ())
    for ours, theirs in zip(names, data.classes, strict=False):
        if ours != theirs:
            warnings.warn(
                f"class names differ: {ours!r} in the model is {theirs!r} in the data", stacklevel=2
            )
            break


def check_shares(data: SegmentationData | InstanceData, split: str, processes: int) -> None:
    """Raise `InputError` if a process would have no image, and leave the others waiting."""
    count = len(data.dataset(split))
    if 0 < count < processes:
        raise InputError(
            f"the {split} split has {count} images for {processes} processes; use fewer devices"
        )


def check_batch(
    data: SegmentationData | InstanceData, processes: int, expected: int | None, lr: float
) -> None:
    """Warn if an optimiser step takes another number of images than its rate was chosen for."""
    images = data.batch_size * data.accumulate * processes
    if expected is None or images == expected or not first_process():
        return
    share, rest = divmod(expected, data.accumulate * processes)
    if rest == 0:
        keep = f"--data.batch_size {share}"
    elif expected % processes == 0:
        keep = f"--data.batch_size {expected // processes} --data.accumulate 1"
    else:
        keep = f"a number of processes that divides {expected}"
    each = f"{data.batch_size} per process, {data.accumulate} accumulated, {processes} processes"
    warnings.warn(
        f"a step takes {images} images ({each}), but lr={lr:g} was chosen for {expected}; restore "
        f"that with {keep}, or choose another rate (for SGD in proportion: --task.lr "
        f"{lr * images / expected:g}) with --global-batch {images} and {expected / images:g} times "
        "the steps",
        UserWarning,
        stacklevel=1,  # this file belongs to the library, whoever calls
    )
