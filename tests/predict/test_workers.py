"""Threads beside the network: errors come back, nothing hangs, torch's threads stay."""

from __future__ import annotations

import threading

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


@pytest.mark.parametrize("inline", [True, False])
def test_an_error_of_a_task_is_in_its_future_and_what_was_begun_ends(inline: bool) -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space")

    def run() -> None:
        with Workers(inline=inline) as workers:
            failed = workers.do(fail)
            for number in range(20):
                workers.do(done.append, number)
            failed.result()

    with pytest.raises(OSError, match="no space"):
        run()
    assert sorted(done) == list(range(20))
