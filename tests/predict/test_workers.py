"""Threads beside the network: errors come back, nothing hangs, torch's threads stay."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
import torch

from fsanet.predict.workers import Workers


def test_tasks_run_on_one_core_each_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers() as workers:
            started = threading.Barrier(workers.count)  # each task in a thread of its own

            def task() -> tuple[int, str]:
                started.wait(30)
                return torch.get_num_threads(), threading.current_thread().name

            found = [workers.do(task) for _ in range(workers.count)]
            assert {future.result()[0] for future in found} == {1}
            assert len({future.result()[1] for future in found}) == workers.count
            assert torch.get_num_threads() == 2
            here = workers.do(threading.current_thread, here=True)
            assert here.result() is threading.main_thread()
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("most", [1, 8])
def test_an_error_of_a_task_is_in_its_future_and_what_was_begun_ends(most: int) -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space")

    def run() -> None:
        with Workers(most) as workers:
            failed = workers.do(fail)
            for number in range(20):
                workers.do(done.append, number)
            failed.result()

    with pytest.raises(OSError, match="no space"):
        run()
    assert sorted(done) == list(range(20))


@pytest.mark.parametrize(("most", "together", "threads"), [(1, 1, 2), (2, 2, 1), (9, 2, 1)])
def test_networks_that_are_alike_share_the_cores(most: int, together: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    lock, running, seen = threading.Lock(), Counter[str](), set[tuple[int, int, int]]()

    def compute(alike: str) -> None:
        with workers.computing(alike, most):
            with lock:
                running[alike] += 1
            time.sleep(0.05)
            with lock:
                seen.add((running.total(), len(+running), torch.get_num_threads()))
                running[alike] -= 1
        assert torch.get_num_threads() == 1

    try:
        with Workers() as workers:
            tasks = [workers.do(compute, alike) for alike in "aaaabbbbabab"]
            for task in tasks:
                task.result()
            with workers.computing("here", 1):
                assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {sizes for _, sizes, _ in seen} == {1}  # never two that differ
    assert max(count for count, _, _ in seen) == min(together, workers.count)
    assert {found for _, _, found in seen} == {threads}
