"""Memory: peak of a run, bytes kept for backward, what is free, and a limit on a process.

Peaks are of tensor memory: on a CPU the allocations and frees that `torch.profiler` records, on
CUDA the caching allocator's own high-water mark. Both are exact to the byte (CUDA: rounded up to
512) and the same each time; scratch memory that a library takes for itself is in neither.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["available_bytes", "kept_for_backward", "limit_memory", "peak_of"]

T = TypeVar("T")


def peak_of(run: Callable[[], T], device: torch.device) -> tuple[int, T]:
    """Most bytes that ``run()`` held at one time above what was there before, and its result.

    The result is part of it, the input is not.

    Args:
        run: what to measure; a process should have called it before, so that caches are filled.
        device: where it runs; "cpu" or "cuda".

    >>> x = torch.zeros(1000)
    >>> peak_of(lambda: x.exp().sqrt(), torch.device("cpu"))[0]  # both results at once
    8000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        result = run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak, result


def kept_for_backward(module: nn.Module, run: Callable[[Tensor], T], x: Tensor) -> tuple[int, T]:
    """Bytes that autograd holds between forward and backward, and the result of ``run(x)``.

    Whole storages, each counted once, in the mode the module is in. Parameters, buffers and the
    input are left out: they live on anyway.

    >>> layer, x = nn.ReLU(), torch.zeros(1000, requires_grad=True)
    >>> kept_for_backward(layer, layer, x)[0]  # its output
    4000
    """
    own = {t.untyped_storage().data_ptr() for t in (x, *module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run(x)
    return sum(kept.values()), result


def available_bytes() -> int | None:
    """Main memory that can be taken without swapping, within a container's limit; Linux only."""
    free = _line_of(Path("/proc/meminfo"), "MemAvailable:")
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            left = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
        free = left if free is None else min(free, left)
    return None if free is None else max(free, 0)


def limit_memory(extra: int) -> bool:
    """Let this process take ``extra`` bytes more than it has; then its allocations fail.

    Returns:
        Whether this system can do that (Linux).
    """
    data = _line_of(Path("/proc/self/status"), "VmData:")
    if resource is None or data is None:
        return False
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = data + extra if hard == resource.RLIM_INFINITY else min(data + extra, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return True


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is gone, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        phrase in text for phrase in ("can't allocate memory", "out of memory", "bad_alloc")
    )


def _line_of(file: Path, name: str) -> int | None:
    """Bytes in a line "name: 123 kB" of a file under /proc."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
