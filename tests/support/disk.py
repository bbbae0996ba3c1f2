"""A disk that is full."""

import resource
import signal
import sys
from contextlib import contextmanager

import pytest


@contextmanager
def files_limited_to(size):
    """Let this process write no file beyond a size in bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        # Python would keep cut bytecode of a module that is imported meanwhile (gh-126606).
        patch.setattr(sys, "dont_write_bytecode", True)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
