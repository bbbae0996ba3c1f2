"""Memory of a call, what autograd keeps, how much is free, and a limit for the process.

Peaks count tensor memory: on a CPU the allocations and releases that PyTorch's profiler records, on
CUDA the high-water mark of the caching allocator. Both are exact to the byte (CUDA: rounded up to
512) and reproducible. Scratch memory that a library allocates for itself is not included;
`peak_resident_memory` includes it, at the price of noise.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from fsanet.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = [
    "available_memory",
    "is_out_of_memory",
    "kept_for_backward",
    "limit_memory",
    "peak_memory",
    "peak_resident_memory",
]

T = TypeVar("T")


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Measure the most tensor memory that ``run()`` holds at any time, its result included.

    Args:
        run: what to measure. Call it once beforehand, so that its caches are filled.
        device: the device it runs on.

    Returns:
        Bytes above what was allocated before; None on a device other than a CPU or CUDA.

    >>> x = torch.zeros(1000)
    >>> peak_memory(lambda: x.exp().sqrt(), torch.device("cpu"))  # both results at once
    8000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    # Not `torch.profiler`, which imports the compiler first: seconds in each fresh process.
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        result = run()
    del result  # only now: it is part of the peak
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
    return peak


def kept_for_backward(module: nn.Module, run: Callable[[Tensor], T], x: Tensor) -> tuple[int, T]:
    """Measure what autograd holds between forward and backward, in the mode the module is in.

    Whole storages are counted, each once. Parameters, buffers and the input are left out, since
    they are held anyway.

    Returns:
        The number of bytes, and the result of ``run(x)``.

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


def peak_resident_memory(run: Callable[[], object]) -> int:
    """Measure by how many bytes ``run()`` raises the peak resident memory of this process.

    Meaningful in a fresh process only: memory released earlier is used again.

    Raises:
        InputError: on a system other than Linux.
    """
    # Not `getrusage`: its peak survives exec, so that a child starts with that of its parent.
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError as error:
        raise InputError("peak resident memory can be measured on Linux only") from error
    before = _bytes_in(status, "VmHWM:")
    run()
    after = _bytes_in(status, "VmHWM:")
    if before is None or after is None:
        raise InputError(f"{status} has no line VmHWM, which peak resident memory is read from")
    return max(0, after - before)  # counters of threads may lag by some pages


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, within a container's limit; Linux only."""
    free = _bytes_in(Path("/proc/meminfo"), "MemAvailable:")
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
    """Make allocations fail once this process holds ``extra`` bytes more than it does now.

    Returns:
        Whether the system supports this (Linux does).
    """
    held = _bytes_in(Path("/proc/self/status"), "VmData:")
    if resource is None or held is None:
        return False
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = held + extra if hard == resource.RLIM_INFINITY else min(held + extra, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    phrases = ("can't allocate memory", "out of memory", "bad_alloc")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def _bytes_in(file: Path, name: str) -> int | None:
    """Bytes in a line "name: 123 kB" of a file under /proc."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
