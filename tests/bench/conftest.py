import pytest
from support.behaving import run_in_process

from fsanet.bench import measure


@pytest.fixture
def in_process(monkeypatch):
    """Measure in this process; tests/cost/test_process.py shows that fresh ones work."""
    monkeypatch.setattr(measure, "run_isolated", run_in_process)
