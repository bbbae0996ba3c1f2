"""An `.onnx` file as `fsanet export` writes them, of a network that is one convolution."""

import json

import numpy as np

WEIGHTS = np.array(  # (class, channel), such that no two classes have the same score
    [[2.013, -1.371, 0.517], [-1.117, 2.931, 0.029], [0.133, 0.219, 1.077]], np.float32
)
FACTS = {
    "fsanet": "0.2.0",
    "network": "FsaNet",
    "classes": ["sky", "road", "tree"],
    "palette": [[0, 0, 0], [255, 0, 0], [0, 255, 0]],
    "input": "float32 0..1",
    "output": "logits",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.2, 0.2],
    "bgr": False,
}


def onnx_file(path, *, size=("height", "width"), change=lambda model: None, **facts):
    """Logits are a 1x1 convolution of the image; exactly what `FACTS` with ``facts`` says."""
    import onnx

    facts = FACTS | facts
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    pixels, ids = facts["input"].startswith("uint8"), facts["output"] == "class ids"
    kind = onnx.TensorProto.UINT8 if pixels else onnx.TensorProto.FLOAT
    shape = ["batch", *size, 3] if pixels else ["batch", 3, *size]
    nodes = []
    if pixels:
        nodes += [
            node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2]),
            node("Cast", ["turned"], ["cast"], to=onnx.TensorProto.FLOAT),
            node("Div", ["cast", "255"], ["x"]),
        ]
    last = "scores" if ids else "logits"
    nodes.append(node("Conv", ["x" if pixels else "image", "weights"], [last]))
    if ids:
        nodes += [
            node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
            node("Cast", ["best"], ["classes"], to=onnx.TensorProto.UINT8),
        ]
    output = tensor("classes", onnx.TensorProto.UINT8, ["batch", *size])
    if not ids:
        output = tensor("logits", onnx.TensorProto.FLOAT, ["batch", 3, *size])
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [tensor("image", kind, shape)],
        [output],
        [
            onnx.numpy_helper.from_array(WEIGHTS[:, :, None, None], "weights"),
            onnx.numpy_helper.from_array(np.array(255, np.float32), "255"),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=name, value=text)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path
