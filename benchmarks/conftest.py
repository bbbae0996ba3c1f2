import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Benchmarks take as long as the machine needs; the time limit is meant for tests.
    for item in items:
        item.add_marker(pytest.mark.timeout(0))
