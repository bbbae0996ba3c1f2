"""Runs of a tiny network: what is left in the run folder, resuming, several processes."""

import csv
import math
import os
import shutil
import signal
from pathlib import Path

import lightning
import pytest
import torch
import torch.multiprocessing as mp
import yaml
from safetensors.torch import load_file
from support import tiny
from support.tiny import CLASSES, TinyData, TinyNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fsanet.errors import InputError
from fsanet.signals import Interrupted
from fsanet.train import SemanticSegmentation, evaluate, train


def task_of(seed=0, *, norm=True, dropout=0.2, **options):
    torch.manual_seed(seed)
    options = {"lr": 0.05, "warmup_steps": 1} | options
    return SemanticSegmentation(TinyNet(norm=norm, dropout=dropout), classes=CLASSES, **options)


def run(out, *, task=None, data=None, **options):
    options = {"steps": 12, "accelerator": "cpu", "log_every": 1, "progress": False} | options
    return train(task or task_of(), data or TinyData(), out=out, **options)


def rows(out):
    with (Path(out) / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def values(out, key):
    return {int(row["step"]): float(row[key]) for row in rows(out) if row[key]}


class Crash(lightning.Callback):
    """A power cut in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args, **kwargs):
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")


def test_run_folder(tmp_path):
    out = tmp_path / "deep" / "run"
    task, data = task_of(), TinyData()
    result = run(out, task=task, data=data)
    assert result.steps == 12
    assert {path.name for path in out.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "model",
        "tensorboard",
    }
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last-previous.ckpt",
        "last.ckpt",
    }
    assert yaml.safe_load((out / "config.yaml").read_text())["steps"] == 12
    losses, rates, scores = (
        values(out, f"{key}") for key in ("train/loss", "train/lr", "val/miou")
    )
    assert sorted(losses) == list(range(12))
    assert rates[0] == pytest.approx(0.05e-3)
    assert rates[1] == pytest.approx(0.05)
    assert sorted(scores) == [3, 7, 11]
    assert result.best_score == pytest.approx(max(scores.values()))
    assert scores[result.best_step - 1] == pytest.approx(result.best_score)
    assert min(values(out, "train/images_per_second").values()) > 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {event.step for event in events.Scalars("train/loss")} == set(range(12))
    assert "val/iou/road" in events.Tags()["scalars"]


def test_best_model_is_the_one_of_the_best_validation(tmp_path):
    result = run(tmp_path)
    weights = load_file(result.model / "model.safetensors")
    network = TinyNet()
    network.load_state_dict(weights)
    scores = evaluate(network, TinyData(), split="val", accelerator="cpu", progress=False)
    assert scores.miou == pytest.approx(result.best_score, rel=1e-6)
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    for name, tensor in weights.items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"model.{name}"])


def test_moving_average_is_what_is_validated_and_kept(tmp_path):
    """Weights and batch statistics averaged by hand; the decay of update n starts at 1 / 10."""
    seen = []

    class Follow(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen.append({k: v.clone() for k, v in module.model.state_dict().items()})

    task = task_of(ema=0.4)
    result = run(tmp_path, task=task, steps=4, data=TinyData(accumulate=2), callbacks=[Follow()])
    steps = seen[1::2]  # two batches per step
    average = dict(steps[0])
    for count, weights in enumerate(steps[1:], 1):
        decay = min(0.4, (1 + count) / (10 + count))
        for name, value in weights.items():
            mixed = decay * average[name] + (1 - decay) * value
            average[name] = mixed if value.is_floating_point() else value
    saved = load_file(result.model / "model.safetensors")
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert best.keys() == {f"model.{name}" for name in saved}
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, msg=name)
        assert torch.equal(saved[name], best[f"model.{name}"])
    assert not torch.allclose(saved["encoder.1.running_mean"], steps[-1]["encoder.1.running_mean"])
    assert saved["encoder.1.num_batches_tracked"] == 8
    network = TinyNet()
    network.load_state_dict(saved)
    scores = evaluate(network, TinyData(), split="val", accelerator="cpu", progress=False)
    assert scores.miou == pytest.approx(result.best_score, rel=1e-6)


def test_validation_scores_equal_a_loop_over_the_set(tmp_path):
    task = task_of()
    run(tmp_path, task=task, steps=3)
    network, data = task.model.eval(), TinyData()
    counts = torch.zeros(3, 3, dtype=torch.long)
    with torch.no_grad():
        for image, labels in data.val_set:
            predicted = network(network.normalise(image[None]))[0].argmax(0)
            for label, prediction in zip(labels.flatten(), predicted.flatten(), strict=True):
                if label != 255:
                    counts[label, prediction] += 1
    hit = counts.diagonal().double()
    iou = hit / (counts.sum(0) + counts.sum(1) - hit)
    assert values(tmp_path, "val/miou")[2] == pytest.approx(iou.mean().item(), rel=1e-6)
    accuracy = (hit.sum() / counts.sum()).item()
    assert values(tmp_path, "val/pixel_accuracy")[2] == pytest.approx(accuracy, rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "val_every", "validated"), [(10, 1, [3, 7, 9]), (3, 1, [2]), (12, 2, [7, 11])]
)
def test_ends_at_the_exact_step_with_a_validation(tmp_path, steps, val_every, validated):
    result = run(tmp_path, steps=steps, val_every=val_every)
    assert result.steps == steps
    assert sorted(values(tmp_path, "train/loss")) == list(range(steps))
    assert sorted(values(tmp_path, "val/miou")) == validated


# --- resuming ---------------------------------------------------------------------------


def assert_same_run(one, other):
    """Weights, optimiser, schedule: all that decides what comes next, exactly equal."""
    first, second = (
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (one, other)
    )
    assert first["global_step"] == second["global_step"]
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    states = [checkpoint["optimizer_states"][0] for checkpoint in (first, second)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys() != set()
    for key, state in states[0]["state"].items():
        for name, value in state.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(states[1]["state"][key][name])
            )


class SignalAt(lightning.Callback):
    """Sends a signal to this process in a hook, at its n-th call."""

    def __init__(self, hook, call):
        self.calls = 0

        def send(*args, **kwargs):
            self.calls += 1
            if self.calls == call:
                signal.raise_signal(signal.SIGTERM)

        setattr(self, hook, send)


def assert_same_results(one, other):
    """All that is left of two runs, except for times."""
    assert_same_run(one, other)
    for key in ("train/loss", "train/lr", "val/miou"):
        assert values(one, key) == values(other, key)
    best = [load_file(out / "model" / "model.safetensors") for out in (one, other)]
    assert all(torch.equal(tensor, best[1][name]) for name, tensor in best[0].items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Ten steps in epochs of four batches of two steps each, validated every other epoch."""
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out, **ten_steps())
    return out


def ten_steps(**options):
    return {"steps": 10, "val_every": 2, "data": TinyData(accumulate=2)} | options


@pytest.mark.parametrize(
    ("hook", "call", "saved"),
    [
        pytest.param("on_train_start", 1, None, marks=pytest.mark.slow),
        pytest.param("on_before_optimizer_step", 1, 1, marks=pytest.mark.slow),
        ("on_train_batch_start", 4, 2),  # the second batch of a step
        pytest.param(
            "on_train_batch_end", 7, 4, marks=pytest.mark.slow
        ),  # the next step is the last of the epoch, without validation
        pytest.param("on_train_epoch_end", 1, 4, marks=pytest.mark.slow),
        pytest.param("on_train_batch_start", 9, 5, marks=pytest.mark.slow),
        pytest.param("on_before_backward", 15, 8, marks=pytest.mark.slow),
        pytest.param("on_validation_start", 1, 8, marks=pytest.mark.slow),
        pytest.param("on_validation_batch_start", 3, 8, marks=pytest.mark.slow),
        pytest.param("on_validation_end", 1, 8, marks=pytest.mark.slow),
        pytest.param("on_train_batch_start", 18, 9, marks=pytest.mark.slow),
        ("on_validation_batch_end", 6, 10),  # within the last epoch, which is a short one
        ("on_train_end", 1, 10),
    ],
)
def test_signal_at_any_moment(tmp_path, uninterrupted, hook, call, saved):
    with pytest.raises(Interrupted) as stop:
        run(tmp_path, callbacks=[SignalAt(hook, call)], **ten_steps())
    assert stop.value.number == signal.SIGTERM
    if saved is None:
        assert stop.value.advice == ""
        assert not (tmp_path / "checkpoints").exists()
        run(tmp_path, overwrite=True, **ten_steps())
    else:
        assert f"step {saved} is saved, --resume continues" in stop.value.advice
        last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == saved
        torch.rand(17)
        assert run(tmp_path, resume=True, **ten_steps(task=task_of(seed=99))).steps == 10
    assert_same_results(uninterrupted, tmp_path)


def test_signal_at_every_step_of_a_run(tmp_path, uninterrupted):
    for step in range(1, 10):
        callbacks = [SignalAt("on_train_batch_start", 1)]
        with pytest.raises(Interrupted, match=f"step {step} is saved"):
            run(tmp_path, resume=step > 1, callbacks=callbacks, **ten_steps())
    run(tmp_path, resume=True, **ten_steps())
    assert_same_results(uninterrupted, tmp_path)


def test_run_stopped_within_an_epoch_can_be_made_longer(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, steps=4, callbacks=[SignalAt("on_train_batch_start", 2)])
    assert run(tmp_path, steps=12, resume=True).steps == 12
    assert sorted(values(tmp_path, "train/loss")) == list(range(12))


@pytest.mark.parametrize(
    ("crash", "options"),
    [
        (6, {"optimizer": "sgd"}),
        (11, {"optimizer": "adamw", "decay_norms": False}),
        (7, {"ema": 0.8, "freeze": 1, "class_weights": "balanced", "channels_last": True}),
    ],
)
def test_resumed_run_equals_uninterrupted(tmp_path, crash, options):
    whole, cut, moved = tmp_path / "whole", tmp_path / "cut", tmp_path / "moved"
    uninterrupted = run(whole, task=task_of(**options))
    with pytest.raises(RuntimeError, match="power cut"):
        run(cut, task=task_of(**options), callbacks=[Crash(crash)])
    cut.rename(moved)
    torch.rand(17)  # the random state at the time of resuming must not matter
    result = run(moved, task=task_of(seed=99, **options), resume=True)
    assert result.steps == 12
    assert (result.best_score, result.best_step) == (
        uninterrupted.best_score,
        uninterrupted.best_step,
    )
    assert_same_results(whole, moved)


def test_resumed_run_does_not_replace_a_better_model(tmp_path):
    """The folder was moved, and the network destroyed after its first epoch."""

    class Destroy(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args, **kwargs):
            with torch.no_grad():
                module.model.head[1].weight.mul_(-1)

    first = run(tmp_path / "run", steps=4)
    weights = (first.model / "model.safetensors").read_bytes()
    (tmp_path / "run").rename(tmp_path / "moved")
    second = run(tmp_path / "moved", steps=5, resume=True, callbacks=[Destroy()])
    assert (second.steps, second.best_step, second.best_score) == (5, 4, first.best_score)
    assert (second.model / "model.safetensors").read_bytes() == weights


def test_resumed_run_with_accumulation(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def data():
        return TinyData(accumulate=2, steps_per_epoch=3)

    run(whole, data=data(), steps=6)
    with pytest.raises(RuntimeError, match="power cut"):
        run(cut, data=data(), steps=6, callbacks=[Crash(4)])
    run(cut, data=data(), steps=6, resume=True)
    assert_same_run(whole, cut)


def test_dropout_and_data_order_matter_to_the_comparison(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "two", seed=1)  # another dropout
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "two")


def test_finished_run_resumes_to_itself(tmp_path):
    first = run(tmp_path, steps=6)
    again = run(tmp_path, steps=6, resume=True)
    assert (again.best_score, again.best_step, again.steps) == (
        first.best_score,
        first.best_step,
        6,
    )
    assert sorted(values(tmp_path, "train/loss")) == list(range(6))


def test_run_is_made_longer_from_a_whole_epoch_only(tmp_path):
    run(tmp_path, steps=4)
    assert run(tmp_path, steps=10, resume=True).steps == 10
    with pytest.raises(InputError, match="cannot be made longer"):
        run(tmp_path, steps=12, resume=True)


def test_steps_do_not_repeat_their_dropout(tmp_path):
    drawn = []

    class Draw(lightning.Callback):
        def on_train_batch_start(self, trainer, *args):
            drawn.append(torch.get_rng_state().numpy().tobytes())

    run(tmp_path, callbacks=[Draw()])
    assert len(set(drawn)) == len(drawn) == 12


# --- starting from another network -------------------------------------------------------


def test_init_from_takes_what_fits_and_lists_the_rest(tmp_path, capsys, monkeypatch):
    torch.manual_seed(1)
    other = TinyNet()
    other.head[1] = torch.nn.Conv2d(6, 5, 1)  # other classes
    monkeypatch.setattr("fsanet.train.run.load_model", lambda source, task: other)
    given = {name: value.clone() for name, value in other.state_dict().items()}
    task = task_of(seed=2)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    started = {}

    class Look(lightning.Callback):
        def on_train_start(self, trainer, module):
            started.update({k: v.clone() for k, v in module.model.state_dict().items()})

    run(tmp_path, task=task, steps=4, init_from="elsewhere", callbacks=[Look()])
    for name, value in started.items():
        assert torch.equal(value, (before if name.startswith("head") else given)[name]), name
    assert (
        "9 of 11 weights are those of elsewhere; 2 start new: head.1.weight, head.1.bias"
        in capsys.readouterr().err
    )
    found = run(tmp_path, task=task_of(seed=3), steps=6, init_from="gone", resume=True)
    assert found.steps == 6
    other.encoder, other.head, other.auxiliary = None, None, None
    with pytest.raises(InputError, match="elsewhere: none of its weights belongs"):
        run(tmp_path / "new", init_from="elsewhere")


# --- bfloat16, channels-last --------------------------------------------------------------


def test_channels_last_changes_nothing_but_rounding(tmp_path):
    run(tmp_path / "plain", task=task_of(dropout=0.0))
    task = task_of(dropout=0.0, channels_last=True)
    run(tmp_path / "last", task=task)
    for module in (task.model, task.network):
        weight = module.encoder[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    losses = [values(tmp_path / name, "train/loss") for name in ("plain", "last")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- several processes ------------------------------------------------------------------


def as_torchrun(rank, port, out):
    """Train as one of two processes that torchrun started."""
    torch.set_num_threads(1)
    started = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in {**started, **place}.items()}
    tiny.train_tiny(out, devices=2, strategy="ddp")


def test_two_processes_train_as_one(tmp_path, free_port, one_thread):
    # 5 validation images: one process has 3 of them, the other 2.
    context = mp.start_processes(
        as_torchrun, (free_port, tmp_path / "two"), nprocs=2, join=False, start_method="fork"
    )
    while not context.join(timeout=1):
        pass
    tiny.train_tiny(tmp_path / "one")
    for key in ("train/loss", "val/miou", "val/pixel_accuracy"):
        expected = values(tmp_path / "one", key)
        assert len(expected) >= 2
        assert values(tmp_path / "two", key) == pytest.approx(expected, rel=2e-5)
    weights = [load_file(tmp_path / out / "model" / "model.safetensors") for out in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_accumulation_equals_the_large_batch_where_pixels_are_equal(tmp_path):
    def data(batch_size, accumulate):
        made = TinyData(batch_size=batch_size, accumulate=accumulate)
        made.train_set.labels = made.train_set.images.argmax(1).long()  # nothing ignored
        return made

    for name, arguments in {"large": (4, 1), "small": (2, 2)}.items():
        task = task_of(norm=False, dropout=0.0)
        run(tmp_path / name, task=task, data=data(*arguments), steps=8)
    large, small = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("large", "small")
    )
    assert large["global_step"] == small["global_step"] == 8
    for name, tensor in large["state_dict"].items():
        torch.testing.assert_close(small["state_dict"][name], tensor, rtol=1e-5, atol=1e-6)


# --- what the user may get wrong --------------------------------------------------------


def test_existing_run_is_kept(tmp_path):
    run(tmp_path, steps=3)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds a run already.*--resume, --overwrite"):
        run(tmp_path, steps=3)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before
    run(tmp_path, steps=2, overwrite=True)
    assert sorted(values(tmp_path, "train/loss")) == [0, 1]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_no_run_is_not_overwritten(tmp_path):
    """Such as the code of a project whose folder is given as --out."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "network.py").write_text("mine")
    with pytest.raises(InputError, match=r"model in it belong to no run.*give another --out"):
        run(tmp_path, steps=2, overwrite=True)
    assert (tmp_path / "model" / "network.py").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/run", "run/model", "run/tensorboard", "nowhere"])
def test_unwritable_output_fails_before_the_data_are_read(tmp_path, place):
    (tmp_path / "run").mkdir()
    for name in ("file", "run/model", "run/tensorboard"):
        (tmp_path / name).touch()
    (tmp_path / "nowhere").symlink_to("nothing")
    data = TinyData()
    data.setup = data.prepare_data = lambda *_: pytest.fail("data were read")
    out = tmp_path / ("run" if place.startswith("run") else place)
    if place == "run/model":
        (tmp_path / "run/tensorboard").unlink()
    with pytest.raises(InputError, match=rf"(model|{place}).*: cannot be written"):
        run(out, data=data, overwrite=True)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        run(tmp_path / "none", resume=True)


def test_checkpoint_of_another_architecture(tmp_path):
    run(tmp_path, steps=2)
    other = task_of(norm=False)
    with pytest.raises(
        InputError, match=r"last.ckpt: .*another architecture \(5 not of this network"
    ):
        run(tmp_path, task=other, resume=True)


def flip(file):
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:500])


def without_optimizer(file):
    content = torch.load(file, weights_only=True)
    torch.save({**content, "optimizer_states": None}, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"damaged \(its checksum is wrong in .*\)"),
        (truncate, r"damaged \(File is not a zip file\)"),
        (without_optimizer, "not a checkpoint written by fsanet train .no 'optimizer_states'"),
        (Path.unlink, "no such file"),
    ],
)
def test_damaged_checkpoint(tmp_path, uninterrupted, damage, message):
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    last, previous = (out / "checkpoints" / f"last{name}.ckpt" for name in ("", "-previous"))
    damage(last)
    with pytest.warns(UserWarning, match=rf"last\.ckpt: {message}.*from last-previous.ckpt, step"):
        run(out, resume=True, **ten_steps())
    assert_same_results(uninterrupted, out)
    damage(last)
    damage(previous)
    message = "nothing to resume" if damage is Path.unlink else rf"last\.ckpt: {message}"
    with pytest.raises(InputError, match=message):
        run(out, resume=True, **ten_steps())


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("optimizer_states", []),
        ("optimizer_states", [{"state": {}, "param_groups": []}]),
        ("lr_schedulers", [{"_step_count": "x"}, 3]),
        ("loops", {}),
        ("loops", {"fit_loop": {"epoch_progress": 3}}),
        ("callbacks", {"KeepBest": {}}),
        ("callbacks", {3: {}}),
        ("pytorch-lightning_version", "one"),
        ("global_step", -1),
        ("global_step", 9),
    ],
)
def test_checkpoint_whose_content_is_wrong(tmp_path, uninterrupted, part, content):
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    (out / "checkpoints" / "last-previous.ckpt").unlink()
    last = out / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(last, weights_only=True), part: content}, last)
    with pytest.raises(InputError, match=r"last\.ckpt: "):
        run(out, resume=True, **ten_steps(steps=12))


def test_state_of_the_optimiser_that_no_step_can_use(tmp_path):
    run(tmp_path, steps=4)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.with_name("last-previous.ckpt").unlink(missing_ok=True)
    content = torch.load(last, weights_only=True)
    of_parameter = content["optimizer_states"][0]["state"][0]
    of_parameter[sorted(of_parameter)[0]] = 3
    torch.save(content, last)
    with pytest.raises(InputError, match=r"last\.ckpt: does not fit this training"):
        run(tmp_path, resume=True, steps=8)


def set_batches(content):
    content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] = "x"


def set_loop(content):
    loop = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    loop["optimizer"]["step"]["total"]["completed"] = 3


def counters(content):
    return content["loops"]["fit_loop"]["epoch_progress"]


def set_shape(content):
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(global_step=3), "global_step is 3, but the training loop has done 4"),
        (set_loop, "global_step is 4, but the training loop has done 3"),
        (lambda c: c["lr_schedulers"][0].update(last_epoch=2), "schedule has done 2 steps"),
        (lambda c: c["callbacks"]["KeepBest"].update(step=5), "the best step 5"),
        (
            lambda c: c["optimizer_states"][0]["state"][0]["step"].fill_(7),
            "the optimiser has done 7 on parameter 0",
        ),
        (lambda c: c["lr_schedulers"][0].update(_step_count="x"), "the step of its schedule"),
        (lambda c: c["callbacks"]["KeepBest"].update(epoch=3), "not of such a training"),
        (set_batches, "epoch_loop.batch_progress.current.ready is 'x'"),
        (lambda c: counters(c)["total"].update(processed={"value": 1}), "total.processed is"),
        (lambda c: counters(c)["total"].update(reset=1), "total.reset is 1"),
        (lambda c: counters(c)["current"].clear(), "epoch_progress.current.* is None"),
        (lambda c: counters(c).pop("current"), "epoch_progress.current is None"),
        (
            lambda c: c["loops"]["fit_loop"]["state_dict"].update(combined_loader=[]),
            r"fit_loop.state_dict.combined_loader is \[\]",
        ),
        (set_shape, "does not fit this training .exp_avg of parameter 0 has another shape"),
        (
            lambda c: c["optimizer_states"][0]["param_groups"][0].update(betas=("a", 1.0)),
            "does not fit this training .betas",
        ),
    ],
)
def test_checkpoint_that_contradicts_itself(tmp_path, change, message):
    def adamw():
        return task_of(optimizer="adamw")

    run(tmp_path, steps=4, task=adamw())
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.with_name("last-previous.ckpt").unlink(missing_ok=True)
    content = torch.load(last, weights_only=True)
    change(content)
    torch.save(content, last)
    with pytest.raises(InputError, match=rf"last\.ckpt: .*{message}"):
        run(tmp_path, resume=True, steps=8, task=adamw())


def test_other_optimiser_than_that_of_the_checkpoint(tmp_path):
    run(tmp_path, steps=4)
    with pytest.raises(
        InputError, match=r"does not fit this training .its optimiser is not AdamW.*resume with"
    ):
        run(tmp_path, resume=True, steps=8, task=task_of(optimizer="adamw"))


def test_other_band_than_that_of_the_checkpoint(tmp_path):
    """Weights do not show it."""

    def task(k):
        one = task_of()
        one.network._hub_mixin_config = {"k": k, "mean": (0.5, 0.5, 0.5)}
        return one

    run(tmp_path, steps=4, task=task(8))
    with pytest.raises(InputError, match=r"last\.ckpt: of a network with k=8, not 2; resume with"):
        run(tmp_path, resume=True, steps=8, task=task(2))
    assert run(tmp_path, resume=True, steps=8, task=task(8)).steps == 8


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "training_step"])
def test_mistake_of_a_resumed_training_is_no_fault_of_the_checkpoint(tmp_path, hook):
    run(tmp_path, steps=4)
    task = task_of()

    def fail(*args):
        raise RuntimeError("a mistake")

    setattr(task, hook, fail)
    with pytest.raises(RuntimeError, match=r"^a mistake$"):
        run(tmp_path, resume=True, steps=8, task=task)


def test_checkpoint_with_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": Attack()}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match="could run code"):
        run(tmp_path, resume=True)
    assert not (tmp_path / "attacked").exists()


def test_loss_that_is_not_finite_stops_with_a_hint(tmp_path):
    task = task_of()
    with torch.no_grad():
        task.model.head[1].bias[0] = math.inf
    with pytest.raises(InputError, match=r"optimiser step 0: try a smaller task.lr"):
        run(tmp_path, task=task)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps=0"),
        ({"val_every": 0}, "val_every=0"),
        ({"devices": 0}, "devices=0"),
        ({"log_every": 0}, "log_every=0"),
        ({"steps": 10**20}, "steps=1.*at most 1000000000"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296.*at most"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"gradient_clip": math.nan}, "gradient_clip=nan"),
        ({"gradient_clip": math.inf}, "gradient_clip=inf"),
        ({"devices": 10**6, "accelerator": "cpu"}, "devices=1000000: must be at most"),
        ({"num_nodes": 2}, "num_nodes=2: start the command with torchrun or SLURM"),
        ({"accelerator": "gpu"}, "trainer options"),
        ({"strategy": "deepspeed"}, "trainer options"),
        ({"global_batch": 0}, "global_batch=0"),
        ({"steps": 1}, "warmup_steps=1: the training has only 1 steps"),
        ({"accelerator": "abacus"}, "trainer options.*abacus"),
        ({"precision": "7-bit"}, "trainer options.*7-bit"),
    ],
)
def test_options_out_of_range(tmp_path, options, match):
    with pytest.raises(InputError, match=match):
        run(tmp_path / "run", **options)


def test_other_number_of_classes(tmp_path):
    data = TinyData()
    data.num_classes = 4
    with pytest.raises(InputError, match="3 classes and the data set 4"):
        run(tmp_path, data=data)
    with pytest.raises(InputError, match="3 classes and the data set 4"):
        evaluate(TinyNet(), data, accelerator="cpu")


def test_more_processes_than_validation_images(tmp_path):
    options = {"devices": 2, "strategy": "ddp"}
    with pytest.raises(InputError, match="val split has 1 images for 2 processes"):
        run(tmp_path / "run", data=TinyData(val=1), **options)
    with pytest.raises(InputError, match="test split has 1 images for 2 processes"):
        evaluate(TinyNet(), TinyData(val=1), accelerator="cpu", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_mixed_precision_and_clipping(tmp_path):
    for name, options in {
        "full": {},
        "mixed": {"precision": "bf16-mixed"},
        "clipped": {"gradient_clip": 1e-6},
    }.items():
        run(tmp_path / name, task=task_of(weight_decay=0.0), steps=4, **options)
    full, mixed, clipped = (
        load_file(tmp_path / name / "model" / "model.safetensors")["head.1.weight"]
        for name in ("full", "mixed", "clipped")
    )
    start = task_of().model.head[1].weight.detach()
    assert not torch.equal(full, mixed)
    torch.testing.assert_close(mixed, full, rtol=0.05, atol=0.01)
    assert 0 < (clipped - start).abs().max() < 1e-6 < 1e-3 < (full - start).abs().max()


def test_keyboard_interrupt_comes_through_and_resumes(tmp_path):
    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, trainer, *args, **kwargs):
            if trainer.global_step == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[Interrupt()])
    assert run(tmp_path, resume=True).steps == 12


def test_validation_set_may_be_empty(tmp_path):
    result = run(tmp_path, data=TinyData(val=0), steps=2)
    assert math.isnan(result.best_score)
    assert (result.model / "model.safetensors").is_file()
    with pytest.raises(InputError, match="test split holds no image"):
        evaluate(TinyNet(), TinyData(val=0), accelerator="cpu", progress=False)
