import pytest
from support.behaving import run_in_process

from fsanet.bench import measure


@pytest.fixture
def in_process(monkeypatch):
    """Measure in this process; that fresh ones work is shown by tests/cost/test_process.py."""
    monkeypatch.setattr(measure, "run_isolated", run_in_process)
