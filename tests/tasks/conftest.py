import socket
import sys
from pathlib import Path

import pytest

# importlib import mode leaves this folder off the path; helpers are shared between test files.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
