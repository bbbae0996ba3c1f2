"""An exported network as a network: an ``.onnx`` file that ONNX Runtime or OpenVINO runs.

The file may come from anyone. It is parsed as data first: one file of at most 2 GB, whose weights
are all in it, whose operators are those of the ONNX standard, and whose metadata `fsanet export`
wrote. A file written by ``torch.export`` is never opened, because that would run code in it.

Shapes: B batch, C classes, (H, W) image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsanet.cost.memory import is_out_of_memory
from fsanet.data.images import check_pixels
from fsanet.data.masks import class_palette
from fsanet.errors import InputError, one_line, printable
from fsanet.inputs import open_file
from fsanet.models.saved_folder import check_values
from fsanet.models.saving import check_normalisation

__all__ = [
    "LARGEST",
    "SMALLEST",
    "Description",
    "ExportedNetwork",
    "Runtime",
    "import_extra",
    "read_onnx",
]

Runtime = Literal["onnxruntime", "openvino", "tensorrt"]

#: Height and width from which an exported network takes images.
SMALLEST = 64
#: The largest that it takes, of any axis.
LARGEST = 16_384
_LARGEST_FILE = 2**31 - 1  # bytes; protobuf has no larger messages


@dataclass(frozen=True)
class Description:
    """What an exported file says about itself, in its metadata.

    Attributes:
        fsanet: version of the library that wrote it.
        network: class of the network.
        classes: class names by id.
        palette: (red, green, blue) in 0..255 by id.
        input: what it takes, RGB in both cases. "uint8 0..255": (B, H, W, 3), as image files are
            decoded; "float32 0..1": (B, 3, H, W). The normalisation is part of the graph.
        output: what it gives: "logits", float32 (B, C, H, W), or "class ids", uint8 (B, H, W).
        mean, std: one value per channel, for images in 0..1: the normalisation in the graph.
        bgr: whether the network has its channels in the order blue, green, red, in the graph, too.
    """

    fsanet: str
    network: str
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    input: Literal["uint8 0..255", "float32 0..1"]
    output: Literal["logits", "class ids"]
    mean: Sequence[float]
    std: Sequence[float]
    bgr: bool

    def as_metadata(self) -> dict[str, str]:
        """Texts by name; what is no text is written as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], file: Path) -> Description:
        """Read what `as_metadata` wrote; other entries are ignored.

        Raises:
            InputError: an entry is missing, or has a value that makes no sense.
        """
        if "fsanet" not in metadata:
            raise InputError(
                f"{file}: has no metadata of fsanet, so its classes and what it takes are not "
                "known; give a file that fsanet export wrote"
            )
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = metadata.get(field.name)
            if text is None:
                continue
            is_text = field.name in ("fsanet", "network", "input", "output")
            try:
                values[field.name] = text if is_text else json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file}: metadata '{field.name}' is not JSON") from error
        check_values(values, cls, file)
        found = cls(**values)
        if not 1 <= len(found.classes) <= 256:
            raise InputError(f"{file}: has {len(found.classes)} classes; expected 1 to 256")
        try:
            class_palette(found.palette, len(found.classes))
            check_normalisation(found.mean, found.std, 3)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        return found


class ExportedNetwork(nn.Module):
    """A network in an ``.onnx`` file, run by another library on the CPU.

    It has what `fsanet.Predictor` and `fsanet.train.evaluate` need of a network. Images are padded
    with the mean colour to the smallest size that the file takes.

    Args:
        file: written by `fsanet.predict.export.export_network`.
        runtime: the library.

    Raises:
        InputError: a missing library, a file that is none of fsanet's or is not safe to open (see
            `read_onnx`), or one that the library cannot run.
    """

    def __init__(self, file: str | os.PathLike[str], runtime: Runtime = "onnxruntime") -> None:
        super().__init__()
        self.file, self.runtime = Path(file), runtime
        content, graph_input, self.description = read_onnx(self.file)
        # (batch, height, width), None where any will do
        channels_last = self.description.input.startswith("uint8")
        self.sizes = [graph_input[axis] for axis in ((0, 1, 2) if channels_last else (0, 2, 3))]
        check_pixels(self.sizes[1] or 1, self.sizes[2] or 1, str(file))  # images are padded to it
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.classes = tuple(self.description.classes)
        self.num_classes = len(self.classes)
        self.palette = class_palette(self.description.palette, self.num_classes)
        self.mean = tuple(self.description.mean)
        # Where inputs come from and logits go to; the network itself runs on the CPU.
        self.register_buffer("offset", torch.tensor(self.mean)[:, None, None], persistent=False)
        try:
            if runtime == "openvino":
                self._run = _start_openvino(content)
            else:
                self._run = _start_onnxruntime(content, runtime)
        except InputError:
            raise
        except Exception as error:  # each library has errors of its own
            raise InputError(f"{file}: {runtime} cannot open it ({one_line(error)})") from error

    def extra_repr(self) -> str:
        return f"{self.runtime}, sha256={self.sha256}"  # part of the network's fingerprint

    def check_options(self, *, dtype: torch.dtype | None, probabilities: bool) -> None:
        """Raise `InputError` for options of a `Segmenter` that the file decides."""
        if dtype is not None:
            raise InputError(f"dtype: {self.file} computes in the precision it was exported in")
        if probabilities and self.description.output != "logits":
            raise InputError(
                f"confidence and entropy: {self.file} gives class ids; export it without --argmax"
            )

    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0..255 (uint8) or 0..1 (floats) minus the mean colour, which becomes 0."""
        x = images if images.is_floating_point() else images.float() / 255
        return x - self.offset  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        """What `normalise` returns, (B, 3, H, W) -> logits (B, C, H, W).

        A file that gives class ids makes 1 for the class and 0 for all others: where windows and
        scales are averaged they vote.

        Raises:
            InputError: a size that the file does not take, or the file's result is not what its
                metadata says.
        """
        *_, height, width = images.shape
        x = self.as_taken(images)
        parts = [self._logits(part) for part in x.split(self.sizes[0] or len(x))]
        return torch.cat(parts)[:, :, :height, :width].to(images.device)

    def as_taken(self, images: Tensor) -> Tensor:
        """What `normalise` returns, padded, as the file takes it."""
        *_, height, width = images.shape
        images = F.pad(images, self._missing(height, width))
        x = (images + self.offset).float().cpu()  # type: ignore[operator]  # in 0..1
        if self.description.input.startswith("uint8"):
            x = (x * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # (B, H, W, 3)
        return x.contiguous()

    def _logits(self, x: Tensor) -> Tensor:
        try:
            result = torch.from_numpy(self._run(x.numpy()))
        except Exception as error:
            if is_out_of_memory(error) or "allocate" in str(error):
                raise MemoryError(str(error)) from error
            raise InputError(f"{self.file}: {self.runtime}: {one_line(error)}") from error
        size = x.shape[1:3] if x.dtype == torch.uint8 else x.shape[2:]
        if self.description.output == "logits":
            expected = (len(x), self.num_classes, *size)
        else:
            expected = (len(x), *size)
        if result.shape != expected:
            raise InputError(
                f"{self.file}: gives {tuple(result.shape)} for images of {tuple(size)}; "
                f"expected {expected} from its metadata"
            )
        if self.description.output == "logits":
            return result.float()
        result = result.long()
        if int(result.max()) >= self.num_classes:
            raise InputError(f"{self.file}: gives class {int(result.max())}, which has no name")
        ids = torch.arange(self.num_classes)[:, None, None]
        return (result[:, None] == ids).float()  # (B, C, H, W)

    def _missing(self, height: int, width: int) -> tuple[int, int, int, int]:
        """What is added on the left, on the right, at the top and at the bottom."""
        missing = []
        for name, side, fixed in zip("HW", (height, width), self.sizes[1:], strict=True):
            if fixed is not None and side > fixed:
                raise InputError(
                    f"{self.file}: takes images of {self.sizes[1]} x {self.sizes[2]} pixels "
                    f"(H x W), and {name} is {side}; give a --window of that size, or export "
                    "without --fixed"
                )
            missing.append((fixed or max(SMALLEST, side)) - side)
        return 0, missing[1], 0, missing[0]


def read_onnx(file: Path) -> tuple[bytes, list[int | None], Description]:
    """Read an ``.onnx`` file without running it.

    Returns:
        Its content, the sizes of the axes of its input (None: any), and what it says about itself.

    Raises:
        InputError: no regular file of at most 2 GB, not ONNX, not with one input and one output,
            data in other files, operators beyond the ONNX standard, loops, functions, or no
            metadata of fsanet.
    """
    if file.suffix.lower() == ".pt2":
        raise InputError(
            f"{file}: opening a .pt2 file runs code in it, so fsanet only writes them; give the "
            "saved network, or an .onnx file"
        )
    onnx = import_extra("onnx", "onnx")
    with open_file(file, "ONNX", _LARGEST_FILE) as stream:
        content = stream.read()
    try:
        model = onnx.load_model_from_string(content)
        inputs, outputs = list(model.graph.input), list(model.graph.output)
    except Exception as error:  # of protobuf
        raise InputError(f"{file}: damaged, or not an ONNX file") from error
    description = Description.from_metadata({p.key: p.value for p in model.metadata_props}, file)
    for message in _messages(model):
        kind = type(message).__name__
        if kind == "TensorProto" and (message.external_data or message.data_location):
            raise InputError(
                f"{file}: keeps data in another file; give a file that holds its weights itself"
            )
        if kind == "NodeProto" and message.domain not in ("", "ai.onnx"):
            raise InputError(
                f"{file}: uses {printable(message.op_type)} of {printable(message.domain)}, which "
                "is not an operator of the ONNX standard"
            )
        # Loops may never end, and functions that call others twice are as long as one likes.
        loop = kind == "NodeProto" and message.op_type in ("Loop", "Scan")
        if loop or kind == "FunctionProto":
            what = printable(message.op_type if loop else f"a function, {message.name}")
            raise InputError(
                f"{file}: has {what}; fsanet export writes neither loops nor functions"
            )
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in inputs if one.name not in weights]
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"{file}: has {len(inputs)} inputs and {len(outputs)} outputs; a network for semantic "
            "segmentation has one of each"
        )
    axes = [axis.dim_value or None for axis in inputs[0].type.tensor_type.shape.dim]
    if len(axes) != 4:
        raise InputError(f"{file}: its input has {len(axes)} axes; expected 4")
    if any(axis is not None and not 1 <= axis <= LARGEST for axis in axes):
        raise InputError(
            f"{file}: its input has axes of {axes}; expected sizes from 1 to {LARGEST}"
        )
    return content, axes, description


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message, and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(one)


def _start_onnxruntime(content: bytes, runtime: Runtime) -> Any:
    onnxruntime = import_extra("onnxruntime", "onnx")
    providers = ["CPUExecutionProvider"]
    if runtime == "tensorrt":
        if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
            raise InputError(
                "this onnxruntime has no TensorRT: pip install onnxruntime-gpu tensorrt"
            )
        providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", *providers]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    (name,) = [one.name for one in session.get_inputs()]
    return lambda images: session.run(None, {name: images})[0]


def _start_openvino(content: bytes) -> Any:
    # Importing openvino sends an event to its makers; without this package, nothing is sent.
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    openvino = import_extra("openvino", "openvino")
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda images: request.infer([images])[compiled.output(0)].copy()


def import_extra(name: str, extra: str) -> Any:
    """Import a package that is not among the dependencies.

    ONNX Runtime sends events to its makers, and keeps an identifier of the machine in the home
    folder, unless this variable is set when it starts.

    Raises:
        InputError: it is not installed; the message names the extra.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise InputError(f"needs {missing}: pip install 'fsanet[{extra}]'") from error
