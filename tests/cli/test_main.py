"""The command line: what it prints, what it leaves, and its one line for bad input."""

import json
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from support.blocks import write_blocks

from fsanet.cli import main as cli
from fsanet.train.callbacks import StopAtStep
from fsanet.train.trainer import check_batch

COMMANDS = ("train", "eval", "predict", "demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of blocks of three colours, 64 x 64."""
    root = tmp_path_factory.mktemp("data")
    write_blocks(root)
    return root


@pytest.fixture(scope="module")
def config(folder):
    options = {
        "model": {
            "encoder": "test_resnet",
            "head_channels": 16,
            "aux_channels": 8,
            "k": 2,
            "output_stride": 16,
            "attention": "frequency",
        },
        "data": {
            "class_path": "FolderData",
            "init_args": {
                "root": str(folder),
                "classes": ["red", "green", "blue"],
                "batch_size": 2,
                "steps_per_epoch": 2,
                "crop": [64, 64],
                "workers": 0,
            },
        },
        "task": {"optimizer": "adamw", "lr": 0.002, "decay_norms": False},
        "steps": 4,
        "accelerator": "cpu",
    }
    file = folder / "mini.yaml"
    file.write_text(yaml.safe_dump(options))
    return file


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mini"
    arguments = ["--config", str(config), "--out", str(out), "--model.k", "3", "--seed", "5"]
    assert cli.main(["train", *arguments]) == 0
    return out


def fails(capsys, *arguments):
    """The one line on stderr of a command that exits with 2."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("fsanet: error: ")
    return lines[0]


# --- the commands -----------------------------------------------------------------------


def test_run_is_recorded_so_that_its_config_alone_repeats_it(trained, tmp_path):
    recorded = yaml.safe_load((trained / "config.yaml").read_text())
    assert recorded["model"]["k"] == 3
    assert recorded["seed"] == 5
    assert recorded["model"]["encoder_weights"] is None  # None is kept: it need not be a default
    out = tmp_path / "again"
    arguments = ["--config", str(trained / "config.yaml"), "--out", str(out)]
    assert cli.main(["train", *arguments]) == 0
    first, second = (load_file(run / "model" / "model.safetensors") for run in (trained, out))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_options_reach_the_model(trained):
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["k"] == 3
    assert config["head_channels"] == 16
    assert config["classes"] == ["red", "green", "blue"]


def test_resume_needs_no_config(config, trained, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    arguments = ["train", "--config", str(config), "--out", str(out), "--seed", "5"]
    assert cli.main([*arguments, "--model.k=3", "--steps", "2"]) == 0
    recorded = out / "config.yaml"
    recorded.write_text(recorded.read_text().replace("steps: 2\nval", "steps: 4\nval"))
    # the schedule of 2 steps differs from that of 4, so only the length is comparable
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    assert "of 4 steps" in capsys.readouterr().out
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_weights(config, tmp_path, one_thread):
    """A real process, killed after its first epoch; loaders with worker processes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    common = ["train", "--config", str(config), "--data.init_args.workers", "1", "--steps", "6"]
    assert cli.main([*common, "--out", str(whole)]) == 0

    def train_and_die():
        def die(self, trainer, *args):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        StopAtStep.on_train_batch_start = die
        cli.main([*common, "--out", str(cut)])

    process = multiprocessing.get_context("fork").Process(target=train_and_die)
    process.start()
    process.join(200)
    assert process.exitcode == -signal.SIGKILL
    assert cli.main(["train", "--resume", "--out", str(cut)]) == 0
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole, cut)
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_eval_takes_the_data_of_the_run(trained, folder, tmp_path, capsys):
    assert cli.main(["eval", str(trained), "--json", str(tmp_path / "scores.json")]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert f"mIoU {100 * scores['miou']:.2f} %" in shown
    assert all(name in shown for name in ("red", "green", "blue"))
    assert scores["split"] == "test"
    assert "torch" in scores["versions"]
    valid = sum(
        int((np.asarray(Image.open(path)) != 255).sum())
        for path in (folder / "test" / "masks").iterdir()
    )
    assert sum(entry["pixels"] for entry in scores["classes"].values()) == valid


def test_eval_agrees_with_a_loop_over_predictions(trained, folder, tmp_path, capsys):
    out = tmp_path / "predicted"
    images = str(folder / "test" / "images")
    assert cli.main(["predict", images, "--model", str(trained), "--out", str(out)]) == 0
    counts = np.zeros((3, 3), int)
    for path in (folder / "test" / "masks").iterdir():
        predicted = np.asarray(Image.open(out / f"{path.stem}_mask.png"))
        for label, prediction in zip(
            np.asarray(Image.open(path)).flat, predicted.flat, strict=True
        ):
            if label != 255:
                counts[label, prediction] += 1
    hit = counts.diagonal()
    iou = hit / (counts.sum(0) + counts.sum(1) - hit)
    capsys.readouterr()
    arguments = ["eval", str(trained / "model"), "--data", "FolderData"]
    arguments += ["--data.root", str(folder), "--data.num_classes", "3", "--data.workers", "0"]
    assert cli.main([*arguments, "--accelerator", "cpu"]) == 0
    assert f"mIoU {100 * iou.mean():.2f} %" in capsys.readouterr().out


def test_eval_with_window_scales_and_flip(trained, capsys):
    options = ["--split", "val", "--window", "[32,48]", "--stride", "16"]
    assert cli.main(["eval", str(trained), *options, "--scales", "[1.0,1.5]", "--flip=true"]) == 0
    assert re.search(r"mIoU \d+\.\d\d %", capsys.readouterr().out)


def test_predict_options_reach_the_predictor(trained, folder, tmp_path):
    image = str(folder / "test" / "images" / "0.png")
    options = ["--window", "32", "48", "--stride", "16", "--scales", "1", "1.5", "--flip"]
    arguments = ["predict", image, "--model", str(trained), "--out", str(tmp_path), *options]
    assert cli.main(arguments) == 0
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert settings["window"] == [32, 48]
    assert settings["stride"] == [16, 16]
    assert settings["scales"] == [1.0, 1.5]
    assert settings["flip"] is True


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert f"usage: fsanet {command}" in capsys.readouterr().out


def test_help_names_the_commands_and_version_prints(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"fsanet \d\S*\n", capsys.readouterr().out)


def test_real_process_is_light_and_tells_errors_by_its_exit_code():
    code = (
        "import sys\n"
        "from fsanet.cli.main import main\n"
        "codes = main(['--help']), main(['trian'])\n"
        "heavy = {'lightning', 'timm', 'torchvision', 'jsonargparse'} & set(sys.modules)\n"
        "sys.exit(0 if codes == (0, 2) and not heavy else str((codes, heavy)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "fsanet: error: no command 'trian'; did you mean train?\n"
    command = [sys.executable, "-m", "fsanet", "trian"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (again.returncode, again.stdout, again.stderr) == (2, "", done.stderr)


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("--version >&-", 0, ""),
        ("--version <&- >&- 2>&-", 0, ""),
        ("trian >&-", 2, "did you mean train?"),
        ("trian 2>&-", 2, ""),
        ("trian 2>/dev/full", 2, ""),
        ("--version >/dev/full", 2, "no space left on device"),
    ],
)
def test_streams_that_are_closed_or_full(redirection, code, said):
    command = f"{sys.executable} -m fsanet {redirection}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)
    assert done.stdout == ""


def test_a_folder_that_is_gone(tmp_path):
    """oneMKL would end the process."""
    (tmp_path / "gone").mkdir()
    script = (
        f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && "
        f"{sys.executable} -m fsanet predict a.png --model net --out out"
    )
    done = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "fsanet: error: the current folder is gone; change to another one\n"


def test_figures_need_no_window(monkeypatch):
    """Matplotlib would refuse the name of a backend that is not installed."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setenv("MPLBACKEND", "none of them")
    with warnings.catch_warnings():
        cli.silence_libraries()
    assert os.environ["MPLBACKEND"] == "agg"


# --- bad input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model.kk", "3"], r"FsaNet': Option 'kk' is not accepted"),
        (["--stesp", "3"], r"unrecognized arguments: --stesp=3; did you mean --steps\?"),
        (["--data.init_args.bath_size=3"], r"FolderData': Option 'bath_size' is not accepted"),
        (["--lr", "3"], r"unrecognized arguments: --lr=3; did you mean --task.lr\?"),
        (["--task.lr", "fast"], r"task.lr.*float.*fast"),
        (["--model.k", "many"], r"k=many: give a number"),
        (["--model.attention", "spatal"], r"attention.*spatal"),
        (["--data", "CamVid"], r"data.*CamVid"),
        (["--model.k", "0"], r"k=0"),
        (["--model.k", "[[2,2],[0,4]]"], r"k="),
        (["--model.encoder", "resnet1o1"], r"encoder 'resnet1o1' is not .*resnet101"),
        (["--task.lr", "-1"], r"lr=-1.0: must be above 0"),
        (["--steps", "0"], r"steps=0"),
        (["--data.init_args.root", "/nowhere"], r"/nowhere: no such folder"),
        (["--data.init_args.batch_size", "0"], r"batch_size=0"),
    ],
)
def test_train_says_what_is_wrong_and_writes_nothing(config, tmp_path, capsys, arguments, line):
    out = tmp_path / "run"
    assert re.search(line, fails(capsys, "train", "--config", config, "--out", out, *arguments))
    assert not out.exists()


def test_band_outside_the_plane(config, tmp_path, capsys):
    """Known only when the first feature map is seen: 64 x 64 crops are 4 x 4 features here."""
    arguments = ["--config", config, "--out", tmp_path / "run", "--model.k", "[[9,12],[0,4]]"]
    line = fails(capsys, "train", *arguments)
    assert "band [9:12) x [0:4) lies outside the frequencies of the 4x4 feature map" in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c["model"].update(kk=3), r"FsaNet': Option 'kk' is not accepted"),
        (lambda c: c.update(stesp=3), r"unknown option 'stesp'; did you mean --steps\?"),
        (lambda c: c.update(modle={"k": 3}), r"unknown option 'modle'; did you mean --model\?"),
        (
            lambda c: c["data"]["init_args"].update(bath_size=3),
            r"FolderData': Option 'bath_size' is not accepted",
        ),
        (lambda c: c["data"].update(init_args=None), r"bad.yaml: data: init_args is None; give"),
        (lambda c: c["data"].update(init_args=[1]), r"bad.yaml: data: init_args is \[1\]; give"),
        (lambda c: c.update(overwrite=True), r"bad.yaml: overwrite: deletes a run, so it is for"),
    ],
)
def test_config_key_that_does_not_exist(config, tmp_path, capsys, change, line):
    content = yaml.safe_load(config.read_text())
    change(content)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    assert re.search(line, fails(capsys, "train", "--config", tmp_path / "bad.yaml"))


def test_config_that_is_not_there_or_not_yaml(tmp_path, capsys):
    assert "none.yaml: no such YAML file" in fails(
        capsys, "train", "--config", tmp_path / "none.yaml"
    )
    (tmp_path / "bad.yaml").write_text("model: [3\n")
    fails(capsys, "train", "--config", tmp_path / "bad.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_config_that_is_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "demo").mkdir()
    assert "pipe: is a pipe; give a YAML file" in fails(capsys, "train", "--config", "pipe")
    assert "folder: is a folder; give" in fails(capsys, "train", "--config", "folder")
    assert "loop: " in (line := fails(capsys, "train", "--config", "loop"))
    assert "symbolic links" in line
    assert cli.main(["train", "--config", "demo", "--print-config"]) == 0  # that of fsanet


def test_missing_arguments(capsys):
    assert "steps, data" in fails(capsys, "train")
    assert "data" in fails(capsys, "eval", "nowhere")
    assert "model" in fails(capsys, "predict", "a.png")
    assert "a command is missing" in fails(capsys)


def test_existing_run_is_not_overwritten(config, trained, capsys):
    before = (trained / "checkpoints" / "last.ckpt").read_bytes()
    assert "holds a run already" in fails(capsys, "train", "--config", config, "--out", trained)
    assert (trained / "checkpoints" / "last.ckpt").read_bytes() == before


def test_unwritable_output(config, capsys):
    line = fails(capsys, "train", "--config", config, "--out", config / "run")
    assert "mini.yaml" in line
    assert "cannot be written" in line


def test_mask_id_out_of_range(config, folder, tmp_path, capsys):
    line = fails(
        capsys,
        *("train", "--config", config, "--out", tmp_path / "run"),
        *("--data.init_args.classes", "[red,green]"),
    )
    assert re.search(r"masks.*\d\.png.* 2\b", line), line


def test_resume_with_another_architecture(config, trained, capsys):
    line = fails(
        capsys,
        *("train", "--resume", "--config", config, "--out", trained),
        *("--model.k=3", "--model.head_channels=8"),
    )
    assert re.search(r"last.ckpt: .*another architecture \(\d+ of another shape", line)


def test_eval_of_weights_of_another_architecture(trained, tmp_path, capsys):
    weights = load_file(trained / "model" / "model.safetensors")
    name = next(iter(weights))
    weights["surplus"] = weights.pop(name)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((trained / "model" / "config.json").read_bytes())
    save_file(weights, model / "model.safetensors")
    data = ["--data", json.dumps(yaml.safe_load((trained / "config.yaml").read_text())["data"])]
    line = fails(capsys, "eval", model, *data)
    assert "1 missing" in line
    assert "surplus" in line


def test_eval_on_data_with_other_classes(trained, capsys):
    line = fails(capsys, "eval", trained, "--data.init_args.classes", "[a,b]")
    assert "3 classes and the data set 2" in line


def test_predict_bad_images(trained, folder, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    common = ["--model", trained, "--out", tmp_path / "out"]
    assert str(images) in fails(capsys, "predict", images, *common)  # empty
    content = folder / "test" / "images" / "0.png"
    Image.open(content).convert("RGB").save(images / "whole.jpg")
    whole = (images / "whole.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    line = fails(capsys, "predict", images, *common)
    assert "1 not read" in line
    assert "cut.jpg" in line
    assert (tmp_path / "out" / "whole_mask.png").is_file()  # the rest is done
    assert "window" in fails(capsys, "predict", images, *common, "--window", 1, 2, 3)
    assert "stride" in fails(capsys, "predict", images, *common, "--stride", 8)
    assert "--device abacus" in fails(capsys, "predict", images, *common, "--device", "abacus")
    assert "--minutes" in fails(capsys, "demo", "--minutes", "0")


def test_debug_shows_the_traceback():
    from fsanet.errors import InputError

    with pytest.raises(InputError):
        cli.main(["trian", "--debug"])


@pytest.mark.parametrize("threads", ["abc", "0", "-2", "1e9", "2,x"])
def test_threads_that_are_no_number(threads, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert f"OMP_NUM_THREADS={threads}: give" in fails(capsys, "eval", "x")
    assert cli.main(["eval", "--help"]) == 0


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        *(("COLUMNS", "0", None), ("COLUMNS", "\u00b2", None), ("COLUMNS", "99999999", None)),
        *(("LINES", "x", None), ("COLUMNS", "120", "120"), ("OMP_NUM_THREADS", "", None)),
        ("OMP_NUM_THREADS", "4,2", "4,2"),
    ],
)
def test_settings_that_are_none_are_left_out(name, value, kept, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("fsanet.cli.demo.run", lambda given: 0)
    assert cli.main(["demo"]) == 0
    assert os.environ.get(name) == kept


def test_names_that_are_none_are_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("fsanet.cli.demo.run", lambda given: os.mkdir("a\0b"))
    assert "holds a null character" in fails(capsys, "demo")
    (tmp_path / "file").touch()
    monkeypatch.setattr("fsanet.cli.demo.run", lambda given: (tmp_path / "file").mkdir())
    assert "file: file exists" in fails(capsys, "demo")


def test_interrupt_is_130(monkeypatch, capsys):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr("fsanet.cli.demo.run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "fsanet: interrupted\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 20 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),  # ulimit -v
    ],
)
def test_out_of_memory_is_one_line(monkeypatch, capsys, error):
    def exhausted(given):
        raise error

    monkeypatch.setattr("fsanet.cli.demo.run", exhausted)
    assert "does not fit into memory: try a smaller" in fails(capsys, "demo")


@pytest.mark.parametrize("debug", [False, True])
def test_logged_errors_are_one_line(debug):
    script = (
        "import logging; from fsanet.cli.main import silence_libraries\n"
        f"silence_libraries({debug})\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('other').exception('two\\nlines')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ("Traceback" in done.stderr) == debug
    if not debug:
        assert done.stderr == "fsanet: warning: other: two lines\n"


def test_warnings_are_one_line_that_needs_no_code(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings(record=True) as caught:  # restores the filters, too
        warnings.simplefilter("always")
        cli.silence_libraries()
        check_batch(SimpleNamespace(batch_size=8, accumulate=1), 8, 8, 0.01)
        warnings.warn("not ours", stacklevel=1)
    ours, other = (
        warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in caught
    )
    assert ours.startswith("fsanet: warning: a step takes 64 images")
    assert ours.count("\n") == 1
    assert other == "fsanet: warning: not ours\n"


def page_faults(environment):
    """Pages that the system clears for blocks of the same sizes as those before."""
    code = """
import resource, numpy
from fsanet.cli.main import reuse_freed_memory
reuse_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        numpy.ones(2**23), numpy.ones(2**22)  # 64 and 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_reused():
    as_it_comes = {"MALLOC_PERTURB_": "0"}  # what the user sets stays
    assert page_faults({}) < page_faults(as_it_comes) / 10
