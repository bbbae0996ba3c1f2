"""A saved folder is data: no code of it runs, nothing else is read, nothing is fetched."""

import builtins
import json
import os
import shutil
import socket
import struct
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from fsanet import FsaNet, convert_attention, load_model
from fsanet.convert import save_converted
from fsanet.convert.saved import CONVERSION_FILE
from fsanet.errors import InputError
from fsanet.models import MaskRcnnFsa, SegformerFsa

HUGE = 10**11
CODE = """
from pathlib import Path
from transformers import PretrainedConfig
Path({canary!r}).touch()
class Config(PretrainedConfig):
    model_type = "evil"
"""


class Attack:
    """Creates a file when it is unpickled by anything but a reader of plain values."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """Someone who answers yes to every question; a file and connections that must not be made."""
    file, tried = tmp_path / "canary", []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield file
    assert not file.exists()
    assert not tried


def change(folder, **config):
    """A saved network whose config.json is changed."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def fsanet(**options):
    torch.manual_seed(0)
    small = {"num_classes": 3, "head_channels": 8, "aux_channels": 0}
    return FsaNet("test_resnet", **{**small, **options})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    fsanet().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "folder"))


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segformer")
    SegformerFsa(num_classes=2).save_pretrained(folder)
    return folder


@pytest.fixture
def trap(tmp_path, canary):
    """A folder in the format of transformers with code of its own, and weights with code."""
    pytest.importorskip("transformers")
    folder = tmp_path / "trap"
    folder.mkdir()
    mapped = {"AutoConfig": "evil.Config", "AutoModel": "evil.Config"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": mapped}))
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    torch.save({"w": torch.zeros(1), "x": Attack(canary)}, folder / "pytorch_model.bin")
    return folder


_watched: list[tuple[str, list[str]]] = []


def _note(event, arguments):
    for folder, opened in _watched if event == "open" else ():
        if isinstance(arguments[0], str) and os.path.realpath(arguments[0]).startswith(folder):
            opened.append(arguments[0])


@contextmanager
def watched(folder):
    """The files that Python opens below a folder."""
    _watch()
    _watched.append((str(folder.resolve()), opened := []))
    yield opened
    _watched.clear()


@cache
def _watch():
    sys.addaudithook(_note)  # for good: Python removes none


def refused(source, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load_model(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- code, paths, URLs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("folder", {"pretrained": True}),
        ("folder", {"encoder_weights": "TRAP/pytorch_model.bin"}),
        ("folder", {"encoder_weights": "https://127.0.0.1/weights.pth"}),
        ("detector", {"weights": "TRAP/pytorch_model.bin", "replace_predictors": True}),
        ("detector", {"backbone_weights": "TRAP/pytorch_model.bin"}),
        ("segformer", {"pretrained": "TRAP"}),
        ("segformer", {"pretrained": "owner/name"}),
    ],
)
def test_source_of_initial_weights_is_not_followed(request, tmp_path, trap, network, options):
    place = Path(shutil.copytree(request.getfixturevalue(network), tmp_path / "place"))
    change(place, **json.loads(json.dumps(options).replace("TRAP", str(trap))))
    with watched(trap) as opened:
        load_model(place)
    assert not opened


def test_transformers_code_is_not_run(trap):
    refused(trap, "holds a network of type evil, not segformer")
    change(trap, model_type="segformer", architectures=["Evil"], trust_remote_code=True)
    change(trap, _attn_implementation="owner/kernel", attn_implementation="owner/kernel")
    change(trap, quantization_config={"quant_method": "evil"}, transformers_weights="../x.bin")
    refused(trap, r"holds [\w.]+ besides its weights")
    for source in (trap, str(trap)):
        with pytest.raises(InputError):
            SegformerFsa(num_classes=2, pretrained=str(source))


@pytest.mark.parametrize(
    "options",
    [
        {"cache_dir": "CANARY", "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x.pth"}},
        {"pretrained_cfg_overlay": {"file": "TRAP"}},
        {"pretrained_cfg_overlay": {"hf_hub_id": "owner/name"}},
        {"pretrained_cfg": {"hf_hub_id": "owner/name", "custom_load": True}},
        {"pretrained_cfg": "a1_in1k"},
        {"checkpoint_path": "TRAP"},
        {"pretrained": True},
        {"pretrained_model_args": {}},
        {"pretrained_strict": False},
        {"pretrained_filter_fn": "eval"},
        {"features_only": False},
        {"feature_cls": "fx"},
        {"kwargs_filter": ["in_chans"]},
        {"pruned": True},
        {"scriptable": True},
        {"model_name": "resnet18"},
        {"in_chans": 4},
        {"output_stride": 4},
        {"device": "cuda"},
        {"self": 1},
    ],
)
def test_encoder_options_name_no_file_and_no_source(folder, trap, canary, options):
    text = json.dumps(options).replace("CANARY", str(canary))
    text = text.replace("TRAP", str(trap / "pytorch_model.bin"))
    with watched(trap) as opened:
        for pretrained in (False, True):
            change(folder, pretrained=pretrained, encoder_options=json.loads(text))
            refused(folder, "encoder_options is|has no option")
    assert not opened


@pytest.mark.parametrize(
    "encoder", ["hf-hub:timm/resnet18", "hf_hub:x/y", "local-dir:TRAP", "TRAP", "../x", "", "a/b"]
)
def test_encoder_is_a_name_of_timm(folder, trap, encoder):
    refused(change(folder, encoder=encoder.replace("TRAP", str(trap))), "is not a timm model")


@pytest.mark.parametrize(
    "key", ["trust_remote_code", "auto_map", "_hub_mixin_config", "config", "self", "cls", "token"]
)
def test_unknown_key_is_named(folder, key):
    refused(change(folder, **{key: {"AutoModel": "evil.Model"}}), f"unknown key '{key}'")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", CONVERSION_FILE])
def test_files_outside_the_folder_are_not_read(folder, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    refused(folder, rf"{name}: a link to a file outside its folder")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder, rf"{name}: not a regular file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, rf"{name}: not a regular file")
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    refused(folder, rf"{name}: not a regular file")


def test_run_folder_does_not_lead_to_another(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(folder)
    refused(tmp_path / "run", "a link to another folder")


def test_snapshot_in_the_cache_of_the_hub(folder, tmp_path):
    """Its files are links to a folder beside the snapshots; a hub id finds it offline."""
    cached = tmp_path / "cache" / "models--owner--name"
    snapshot = cached / "snapshots" / ("a" * 40)
    for part in (snapshot, cached / "blobs", cached / "refs"):
        part.mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder / file, cached / "blobs" / f"0{file}")
        (snapshot / file).symlink_to(f"../../blobs/0{file}")
    expected = load_model(folder).state_dict()
    offline = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    for found in (load_model(snapshot), FsaNet.from_pretrained("owner/name", **offline)):
        assert all(torch.equal(found.state_dict()[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_channels", "3", "expected whole number"),
        ("num_channels", HUGE, "at most"),
        ("num_channels", 5, "another architecture"),
        ("num_labels", HUGE, "at most"),
        ("id2label", {"0": "a", "5": "b"}, "other keys than 0 to 1"),
        ("id2label", [1], "expected an object of text"),
        ("hidden_sizes", "x", "no published size"),
        ("mlp_ratios", [HUGE] * 4, "no published size"),
        ("hidden_act", "os.system", "no published size"),
        ("model_type", "bert\n", r"of type bert\\n, not segformer"),
        ("model_type", ["segformer"], "not segformer"),
    ],
)
def test_value_that_no_segformer_of_transformers_has(tmp_path, plain, key, value, message):
    folder = Path(shutil.copytree(plain, tmp_path / "folder"))
    refused(change(folder, **{key: value}), message)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_transformers_are_checked(tmp_path, plain, canary, name):
    folder = Path(shutil.copytree(plain, tmp_path / "folder"))
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    file.unlink()
    save = torch.save if name.endswith(".bin") else safetensors.torch.save_file
    save(state, folder / name)
    load_model(folder)
    weight = next(key for key in state if key.endswith("classifier.weight"))
    save(state | {weight: state[weight] * float("nan")}, folder / name)
    refused(folder, "nan or infinite values")
    torch.save(state | {"x": Attack(canary)}, folder / name)
    refused(folder, "besides its weights|damaged")
    (folder / name).unlink()
    (folder / name).symlink_to(plain / "model.safetensors")
    refused(folder, "a link to a file outside")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("plain")
    config = transformers.SegformerConfig(num_labels=3)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return folder


# --- config.json ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (
            b'{"num_classes": 3, "encoder_options": {"a": ' + b"[" * 300 + b"]" * 300 + b"}}",
            "encoder_options is nested too deeply",
        ),
        (b'{"dropout": NaN}', "holds nan, infinity"),
        (b'{"dropout": 1e999}', "holds nan, infinity"),
        (b'{"num_classes": ' + b"9" * 5000 + b"}", "is not JSON"),
        (rb'{"classes": ["\ud800"]}', "no Unicode"),
        (b'"text"', "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b" " * (1 << 20) + b"{}", "at most 1 MB is read"),
        (b"{}", "num_classes is missing"),
        (b'{"network": ["FsaNet"]}', "which this version does not know"),
        (b'{"network": "FsaNet\\n\\u001b[31m"}', r"FsaNet\\n\\x1b\[31m'"),
    ],
    ids=range(15),
)
def test_file_that_is_no_config(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(folder, rf"config\.json.*{message}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_classes", "3", "expected whole number"),
        ("num_classes", True, "expected whole number"),
        ("num_classes", 3.0, "expected whole number"),
        ("num_classes", None, "expected whole number"),
        ("num_classes", HUGE, "at most"),
        ("num_classes", -1, "num_classes=-1"),
        ("bgr", 1, "expected true or false"),
        ("dropout", "0.1", "expected number"),
        ("dropout", 2.0, "cannot be built"),
        ("encoder", ["resnet18"], "expected text"),
        ("attention", "fourier", "expected frequency, spatial or null"),
        ("attention", ["frequency"], "expected frequency"),
        ("similarity", {}, "expected"),
        ("block", 3, "expected"),
        ("k", "8", "expected"),
        ("k", True, "expected"),
        ("k", HUGE, "at most"),
        ("k", [[0, HUGE], [0, 1]], "at most"),
        ("k", [[[[1]]]], "expected"),
        ("k", 0, "k=0"),
        ("k", [8] * 70_000, "expected"),
        ("recurrence", 101, "at most 100"),
        ("recurrence", HUGE, "at most"),
        ("head_channels", HUGE, "at most"),
        ("head_channels", 60_000, "larger network than its weights"),
        ("aux_channels", 60_000, "larger network than its weights"),
        ("in_channels", HUGE, "at most"),
        ("classes", "abc", "expected"),
        ("classes", [1, 2, 3], "expected"),
        ("classes", ["a" * 2_000, "b", "c"], "expected"),
        ("palette", [[0, 0, 300]] * 3, "palette"),
        ("palette", [[0.5, 0, 0]] * 3, "expected"),
        ("std", [0.0, 1.0, 1.0], "std above 0"),
        ("std", [1e-30, 1.0, 1.0], "std=1e-30: must be at least"),
        ("mean", [1e300, 0.0, 0.0], "mean=1e.300: must be at most"),
        ("mean", ["a", "b", "c"], "expected"),
        ("encoder", "resnet152", "larger network|another architecture"),
        ("encoder_options", [], "expected"),
        ("encoder_options", {"channels": [HUGE] * 4}, "at most"),
        ("encoder_options", {"channels": [60_000] * 4}, "larger network|cannot be built"),
        ("encoder_options", {"layers": [60_000] * 4}, "larger network"),
        ("encoder_options", {"layers": [[[1]]]}, "is no number, text, bool or list"),
        ("encoder_options", {"block": "BasicBlock"}, "cannot be built"),
        ("encoder_options", {"act_layer": "__import__('os')"}, "cannot be built"),
        ("encoder_options", {"norm_layer": "os.system"}, "cannot be built"),
        ("encoder_options", {"zero_init_last": "x" * 5_000}, "expected"),
    ],
)
def test_value_that_no_network_has(folder, key, value, message):
    message = refused(change(folder, **{key: value}), message)
    assert len(message) < 600


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("min_size", HUGE, "at most"),
        ("min_size", 0, "at least 1"),
        ("min_size", 2_049, "at most 2048"),
        ("max_size", 60_000, "at most 4096"),
        ("positions", ["p4", "p99"], "expected"),
        ("anchor_sizes", [1, 2, 3, 4, HUGE], "at most"),
        ("trainable_stages", -1, "trainable_stages=-1"),
        ("category_ids", ["a", "b"], "expected"),
        ("detector_options", {"box_roi_pool": 1}, "no option 'box_roi_pool'"),
        ("detector_options", {"rpn_nms_thresh": "0.5"}, "give a number"),
        ("detector_options", {"box_detections_per_img": 1_001}, "at most 1000"),
        ("detector_options", {"box_detections_per_img": -1}, "must be at least 1"),
        ("detector_options", {"rpn_pre_nms_top_n_test": 0.5}, "must be a whole number"),
        ("detector_options", {"box_score_thresh": None}, "give a number"),
        ("backbone_options", {"checkpoint_path": "x"}, "has no option"),
        ("backbone", "resnet101", "larger network|another architecture"),
        ("backbone", "__init__", "not a timm model"),
        ("norm_eps", "x", "expected"),
        ("fpn_channels", 60_000, "larger network"),
    ],
)
def test_value_that_no_detector_has(tmp_path, detector, key, value, message):
    folder = Path(shutil.copytree(detector, tmp_path / "folder"))
    refused(change(folder, **{key: value}), message)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    small = {"fpn_channels": 8, "box_channels": 8, "mask_channels": 8, "min_size": 64}
    MaskRcnnFsa(
        "test_resnet", num_classes=2, positions=("p4",), max_size=64, **small
    ).save_pretrained(folder)
    return folder


def test_folders_of_older_versions_still_load(folder):
    """They name the source of initial weights."""
    config = json.loads((folder / "config.json").read_text())
    assert not {"pretrained", "encoder_weights"} & config.keys()
    load_model(change(folder, pretrained=False, encoder_weights=None))


def test_network_of_a_user_is_saved_and_opened(tmp_path):
    class Own(FsaNet):
        def __init__(self, **options):
            super().__init__(**options)

    torch.manual_seed(0)
    small = {"num_classes": 3, "head_channels": 8, "aux_channels": 0, "k": [[0, 2], [1, None]]}
    model = Own(encoder="test_resnet", **small)
    model.save_pretrained(tmp_path)
    for again in (Own.from_pretrained(tmp_path), load_model(tmp_path)):
        assert again.head.attention.band == (0, 2, 1, None)
        assert all(torch.equal(v, again.state_dict()[n]) for n, v in model.state_dict().items())


def test_what_cannot_be_opened_is_not_built():
    with pytest.raises(InputError, match="recurrence=101: must be at most 100"):
        fsanet(recurrence=101)
    with pytest.raises(InputError, match="FsaNet: bgr is 1; expected true or false"):
        fsanet(bgr=1)


def test_overrides_are_checked_alike(folder):
    assert load_model(folder, k=((1, 3), (0, None))).head.attention.band == (1, 3, 0, None)
    refused(folder, "unknown key 'colour'", colour=3)
    refused(folder, "unknown key 'encodr'; did you mean 'encoder'", encodr="resnet18")
    with pytest.raises(InputError, match="holds a FsaNet, not a SegformerFsa; use load_model"):
        SegformerFsa.from_pretrained(folder)


# --- model.safetensors ------------------------------------------------------------------


def write_header(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(shape, start, stop, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x08\x00"),
        lambda file: file.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        lambda file: file.write_bytes(struct.pack("<Q", 2**63 + 5)),
        lambda file: file.write_bytes(file.read_bytes()[:40]),
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(file.read_bytes() + b"more"),
        lambda file: write_header(file, b"\xff" * 50),
        lambda file: write_header(file, b"[" * 100_000),
        lambda file: write_header(file, []),
        lambda file: write_header(file, {"w": entry([2], 0, 2**50)}, b"\0" * 8),
        lambda file: write_header(file, {"w": entry([2**40], 0, 8)}, b"\0" * 8),
        lambda file: write_header(file, {"w": entry([-1], 0, 8)}, b"\0" * 8),
        lambda file: write_header(
            file, {"v": entry([2], 0, 8), "w": entry([2], 0, 8)}, b"\0" * 8
        ),  # overlapping
        lambda file: write_header(file, {"w": entry([1], 0, 4, "F99")}, b"\0" * 4),
        lambda file: torch.save({"w": torch.zeros(1)}, file),
    ],
    ids=range(16),
)
def test_weights_that_lie(folder, write):
    write(folder / "model.safetensors")
    refused(folder, r"model\.safetensors: (damaged|the file is empty)")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s, n: s.pop(n), "1 missing, such as head.classify.weight"),
        (lambda s, n: s.update({"a\nb": s[n].clone()}), r"1 not of this network, such as a\\nb"),
        (lambda s, n: s.update({n: s[n][:, :1].contiguous()}), "1 of another shape"),
        (lambda s, n: s.update({n: torch.zeros(0)}), "1 of another shape"),
        (lambda s, n: s.update({n: s[n].to(torch.int64)}), "1 of another type"),
        (lambda s, n: s.update({n: s[n].to(torch.float8_e5m2)}), "1 of another type"),
        (lambda s, n: s.update({n: s[n] * float("nan")}), "nan or infinite values in .*classify"),
        (lambda s, n: s.update({n: s[n] / 0}), "nan or infinite values"),
        (lambda s, n: s.clear(), "not a state_dict"),
        (lambda s, n: s.clear() or s.update(x=torch.zeros(3)), "larger network|missing"),
    ],
    ids=range(10),
)
def test_weights_that_do_not_fit(folder, edit, message):
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    edit(state, "head.classify.weight")
    safetensors.torch.save_file(state, file)
    refused(folder, message)


def test_half_precision_is_read_as_single(folder):
    file = folder / "model.safetensors"
    state = {
        n: v.half() if v.is_floating_point() else v
        for n, v in load_model(folder).state_dict().items()
    }
    safetensors.torch.save_file(state, file)
    found = load_model(folder).state_dict()
    assert all(
        torch.equal(found[name], value.to(found[name].dtype)) for name, value in state.items()
    )
    assert {v.dtype for v in found.values()} == {torch.float32, torch.int64}


def test_no_memory_is_taken_before_sizes_are_known(folder, monkeypatch):
    """A parameter larger than all weights is never filled."""
    filled = []
    original = torch.nn.init.kaiming_uniform_
    monkeypatch.setattr(
        torch.nn.init,
        "kaiming_uniform_",
        lambda tensor, *a, **k: filled.append(tensor.device.type) or original(tensor, *a, **k),
    )
    load_model(folder)
    assert set(filled) == {"meta"}


# --- conversions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format=True) or c.update(format="1"), "has a format"),
        (lambda c: c.update(modules={}), "lists no modules"),
        (lambda c: c.update(modules=c["modules"] * 2_000), "or more than"),
        (lambda c: c.update(modules=["x"]), r"modules\[0\] is no object"),
        (lambda c: c["modules"][0].update(name=3), r"modules\[0\]: name is 3; expected text"),
        (lambda c: c["modules"][0].update(name="*"), r"matches no attention"),
        (lambda c: c["modules"][0].update(k=10**11), "at most"),
        (lambda c: c["modules"][0].update(route="/etc"), "use 'tokens' or 'grid'"),
        (lambda c: c["modules"][0].update(similarity="cosine"), "similarity='cosine'"),
        (lambda c: c["modules"][0].update(grid=10**11), "at most"),
        (lambda c: c["modules"][0].update(grid=[1, 2, 3]), "expected"),
        (lambda c: c["modules"][0].update(kinds=["evil"]), "unknown key 'kinds'"),
    ],
    ids=range(12),
)
def test_conversion_that_cannot_be(tmp_path, edit, message):
    model = fsanet(attention="spatial", similarity="softmax")
    save_converted(convert_attention(model, k=2), tmp_path / "folder")
    file = tmp_path / "folder" / CONVERSION_FILE
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    refused(tmp_path / "folder", f"{CONVERSION_FILE}: .*{message}")


# --- names that are no folder -----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "~",
        "~/model",
        "model",
        "a/b/c",
        "./a/b",
        "/a/b",
        "../a",
        "a//b",
        "a/b\n",
        ".a/b",
        "a\0/b",
    ],
)
def test_name_that_is_neither_folder_nor_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(name, "no such folder, and not a hub id")


def test_hub_that_is_not_needed_or_not_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("owner/name", "owner/name: no such folder, and it is not in the cache of the hub")


# --- weights in every option that takes a file ------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".ckpt", ""])
def test_no_option_runs_what_is_in_a_file(tmp_path, canary, suffix):
    from fsanet.convert.checkpoints import convert_checkpoint

    file = str(tmp_path / f"weights{suffix}")
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hook": Attack(canary)}, file)
    for read in (
        lambda: FsaNet("test_resnet", num_classes=2, encoder_weights=file),
        lambda: MaskRcnnFsa("test_resnet", num_classes=2, backbone_weights=file),
        lambda: MaskRcnnFsa("resnet50", num_classes=2, backbone_weights=file),
        lambda: MaskRcnnFsa("test_resnet", num_classes=2, positions=["p4"], weights=file),
        lambda: convert_checkpoint(file, "ccnet"),
        lambda: convert_checkpoint(file, "mmseg"),
    ):
        with pytest.raises(InputError, match=r"besides its weights|damaged"):
            read()


@pytest.mark.parametrize(
    "command",
    [
        "predict image.png --model GIVEN --out out",
        "eval GIVEN",
        "sweep GIVEN",
        "convert GIVEN --out out",
        "convert GIVEN --from ccnet --out out",
        "convert GIVEN --from mmseg --out out",
        "export GIVEN --out out.onnx",
        "explain image.png --model GIVEN --at 1,1 --out out",
        "serve --model GIVEN",
        "serve --model net --compare GIVEN",
        "train --config demo --init-from GIVEN --out out",
        "train --config demo --model.encoder_weights GIVEN --out out",
        "bench --predict image.png --model GIVEN",
    ],
)
def test_no_command_runs_what_is_in_a_file(tmp_path, canary, monkeypatch, capsys, command):
    """As a file, and as the weights of a folder that is right otherwise."""
    from fsanet.cli.main import main

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("image.png")
    fsanet(classes=["a", "b", "c"]).save_pretrained("net")
    shutil.copytree("net", "given")
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hook": Attack(canary)}, "given.pth")
    for name in ("model.safetensors", "pytorch_model.bin"):
        shutil.copy("given.pth", f"given/{name}")
    for given in ("given", "given.pth"):
        assert main(command.replace("GIVEN", given).split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert given in line


def test_weights_in_the_cache_of_torchvision(tmp_path, canary, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    file.parent.mkdir(parents=True)
    torch.save({"w": Attack(canary)}, file)
    with pytest.raises(InputError, match="besides its weights"):
        MaskRcnnFsa("resnet50", num_classes=2, backbone_weights="ResNet50_Weights.IMAGENET1K_V2")


def test_arrays_of_numpy_are_no_weights(tmp_path):
    np.save(tmp_path / "weights.npy", np.zeros(3), allow_pickle=False)
    with pytest.raises(InputError, match="damaged or not a file of weights"):
        fsanet(encoder_weights=str(tmp_path / "weights.npy"))
