"""Where a number came from: device, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """What a figure should be printed with.

    Args:
        device: the device the work was done on.

    Returns:
        text by name: "device", "threads", "python", "torch", "torchvision", "timm", "fsanet",
        "commit" (with "+changes" for a working tree that differs), "system". Absent packages and
        an unknown commit are left out.
    """
    device = torch.device(device)
    found = {"device": _device_name(device), "threads": str(torch.get_num_threads())}
    found["python"] = platform.python_version()
    found["torch"] = torch.__version__  # names the build, too
    for package in ("torchvision", "timm", "lightning", "fsanet"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit()
    if commit:
        found["commit"] = commit
    found["system"] = f"{platform.system()} {platform.machine()}"
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU ({_processor()}, {cores} cores)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the repository this file lies in, if it lies in one that tracks it."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        if not git("ls-files", here.name):
            return None  # installed into some other project's repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
