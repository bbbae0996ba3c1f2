"""Checks before a training starts."""

import warnings
from types import SimpleNamespace

import pytest

from fsanet.errors import InputError
from fsanet.train import trainer
from fsanet.train.trainer import check_batch, make_trainer


def warnings_of(batch_size, accumulate, processes, wanted, lr=0.01):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        data = SimpleNamespace(batch_size=batch_size, accumulate=accumulate)
        check_batch(data, processes, wanted, lr)
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes"), [(8, 1, 1), (1, 1, 8), (2, 2, 2), (4, 2, 1)]
)
def test_no_warning_if_a_step_takes_as_many_images_as_the_recipe(batch_size, accumulate, processes):
    assert warnings_of(batch_size, accumulate, processes, 8) == []
    assert warnings_of(batch_size, accumulate, processes, None) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"devices": "\u00b2"}, "trainer options: "),
        ({"devices": "9" * 5000}, "trainer options: "),
        ({"devices": "9" * 30}, "devices=9+: must be at most"),
        ({"strategy": "ddp_spawn"}, "strategy=ddp_spawn: .*give ddp"),
        ({"strategy": "ddp_notebook"}, "strategy=ddp_notebook"),
    ],
)
def test_options_that_no_trainer_takes(options, match):
    with pytest.raises(InputError, match=match):
        make_trainer({"callbacks": (), "logger": False}, accelerator="cpu", **options)


@pytest.mark.parametrize(
    ("precision", "known", "count"),
    [("bf16-mixed", False, 1), ("bf16-mixed", True, 0), ("32-true", False, 0)],
)
def test_bfloat16_without_instructions_is_said_to_be_slow(monkeypatch, precision, known, count):
    monkeypatch.setattr(trainer, "has_bfloat16", lambda: known)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        make_trainer({"callbacks": (), "logger": False}, accelerator="cpu", precision=precision)
    lines = [str(warning.message) for warning in found]
    assert sum("precision=bf16-mixed: this processor has no" in line for line in lines) == count


def test_recipe_for_one_gpu_started_on_eight():
    (line,) = warnings_of(8, 1, 8, 8)
    assert "takes 64 images (8 per process, 1 accumulated, 8 processes)" in line
    assert "lr=0.01 was chosen for 8" in line
    assert "--data.batch_size 1," in line
    assert "--task.lr 0.08) with --global-batch 64 and 0.125 times the steps" in line


def test_batch_that_cannot_be_split_evenly():
    (line,) = warnings_of(2, 3, 2, 8)  # 6 does not divide 8, two processes do
    assert "--data.batch_size 4 --data.accumulate 1" in line
    (line,) = warnings_of(2, 1, 3, 8)
    assert "a number of processes that divides 8" in line


def test_only_the_first_process_warns(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert warnings_of(8, 1, 8, 8) == []
