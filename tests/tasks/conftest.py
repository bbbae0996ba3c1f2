import sys
from pathlib import Path

# importlib import mode leaves this folder off the path; `tiny` is shared between test files.
sys.path.append(str(Path(__file__).parent))

import socket  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
