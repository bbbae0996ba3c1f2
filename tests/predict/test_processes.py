from __future__ import annotations

import pytest
import torch

from fsanet.errors import InputError
from fsanet.files import first_process
from fsanet.predict.processes import Processes, Pulse, start_processes, started_outside

LAUNCHERS = (
    *("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_launcher() -> None:
    alone = start_processes()
    assert (alone.rank, alone.count, alone.first, alone.device) == (0, 1, True, None)
    assert start_processes(device="meta").device == "meta"
    assert start_processes(accelerator="cpu", devices="1").device == "cpu"
    assert alone.collect(3) == alone.gather(3) == [3]
    assert alone.by_first(lambda: 4) == alone.together(lambda: 4) == 4

    def fail() -> None:
        raise InputError("no such thing")

    for run in (alone.by_first, alone.together):
        with pytest.raises(InputError, match="no such thing"):
            run(fail)


def test_options_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, line in [
        ({"strategy": "fsdp"}, "strategy fsdp"),
        ({"devices": 2, "device": "cpu"}, "device cpu: is of a single process"),
        ({"accelerator": "abacus"}, "accelerator abacus: not on this machine"),
        ({"accelerator": "abacus", "devices": 2}, "processes: .*abacus"),
        ({"devices": 0}, "processes: .*0"),
        ({"devices": "many", "accelerator": "cpu"}, "processes: .*devices"),
    ]:
        with pytest.raises(InputError, match=line) as caught:
            start_processes(**options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="accelerator gpu: not on this machine"):
            start_processes(accelerator="gpu")
    # Each of two would predict everything.
    launcher = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"does not match the world size \(2\)"):
        start_processes(accelerator="cpu")


@pytest.mark.parametrize(
    ("environment", "count", "first"),
    [
        ({}, 1, True),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, 4, True),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}, 4, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, 8, True),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, 8, False),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1, True),  # in a batch script, without srun
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, 1, False),  # started by Lightning
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 1, False),
    ],
)
def test_what_launchers_say(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], count: int, first: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_outside() == count
    assert first_process() is first


def test_pulse_of_one_process_counts_at_once() -> None:
    seen: list[int] = []
    with Pulse(Processes(), seen.append) as pulse:
        pulse.advance(1)
        pulse.advance(2)
        assert not pulse.ended
    assert seen == [1, 3]
