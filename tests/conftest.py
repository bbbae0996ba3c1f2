import gc
import os
import socket
import sys
import time
from pathlib import Path

# Hundreds of processes start here. Where Python may write no bytecode, each would compile torch and
# all else from source; it is kept beside pytest's own cache instead, away from the source trees.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

import pytest
import torch

# No power is cut here: waiting for the disk would only take time.
os.fsync = lambda descriptor: None

# Triton reads this when it is imported: without a GPU its kernels run in Python.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Test processes share the cores; with more threads each they would only wait for each other.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_finish():
    """What is imported by now stays: no garbage collection has to look through all of it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves, so that measured times are known whatever else runs."""
    now = [1000.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)


@pytest.fixture
def one_thread():
    """torch computes on one thread: a fork may not use the threads of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
