"""`.onnx` files as networks: the same numbers, and files from elsewhere are data."""

import importlib.util
import os
import sys

import numpy as np
import pytest
import torch
from support.onnx_files import FACTS, WEIGHTS, onnx_file

from fsanet import Predictor, load_model
from fsanet.errors import InputError
from fsanet.models.exported import Description, ExportedNetwork

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def need(package):
    """Skip the test without the package; importing openvino here would start its telemetry."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def image(height=50, width=71):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def classes_of(pixels):
    scores = pixels.astype(np.float64) / 255 @ WEIGHTS.T
    return scores.argmax(2)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "facts", [{}, {"input": "uint8 0..255"}, {"input": "uint8 0..255", "output": "class ids"}]
)
def test_predictor(tmp_path, facts, runtime):
    """Images smaller than the file takes, of any size, whole and by windows."""
    need(runtime)
    network = ExportedNetwork(onnx_file(tmp_path / "net.onnx", **facts), runtime)
    for options in ({}, {"window": 32, "stride": 20}, {"flip": True}):
        result = Predictor(network, **options)(image())
        np.testing.assert_array_equal(result.mask.numpy(), classes_of(image()))
    assert result.classes == ("sky", "road", "tree")
    assert result.palette[1] == (255, 0, 0)


def test_confidence_is_that_of_the_logits(tmp_path):
    result = Predictor(load_model(onnx_file(tmp_path / "net.onnx")), confidence=True)(image())
    scores = torch.from_numpy(image() / 255 @ WEIGHTS.T.astype(np.float64))
    expected = scores.softmax(2).amax(2).float()
    torch.testing.assert_close(result.confidence, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_sent_to_the_makers_of_openvino(tmp_path):
    need("openvino")
    ExportedNetwork(onnx_file(tmp_path / "net.onnx"), "openvino")
    assert sys.modules["openvino_telemetry"] is None


def test_nothing_is_sent_to_the_makers_of_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    ExportedNetwork(onnx_file(tmp_path / "net.onnx"))
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_files_of_one_size_take_smaller_images(tmp_path):
    network = load_model(onnx_file(tmp_path / "net.onnx", size=(96, 128)))
    np.testing.assert_array_equal(Predictor(network)(image()).mask.numpy(), classes_of(image()))
    with pytest.raises(InputError, match=r"takes images of 96 x 128 pixels .*and W is 200"):
        Predictor(network)(image(96, 200))
    large = image(130, 200)
    result = Predictor(network, window=(96, 128))(large)
    np.testing.assert_array_equal(result.mask.numpy(), classes_of(large))


def test_the_fingerprint_is_that_of_the_file(tmp_path):
    from fsanet.files import fingerprint

    first = load_model(onnx_file(tmp_path / "a.onnx"))
    same = load_model(onnx_file(tmp_path / "b.onnx"))
    other = load_model(onnx_file(tmp_path / "c.onnx", mean=[0.1, 0.2, 0.3]))
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)


def keep_outside(model):
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../etc/passwd")


def own_operator(model):
    model.graph.node[0].domain = "evil"


def hidden_operator(model):
    """In a branch of an operator of the standard."""
    inner = onnx.helper.make_node("Read", ["a"], ["b"], domain="evil")
    branch = onnx.helper.make_graph([inner], "branch", [], [])
    model.graph.node.append(
        onnx.helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch)
    )


def operator_of_a_library(model):
    """Of a function's domain, but none of the functions."""
    inner = onnx.helper.make_node("Identity", ["x"], ["y"])
    opset = [onnx.helper.make_opsetid("", 18)]
    model.functions.append(
        onnx.helper.make_function("com.microsoft", "Mine", ["x"], ["y"], [inner], opset)
    )
    model.graph.node[0].domain = "com.microsoft"


def function(model):
    inner = onnx.helper.make_node("Identity", ["x"], ["y"])
    opset = [onnx.helper.make_opsetid("", 18)]
    model.functions.append(onnx.helper.make_function("own", "Mine", ["x"], ["y"], [inner], opset))


def endless(model):
    model.graph.node.append(onnx.helper.make_node("Loop", ["trips", "go"], ["x"]))


def sizes(*axes):
    def change(model):
        for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, axes, strict=True):
            axis.dim_value = size

    return change


def two_outputs(model):
    model.graph.output.append(model.graph.output[0])


def no_metadata(model):
    del model.metadata_props[:]


def wrong_rank(model):
    del model.graph.input[0].type.tensor_type.shape.dim[0]


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (keep_outside, {}, "keeps data in another file"),
        (own_operator, {}, "uses Conv of evil, which is not an operator of the ONNX standard"),
        (hidden_operator, {}, "uses Read of evil"),
        (operator_of_a_library, {}, "uses Conv of com.microsoft"),
        (function, {}, "has a function, Mine; fsanet export writes neither loops nor functions"),
        (endless, {}, "has Loop; fsanet export writes neither"),
        (sizes(-3, 3, 64, 64), {}, "axes of"),
        (sizes(1, 3, 16_000, 16_000), {}, "16000x16000 pixels, more than the limit"),
        (sizes(1, 3, 2**20, 64), {}, "expected sizes from 1 to 16384"),
        (None, {"std": []}, r"net\.onnx: mean"),
        (two_outputs, {}, "1 inputs and 2 outputs"),
        (no_metadata, {}, "no metadata of fsanet"),
        (wrong_rank, {}, "3 axes; expected 4"),
        (None, {"classes": []}, "0 classes"),
        (None, {"classes": "sky"}, "metadata 'classes' is not JSON"),
        (None, {"classes": ["sky", 3, "tree"]}, "expected a list of text"),
        (None, {"input": "floats"}, "input is 'floats'"),
        (None, {"palette": [[1, 2]]}, "palette is"),
        (None, {"std": [0, 1, 1]}, "std above 0"),
    ],
)
def test_files_from_elsewhere(tmp_path, change, facts, message):
    file = onnx_file(tmp_path / "net.onnx", change=change or (lambda model: None), **facts)
    with pytest.raises(InputError, match=message) as caught:
        load_model(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.onnx", b"\xff" * 100, "damaged, or not an ONNX file"),
        ("net.onnx", b"", "no metadata of fsanet"),
        ("net.pt2", b"PK", "runs code in it"),
        ("missing.onnx", None, "no such ONNX file"),
    ],
)
def test_what_is_no_network(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / name)


def test_a_file_that_says_something_else_than_it_does(tmp_path):
    names = [f"class {index}" for index in range(4)]
    colours = [[0, 0, 0]] * 4
    file = onnx_file(tmp_path / "net.onnx", classes=names, palette=colours)
    with pytest.raises(InputError, match=r"gives \(1, 3, 64, 71\)"):
        Predictor(load_model(file))(image())
    file = onnx_file(tmp_path / "ids.onnx", output="class ids", classes=["a"], palette=colours[:1])
    with pytest.raises(InputError, match="which has no name"):
        Predictor(load_model(file))(image())


def test_ids_of_any_whole_type(tmp_path):
    def as_uint16(model):
        model.graph.node[-1].attribute[0].i = onnx.TensorProto.UINT16
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT16

    file = onnx_file(tmp_path / "net.onnx", change=as_uint16, output="class ids")
    np.testing.assert_array_equal(Predictor(load_model(file))(image()).mask, classes_of(image()))


def test_what_a_runtime_logs_is_not_printed(tmp_path, capfd):
    def no_groups(model):
        model.graph.node[0].attribute.append(onnx.helper.make_attribute("group", 0))

    network = load_model(onnx_file(tmp_path / "net.onnx", change=no_groups))
    with pytest.raises(InputError, match="onnxruntime: "):
        Predictor(network)(image())
    assert capfd.readouterr().err == ""


def test_options_that_the_file_decides(tmp_path):
    network = load_model(onnx_file(tmp_path / "net.onnx", output="class ids"))
    for option in ("confidence", "entropy"):
        with pytest.raises(InputError, match="gives class ids; export it without --argmax"):
            Predictor(network, **{option: True})
    with pytest.raises(InputError, match="in the precision it was exported in"):
        Predictor(network, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="k cannot be changed"):
        load_model(tmp_path / "net.onnx", k=4)
    with pytest.raises(InputError, match="semantic segmentation"):
        load_model(tmp_path / "net.onnx", task="instances")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    file = onnx_file(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs onnxruntime: pip install 'fsanet\[onnx\]'"):
        load_model(file)


def test_a_description_is_read_as_it_was_written(tmp_path):
    described = Description(**FACTS)
    assert Description.from_metadata(described.as_metadata(), tmp_path) == described
