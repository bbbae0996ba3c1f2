import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A benchmark is as long as the machine is slow; the time limit is for tests.
    for item in items:
        item.add_marker(pytest.mark.timeout(0))
