"""What every command shares about its files.

Files are written completely or not at all, weights are read without running code, and results
record the model, the machine and the library versions that produced them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import re
import stat
import subprocess
import tempfile
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from fsanet.errors import InputError, one_line, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "check_sockets",
    "check_writable",
    "check_writable_file",
    "disk_error",
    "environment",
    "fingerprint",
    "first_process",
    "lock_folder",
    "model_summary",
    "read_checkpoint",
    "read_weights",
    "write_bytes",
    "write_json",
    "write_text",
    "write_whole",
]


# --- writing ----------------------------------------------------------------------------

_PARTIAL = re.compile(r"\..*\.[0-9a-f]{12}\.partial", re.DOTALL)
_cleaned: set[Path] = set()  # folders that this process has removed old partial files from


def write_whole(
    path: str | os.PathLike[str],
    write: Callable[[BinaryIO], object],
    *,
    keep: str | os.PathLike[str] | None = None,
) -> Path:
    """Create or replace a file atomically; missing folders are created.

    ``write(stream)`` fills a temporary file next to ``path`` which takes its place when all of it
    is on the disk. Readers see either the old file or the complete new one, and a failure leaves
    the old file untouched. A link stays, and the file that it points to is replaced. What a killed
    process has left in the folder is removed at this process's first write there.

    Args:
        path: the file.
        write: called once with a binary stream.
        keep: where the file that is replaced, if any, is moved to.

    Raises:
        InputError: the path is not writable, or the disk is full.
    """
    path = Path(path)
    try:
        target = _regular_file(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_partial_files(target.parent)
        start = target.name.encode(errors="ignore")[:100].decode(errors="ignore")
        partial = target.with_name(f".{start}.{uuid.uuid4().hex[:12]}.partial")
        try:
            with _open_locked(partial) as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
                if fcntl is None:
                    stream.close()  # Windows does not rename an open file
                if keep is not None and target.exists():
                    os.replace(target, keep)
                os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except Exception as error:
        cause = error if isinstance(error, OSError) else disk_error(error)
        if isinstance(error, InputError) or cause is None:
            raise
        reason = cause.strerror or cause
        raise InputError(
            f"{path}: cannot be written ({reason}); check the path and the free space"
        ) from error
    return path


def _regular_file(path: Path) -> Path:
    """The file to replace: the target of a link; neither a folder nor a device."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        mode = target.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    if stat.S_ISREG(mode):
        return target
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link to itself", stat.S_IFIFO: "a pipe"}
    kind = kinds.get(stat.S_IFMT(mode), "a device or socket")
    raise InputError(f"{path}: cannot be written (it is {kind}); give the path of a file")


def _open_locked(partial: Path) -> BinaryIO:
    """Create a file, locked for as long as it is open."""
    while True:
        stream = partial.open("xb")
        _lock(stream)
        if partial.exists():  # else another process took it for an old one before it was locked
            return stream
        stream.close()


def _remove_partial_files(folder: Path) -> None:
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _PARTIAL.fullmatch(entry.name)]
    for name in names:
        with contextlib.suppress(OSError), (folder / name).open("rb") as stream:
            if _lock(stream):  # nobody is writing it any more
                (folder / name).unlink()


def _lock(stream: BinaryIO) -> bool:
    """Lock an open file until it is closed, unless another process has; whether that worked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def disk_error(error: BaseException | None) -> OSError | None:
    """The full or read-only disk behind an error, which may be of another library, or None."""
    while error is not None:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
        if isinstance(error, OSError) and error.errno in full:
            return error
        error = error.__cause__ or error.__context__
    return None


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise `InputError` if files cannot be written to a folder: before the work, not after it.

    Nothing is left behind; a folder that is missing is not made.
    """
    place = Path(folder)
    try:
        while not place.exists():
            if place.is_symlink():
                raise FileNotFoundError(errno.ENOENT, "a link to nothing")
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as stream:
            stream.write(b"0")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot be written ({reason}); give another folder") from error


def check_sockets() -> None:
    """Raise `InputError` if processes cannot exchange data by sockets in the temporary folder.

    Python names them ``TMPDIR/pymp-12345678/listener-12345678``, and a system takes 107 bytes. A
    process that gives data to another one would only print a traceback, and the other would wait.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > 107 - len("/pymp-12345678/listener-12345678"):
        raise InputError(
            f"{folder}: too long a path for the sockets between processes; set TMPDIR to a folder "
            "with a path of at most 75 bytes"
        )


def check_writable_file(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` if `write_whole` could not write a file: before the work, not after it."""
    check_writable(_regular_file(Path(path)).parent)


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str], state: str) -> Iterator[None]:
    """Let no other command enter this block with the same folder.

    The first process of a command locks it; the others do nothing. The system releases the lock
    when the process ends, however it ends. Where the file system has no locks, there is none.

    Args:
        folder: the folder; made if it is missing, and removed again if nothing is written to it.
        state: what another process is told about it, such as "is being trained".

    Raises:
        InputError: another process is within such a block.
    """
    if not first_process():
        yield
        return
    file = Path(folder, ".lock")
    _regular_file(file)  # opening a pipe could wait forever
    new = not file.parent.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        stream = _lock_file(file, f"{folder}: {state}")
        try:
            yield
        finally:
            if stream is not None:
                file.unlink(missing_ok=True)
                stream.close()
    finally:
        if new:
            with contextlib.suppress(OSError):
                file.parent.rmdir()


def _lock_file(file: Path, message: str) -> BinaryIO | None:
    """Open a file that no other process has locked, and lock it; None where there are no locks."""
    while fcntl is not None:
        stream = file.open("a+b")
        try:
            # A lock of the process, not of the open file: workers that it forks do not share it.
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            stream.seek(0)
            holder = stream.read().decode(errors="replace").strip() or "another process"
            raise InputError(f"{message} by {holder}; wait for its end, or stop it") from error
        except OSError:
            return None
        if file.exists() and os.path.samestat(os.fstat(stream.fileno()), file.stat()):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}\n".encode())
            stream.flush()
            return stream
        stream.close()  # the process that had the lock has just removed the file
    return None


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> Path:
    """Write bytes with `write_whole`."""
    return write_whole(path, lambda stream: stream.write(content))


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text with `write_whole`; bytes of file names that are not UTF-8 are escaped."""
    return write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write JSON with `write_whole`; infinity and nan raise, because JSON has neither.

    File names that are not UTF-8 hold surrogates, which become escapes that JSON readers undo.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_bytes(path, text.encode(errors="backslashreplace"))


# --- reading weights --------------------------------------------------------------------


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state_dict in a file; see `read_checkpoint`."""
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint on the CPU without running any code it may contain.

    Every weight in this library comes through here. A ``.safetensors`` file is read by safetensors,
    any other by ``torch.load(weights_only=True)``. The state_dict is the ``"state_dict"`` or
    ``"model"`` entry, or else the whole file. A ``module.`` prefix shared by all names
    (`nn.DataParallel`) is removed.

    Returns:
        The state_dict, and the other entries of the file (empty if the whole file is a state_dict).

    Raises:
        InputError: the file is missing or damaged, holds anything but tensors and plain values, or
            declares more data than it has.
    """
    path = Path(path)
    if not path.is_file():
        found = "not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {found}; give the path of a checkpoint")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    content = _read(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__} instead of a state_dict")
    state, rest = content, {}
    for entry in ("state_dict", "model"):
        if isinstance(content.get(entry), Mapping):
            state = content[entry]
            rest = {name: value for name, value in content.items() if name != entry}
            break
    others = [
        name
        for name, value in state.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others or not state:
        what = f"{printable(str(others[0]))} is not a tensor" if others else "it is empty"
        raise InputError(f"{path}: not a state_dict ({what}); give the weights of a network")
    for name, value in state.items():
        if not _is_plain(value):
            raise InputError(
                f"{path}: {printable(name)} is not a dense tensor with all its values in the file"
            )
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}, rest


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # about what a damaged file pretends to be
            # Mapped into memory where the format allows, so that unused entries are not read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged or hostile file may cause any of them
        refused = re.search(r"[Uu]nsupported (?:\w+: )?GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused is not None:
            raise InputError(
                f"{path}: holds {refused[1]} besides its weights, but only tensors and plain "
                "values are read, because anything else could run code; if you trust the file, "
                'save its weights alone first (docs/checkpoints.md, "A file that is refused")'
            ) from error
        # torch's own message for a bad pickle, or what looks like its oldest format, recommends to
        # run what is in it.
        bad = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
        reason = "not written by torch.save" if bad else one_line(error)
        raise InputError(f"{path}: damaged or not a file of weights ({reason})") from error


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that would unpack to more than it holds: torch never compresses."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if declared > path.stat().st_size:
        raise ValueError(f"its parts declare {declared} bytes, more than the file has")


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is dense, on the CPU, and no larger than the data behind it."""
    if type(value) not in (Tensor, nn.Parameter) or value.device.type != "cpu":
        return False
    if value.layout != torch.strided or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


# --- what produced a result -------------------------------------------------------------

# Attributes outside the state_dict that predictions depend on.
_ATTRIBUTES = (
    *("classes", "palette", "category_ids", "mean", "std", "bgr", "align_corners"),
    "_hub_mixin_config",
)


def fingerprint(model: nn.Module, *, weights_only: bool = False) -> str:
    """Hash a network, to tell whether two results come from the same one.

    The hash covers every entry of the state_dict, the printed modules, class names, colours,
    normalisation and the saved options. It does not depend on the device or on training mode. A
    library version that prints a module differently changes it.

    Args:
        model: the network.
        weights_only: cover only the names and values of the state_dict.

    Returns:
        16 hexadecimal digits of a SHA-256, or 12 with ``weights_only``.

    >>> layers = [nn.Linear(2, 1), nn.Linear(2, 1)]
    >>> fingerprint(layers[0]) == fingerprint(layers[1])
    False
    >>> _ = layers[0].load_state_dict(layers[1].state_dict())
    >>> fingerprint(layers[0]) == fingerprint(layers[1])
    True
    """
    digest = hashlib.sha256()
    if not weights_only:
        printed = re.sub(r"0x[0-9a-fA-F]+", "", repr(model))  # addresses differ between processes
        attributes = {name: getattr(model, name, None) for name in _ATTRIBUTES}
        digest.update(f"{type(model).__qualname__}\n{printed}\n".encode())
        digest.update(json.dumps(attributes, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() if weights_only else f"\n{name} ".encode())
        if isinstance(value, Tensor):
            if not weights_only:
                digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        else:  # a module's extra state
            digest.update(repr(value).encode())
    return digest.hexdigest()[: 12 if weights_only else 16]


def model_summary(model: nn.Module) -> dict[str, Any]:
    """Class name, number of parameters and fingerprint of a network, for the JSON of a result."""
    return {
        "name": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fingerprint": fingerprint(model),
    }


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Describe the machine and the library versions, to be stored with a result.

    Args:
        device: the device that did the work.

    Returns:
        "device", "threads", "python", "torch", "torchvision", "timm", "lightning", "fsanet",
        "commit" (followed by "+changes" if the working tree differs) and "system". Packages that
        are not installed and an unknown commit are omitted.
    """
    device = torch.device(device)
    found = {"device": _device_name(device), "threads": str(torch.get_num_threads())}
    found["python"] = platform.python_version()
    found["torch"] = torch.__version__  # includes the build, such as +cu128
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
    """Commit of the repository that tracks this file, if there is one."""
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
            return None  # installed into another project's repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def first_process() -> bool:
    """Whether this process has rank 0 and so writes files and prints.

    It reads the variables of torchrun (``RANK``, ``GROUP_RANK``), Lightning (``NODE_RANK``,
    ``LOCAL_RANK``) and SLURM (``SLURM_PROCID``), and so can be called before the processes have
    been connected.
    """
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    ranks = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)
