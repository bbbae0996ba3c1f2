import json
import zipfile

import pytest
import safetensors.torch
import torch
from support.published_networks import (
    FULL,
    THIN,
    Published,
    ccnet_shapes,
    mmseg_shapes,
    random_state,
)

from fsanet import FsaNet
from fsanet.convert.checkpoints import convert_checkpoint, convert_state
from fsanet.data.datasets import label_set
from fsanet.errors import InputError

# 71 rows: the map before the max-pooling has 36, so that rounding up or down differs.
SIZE = (71, 93)
SHALLOW = {**THIN, "blocks": (3, 4, 6, 3)}


def ccnet(sizes=SHALLOW, **options):
    return random_state(ccnet_shapes(**sizes, stem=4, **options))


def mmseg(sizes=SHALLOW, **options):
    return random_state(mmseg_shapes(**sizes, stem=8, **options))


def images(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, *SIZE, generator=generator, dtype=torch.float64)


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@torch.no_grad()
def assert_same_function(state, source, *, band, **options):
    network = convert_state(state, source, classes="cityscapes", **options)
    arguments = network.arguments
    published = Published(
        state,
        source,
        band=band,
        **{name: arguments[name] for name in ("similarity", "recurrence", "align_corners")},
    )
    expected = published(images())
    got = network.build().forward_with_auxiliary(images())
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == (2, 19, *SIZE)
        assert relative_error(ours, theirs) < 1e-10
    return network, expected


@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
def test_ccnet_computes_the_published_function(similarity, recurrence):
    assert_same_function(
        ccnet(THIN), "ccnet", band=(0, 3, 0, 3), k=3, similarity=similarity, recurrence=recurrence
    )


@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
def test_mmseg_head_computes_the_published_function(similarity, recurrence):
    assert_same_function(
        mmseg(THIN), "mmseg", band=(0, 3, 0, 3), k=3, similarity=similarity, recurrence=recurrence
    )


@pytest.mark.parametrize(
    ("k", "band", "similarity"),
    [
        (None, None, "softmax"),
        (None, None, "linear"),
        (4, (0, 4, 0, 4), "softmax"),
        (((1, 4), (0, 5)), (1, 4, 0, 5), "softmax"),
    ],
)
def test_mmseg_own_networks_compute_the_published_function(k, band, similarity):
    options = {} if similarity == "softmax" else {"similarity": similarity}
    network, _ = assert_same_function(
        mmseg(own=True, biases=True), "mmseg", band=band, k=k, align_corners=False, **options
    )
    assert network.arguments["attention"] == ("spatial" if k is None else "frequency")
    assert network.arguments["similarity"] == similarity
    assert network.arguments["qkv_bias"]


@torch.no_grad()
def test_the_options_of_the_encoder_are_felt():
    """Each of CCNet's two ways changes the output: the agreement above is not for free."""
    state = ccnet()
    network, expected = assert_same_function(state, "ccnet", band=(0, 8, 0, 8))
    for name, value in (("ceil_pool", False), ("contract_dilation", True)):
        other = FsaNet(**{**network.arguments, name: value}).double().eval()
        other.load_state_dict(network.weights)
        assert relative_error(other(images()), expected[0]) > 1e-3


@torch.no_grad()
def test_dropped_biases_are_named_and_gone():
    state = mmseg(own=True, biases=True)
    network = convert_state(state, "mmseg", classes="cityscapes", drop_biases=True, k=3)
    biases = [f"decode_head.nl_block.{name}.conv.bias" for name in ("g", "theta", "phi")]
    assert sorted(network.left_out) == sorted(biases)
    without = {name: value for name, value in state.items() if name not in biases}
    options = {"similarity": "softmax", "recurrence": 1, "align_corners": True}
    published = Published(without, "mmseg", band=(0, 3, 0, 3), **options)
    assert relative_error(network.build()(images()), published(images())[0]) < 1e-10
    with pytest.raises(InputError, match="no biases"):
        convert_state(without, "mmseg", classes="cityscapes", drop_biases=True)


@pytest.mark.parametrize(
    ("source", "shapes", "encoder", "auxiliary"),
    [
        ("ccnet", ccnet_shapes(**FULL), "resnet101s", 512),
        ("mmseg", mmseg_shapes(**FULL, classes=150), "resnet101c", 256),
        ("mmseg", mmseg_shapes(**FULL, own=True, biases=True, classes=21), "resnet101c", 256),
        (
            "mmseg",
            mmseg_shapes((3, 4, 6, 3), FULL["planes"], own=True, biases=True),
            "resnet50c",
            256,
        ),
    ],
)
def test_full_size_names_and_shapes(source, shapes, encoder, auxiliary):
    """The networks as published, on a device without memory: every weight finds one place."""
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    classes = (
        [str(i) for i in range(shapes[min(n for n in shapes if "conv_seg.b" in n)][0])]
        if (source == "mmseg")
        else None
    )
    network = convert_state(state, source, classes=classes)
    arguments = network.arguments
    assert arguments["encoder"] == encoder
    assert "encoder_options" not in arguments
    assert (arguments["head_channels"], arguments["aux_channels"]) == (512, auxiliary)
    folded = 1 if source == "ccnet" else 0  # the bias that batch norm takes off
    assert len(network.weights) == len(state) - folded
    used = sum(value.numel() for name, value in network.weights.items())
    total = sum(value.numel() for name, value in state.items())
    assert used == total - folded * 512


def broken(state, case):
    state = dict(state)
    if case == "missing":
        del state["layer3.5.conv2.weight"], state["head.fsa.gamma"]
    elif case == "unexpected":
        state["head.cca.gamma"] = torch.zeros(1)
    elif case == "shape":
        state["head.convb.0.weight"] = torch.zeros(16, 15, 3, 3)
    elif case == "no bias":
        del state["dsn.0.bias"]
    elif case == "depth":
        state = {name: value for name, value in state.items() if "layer3.5." not in name}
    else:
        state = {name: value for name, value in state.items() if name != "head.conva.0.weight"}
    return state


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("missing", ["2 missing: layer3.5.conv2.weight, head.fsa.gamma"]),
        ("unexpected", ["1 unexpected: head.cca.gamma"]),
        ("shape", ["1 of another shape: head.convb.0.weight (16, 15, 3, 3) for (16, 16, 3, 3)"]),
        ("no bias", ["1 missing: dsn.0.bias"]),
        ("depth", ["[3, 4, 5, 3] blocks", "ResNet-50, 101 and 152"]),
        ("size", ["head.conva.0.weight", "--from ccnet"]),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(case, parts, tmp_path):
    file = tmp_path / "network.pth"
    torch.save(broken(ccnet(), case), file)
    with pytest.raises(InputError) as raised:
        convert_checkpoint(file, "ccnet")
    message = str(raised.value)
    assert "\n" not in message
    for part in [str(file), *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.complex64), "is torch.complex64; expected float16"),
        (lambda value: value.to(torch.int8), "is torch.int8; expected float16"),
        (lambda value: value.to(torch.int64), "torch.int64 for torch.float32"),
        (lambda value: value * float("nan"), "nan or infinite values in the weight"),
    ],
)
def test_values_that_no_network_can_have(change, message, tmp_path):
    """What is converted can be opened again."""
    file = tmp_path / "network.pth"
    state = ccnet()
    torch.save({name: change(value.float()) for name, value in state.items()}, file)
    with pytest.raises(InputError, match=message) as raised:
        convert_checkpoint(file, "ccnet")
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize("palette", [7, "abc", torch.zeros(19, 3), {"a": 1}, [[1, 2]] * 19])
def test_a_palette_that_is_none(palette):
    with pytest.raises(InputError, match=r"palette|PALETTE"):
        convert_state(ccnet(), "ccnet", meta={"CLASSES": ["a"] * 19, "PALETTE": palette})


def test_the_other_lineage_is_recognised():
    with pytest.raises(InputError, match="looks like --from mmseg"):
        convert_state(mmseg(), "ccnet")
    with pytest.raises(InputError, match="looks like --from ccnet"):
        convert_state(ccnet(), "mmseg")


def test_every_weight_is_used_or_missed():
    """Take any single one away: it is asked for by its name. Only batch counters may lack."""
    state = ccnet()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(state), generator=generator)[:12].tolist()
    for name in [list(state)[i] for i in chosen] + ["bn3.running_var", "head.fsa.out_bias"]:
        less = {key: value for key, value in state.items() if key != name}
        if name.endswith("num_batches_tracked"):
            assert convert_state(less, "ccnet").weights.keys() == (
                convert_state(state, "ccnet").weights.keys()
            )
            continue
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            convert_state(less, "ccnet")


def test_batch_counters_are_kept_and_may_lack():
    state = ccnet()
    assert convert_state(state, "ccnet").weights["encoder.bn1.num_batches_tracked"] == 80000
    old = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    network = convert_state(old, "ccnet")
    assert network.weights["encoder.bn1.num_batches_tracked"] == 0
    assert network.build()(images()).isfinite().all()


def test_left_out_weights_are_named():
    state = ccnet() | {"bn1._running_iter": torch.ones(1), "bn2._running_iter": torch.ones(1)}
    with pytest.raises(InputError, match=r"2 unexpected: bn1\._running_iter, bn2\."):
        convert_state(state, "ccnet")
    network = convert_state(state, "ccnet", leave_out=["*._running_iter"])
    assert network.left_out == ["bn1._running_iter", "bn2._running_iter"]
    with pytest.raises(InputError, match=r"no weight is named 'bn9\.\*'"):
        convert_state(state, "ccnet", leave_out=["bn9.*"])


def test_no_auxiliary_head():
    state = {n: v for n, v in ccnet().items() if not n.startswith("dsn.")}
    model = convert_state(state, "ccnet").build()
    assert model.auxiliary is None


@pytest.mark.parametrize("wrapped", ["state_dict", "model", None])
def test_prefix_and_wrapping(wrapped, tmp_path):
    state = ccnet()
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({wrapped: prefixed} if wrapped else prefixed, tmp_path / "network.pth")
    network = convert_checkpoint(tmp_path / "network.pth", "ccnet")
    plain = convert_state(state, "ccnet")
    for name, value in plain.weights.items():
        assert torch.equal(network.weights[name], value)


def test_safetensors_and_old_files(tmp_path):
    state = ccnet()
    safetensors.torch.save_file(state, tmp_path / "network.safetensors")
    # MMSegmentation's files of 2020 are of the format before zip.
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pth")
    for name in ("network.safetensors", "old.pth"):
        network = convert_checkpoint(tmp_path / name, "ccnet")
        assert network.weights.keys() == convert_state(state, "ccnet").weights.keys()


class Refused:
    """An object of a class that `weights_only` does not know."""


def test_files_that_cannot_be_read(tmp_path):
    torch.save({"state_dict": ccnet(), "meta": {"hooks": Refused()}}, tmp_path / "objects.pth")
    with pytest.raises(InputError, match=r"objects\.pth: holds .*Refused.*docs/checkpoints\.md"):
        convert_checkpoint(tmp_path / "objects.pth", "ccnet")
    with pytest.raises(InputError, match="no such file"):
        convert_checkpoint(tmp_path / "none.pth", "ccnet")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights in here")
        with pytest.raises(InputError, match=name):
            convert_checkpoint(tmp_path / name, "ccnet")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list"):
        convert_checkpoint(tmp_path / "list.pth", "ccnet")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    with pytest.raises(InputError, match="epoch is not a tensor"):
        convert_checkpoint(tmp_path / "number.pth", "ccnet")


def test_normalisation_is_the_published_one():
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (3, 5, 7), generator=generator, dtype=torch.uint8)
    red, green, blue = image.double()
    bgr = torch.stack([blue - 104.00698793, green - 116.66876762, red - 122.67891434])
    rgb = torch.stack(
        [(red - 123.675) / 58.395, (green - 116.28) / 57.12, (blue - 103.53) / 57.375]
    )
    for state, source, expected in ((ccnet(), "ccnet", bgr), (mmseg(), "mmseg", rgb)):
        model = convert_state(state, source, classes="cityscapes").build()
        torch.testing.assert_close(model.normalise(image.double() / 255), expected)
        torch.testing.assert_close(model.normalise(image), expected.float(), rtol=1e-4, atol=1e-4)


def test_defaults_are_the_papers():
    def of(state, source, classes):
        network = convert_state(state, source, classes=classes)
        return {
            name: network.arguments.get(name)
            for name in ("attention", "similarity", "k", "recurrence", "align_corners")
        }, network.assumed

    expected = {"attention": "frequency", "similarity": "dot", "k": 8, "recurrence": 2}
    got, assumed = of(ccnet(), "ccnet", None)
    assert got == expected | {"align_corners": True}
    assert assumed == {name: value for name, value in got.items() if name != "attention"}
    got, _ = of(mmseg(classes=150), "mmseg", "ade20k")
    assert got == expected | {"k": 5, "align_corners": False}
    got, assumed = of(mmseg(own=True, classes=21), "mmseg", "voc")
    expected = {"attention": "spatial", "similarity": "softmax", "k": None, "recurrence": 1}
    assert got == expected | {"align_corners": False}
    assert "k" not in assumed


def test_classes_and_palette(tmp_path):
    state = mmseg(own=True, classes=3)
    old = {"CLASSES": ["a", "bed ", "c"], "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    new = {"dataset_meta": {"classes": ("a", "bed", "c"), "palette": old["PALETTE"]}}
    for meta in (old, new):
        torch.save({"state_dict": state, "meta": meta}, tmp_path / "network.pth")
        model = convert_checkpoint(tmp_path / "network.pth", "mmseg").build()
        assert model.classes == ("a", "bed", "c")
        assert model.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    with pytest.raises(InputError, match="does not name its 3 classes"):
        convert_state(state, "mmseg")
    with pytest.raises(InputError, match="has 3 classes, but voc has 21"):
        convert_state(state, "mmseg", classes="voc")
    with pytest.raises(InputError, match="has 3 classes, but its meta has 2"):
        convert_state(state, "mmseg", meta={"CLASSES": ["a", "b"]})
    with pytest.raises(InputError, match="use cityscapes, ade20k, voc"):
        convert_state(state, "mmseg", classes="coco")


@torch.no_grad()
def test_a_saved_network_takes_another_band(tmp_path):
    """The study without retraining: one folder, regular attention, and overrides."""
    state = random_state(
        mmseg_shapes(**SHALLOW, stem=8, own=True, biases=True), dtype=torch.float32
    )
    convert_state(state, "mmseg", classes="cityscapes").build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["classes"] == list(label_set("cityscapes").classes)
    assert config["palette"][0] == [128, 64, 128]
    double = {n: v.double() if v.is_floating_point() else v for n, v in state.items()}
    options = {"similarity": "softmax", "recurrence": 1, "align_corners": True}
    for overrides, band in (
        ({}, None),
        ({"attention": "frequency", "k": 2}, (0, 2, 0, 2)),
    ):
        model = FsaNet.from_pretrained(tmp_path, **overrides).double().eval()
        expected = Published(double, "mmseg", band=band, **options)(images())[0]
        assert relative_error(model(images()), expected) < 1e-10


@torch.no_grad()
def test_saved_ccnet_network_is_the_same_function(tmp_path):
    """Its pooling and dilation are in the config."""
    state = random_state(ccnet_shapes(**SHALLOW, stem=4), dtype=torch.float32)
    convert_state(state, "ccnet").build().save_pretrained(tmp_path)
    model = FsaNet.from_pretrained(tmp_path).double().eval()
    double = {n: v.double() if v.is_floating_point() else v for n, v in state.items()}
    options = {"similarity": "dot", "recurrence": 2, "align_corners": True}
    expected = Published(double, "ccnet", band=(0, 8, 0, 8), **options)(images())[0]
    assert relative_error(model(images()), expected) < 1e-10
