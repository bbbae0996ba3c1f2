"""Export of a network to a single file for other runtimes: ONNX, or a torch.export program.

Shapes: B batch, C input channels, (H, W) image.
"""

from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from fsanet import __version__
from fsanet.convert import load_model
from fsanet.errors import InputError
from fsanet.files import check_writable_file, write_whole
from fsanet.models.exported import SMALLEST, Description, ExportedNetwork, import_extra

__all__ = ["DESCRIPTION_FILE", "Format", "export_network", "with_fixed_padding"]

Format = Literal["onnx", "torch"]

#: The extra file of a ``.pt2`` archive with what the metadata of an ``.onnx`` file holds.
DESCRIPTION_FILE = "fsanet.json"
_LARGEST = 16_384  # pixels of a side


class _Deployed(nn.Module):
    """A network whose graph includes the normalisation, and perhaps all else around it."""

    def __init__(self, network: nn.Module, *, argmax: bool, preprocess: bool) -> None:
        super().__init__()
        self.network = network.eval()
        self.argmax, self.preprocess = argmax, preprocess

    def forward(self, image: Tensor) -> Tensor:
        """RGB floats in 0..1 (B, C, H, W), or uint8 (B, H, W, C) -> logits, or class ids."""
        network: Any = self.network
        if self.preprocess:
            image = image.permute(0, 3, 1, 2)  # (B, C, H, W)
        logits = network(network.normalise(image))  # (B, classes, H, W)
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits


def export_network(
    model: nn.Module | str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    format: Format | None = None,
    size: tuple[int, int] = (512, 512),
    dynamic: bool = True,
    argmax: bool = False,
    preprocess: bool = False,
) -> float:
    """Export a network to one file, and run the exported network once to compare the two.

    The exported network takes RGB images and returns logits or class ids, as the metadata of the
    file says (see `fsanet.models.exported.Description`); the normalisation is part of it.

    Args:
        model: a network with ``normalise``, or whatever `fsanet.load_model` opens.
        file: ends in ``.onnx`` (requires the extra `onnx`) or ``.pt2``.
        format: "onnx" or "torch"; by default determined by the suffix of the file.
        size: image (H, W) to trace with.
        dynamic: accept any batch size, and any height and width from 64 to 16384 (multiples of 32
            for encoders with TensorFlow's padding); otherwise only one image of ``size``.
        argmax: return class ids, uint8 (B, H, W), in place of logits.
        preprocess: take uint8 (B, H, W, C) in 0..255, as image files are decoded, in place of
            floats (B, C, H, W) in 0..1.

    Returns:
        The largest difference between the logits of the two networks relative to the largest
        logit, or with ``argmax`` the fraction of pixels whose classes differ; at a size other than
        the traced one (at the traced one if not dynamic).

    Raises:
        InputError: an unknown suffix, a size that is not a multiple of 32, a missing extra, a
            network that torch.export cannot store, or a path that is not writable.
    """
    file = Path(file)
    kind = format or {".onnx": "onnx", ".pt2": "torch"}.get(file.suffix.lower())
    if kind not in ("onnx", "torch"):
        raise InputError(f"{file}: give a name that ends in .onnx or .pt2, or the format")
    if len(size) != 2 or min(size) < SMALLEST or any(side % 32 for side in size):
        raise InputError(
            f"size {tuple(size)}: give height and width as multiples of 32, at least {SMALLEST}"
        )
    if kind == "onnx":
        _need_onnx()
    check_writable_file(file)
    network: Any = load_model(model)
    if isinstance(network, ExportedNetwork):
        raise InputError(f"{model}: is an exported network; give the folder it was exported from")
    network = network.float().cpu()
    options = {"argmax": argmax, "preprocess": preprocess}
    fixed_padding = with_fixed_padding(network)
    deployed = _Deployed(fixed_padding, **options)
    any_size = not any(isinstance(module, Conv2dSame) for module in network.modules())
    shapes = _dynamic_shapes(any_size, preprocess) if dynamic else None
    traced = _random_images(2 if dynamic else 1, size, network, preprocess)
    other = traced
    if dynamic:
        odd = 9 if any_size else 0
        other = _random_images(1, (size[0] + 32 + odd, size[1] + 64 - odd), network, preprocess)
    description = describe(network, **options, multiple_of=1 if any_size else 32)
    with torch.no_grad():
        program = torch.export.export(
            deployed,
            (traced,),
            dynamic_shapes=shapes,
            # Guards that hold at any size, though torch cannot prove it, are no constraints.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        want = _Deployed(network, **options)(other)
        # Into memory first: torch's writer ends the process if the disk is full.
        content = io.BytesIO()
        if kind == "torch":
            got = program.module()(other)
            about = {} if description is None else description.as_metadata()
            try:
                torch.export.save(
                    program, content, extra_files={DESCRIPTION_FILE: json.dumps(about, indent=2)}
                )
            except RuntimeError as error:  # such as encoders whose padding rounds a dynamic size up
                raise InputError(
                    f"{file}: torch.export.save cannot store this network "
                    f"({str(error).splitlines()[0]}); write an .onnx file, or a fixed size"
                ) from error
        else:
            content.write(_onnx_file(program, description, argmax=argmax, preprocess=preprocess))
            got = _run_onnx(content.getvalue(), other)
    write_whole(file, lambda stream: stream.write(content.getbuffer()))
    if argmax:
        return (got != want).float().mean().item()
    return ((got - want).abs().max() / want.abs().max()).item()


def describe(
    network: Any, *, argmax: bool, preprocess: bool, multiple_of: int
) -> Description | None:
    """What the file will say about itself; None for a network without classes or three channels."""
    if not hasattr(network, "classes") or len(getattr(network, "mean", ())) != 3:
        return None
    return Description(
        fsanet=__version__,
        network=type(network).__name__,
        classes=list(network.classes),
        palette=[tuple(colour) for colour in network.palette],
        input="uint8 0..255" if preprocess else "float32 0..1",
        output="class ids" if argmax else "logits",
        multiple_of=multiple_of,
        mean=list(network.mean),
        std=list(network.std),
        bgr=bool(getattr(network, "bgr", False)),
    )


def _random_images(count: int, size: tuple[int, int], network: Any, preprocess: bool) -> Tensor:
    channels = getattr(network, "in_channels", None) or len(getattr(network, "mean", (0, 0, 0)))
    if preprocess:
        return torch.randint(0, 256, (count, *size, channels), dtype=torch.uint8)
    return torch.rand(count, channels, *size)


def _dynamic_shapes(any_size: bool, preprocess: bool) -> tuple[dict[int, Any]]:
    """The axes of the input that may have other sizes when the network is used."""
    if any_size:
        sides = [torch.export.Dim(n, min=SMALLEST, max=_LARGEST) for n in ("height", "width")]
    else:
        halves = [torch.export.Dim(n, min=SMALLEST // 32, max=_LARGEST // 32) for n in ("h", "w")]
        sides = [32 * half for half in halves]
    batch = torch.export.Dim("batch", min=1, max=1024)
    first = 1 if preprocess else 2
    return ({0: batch, first: sides[0], first + 1: sides[1]},)


def _onnx_file(
    program: Any, description: Description | None, *, argmax: bool, preprocess: bool
) -> bytes:
    """The program as ONNX, with names for inputs, outputs and their axes, and with metadata."""
    output = "classes" if argmax else "logits"
    exported: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["image"], output_names=[output]
    )
    model = exported.model_proto
    names = (
        {0: "batch", 1: "height", 2: "width"}
        if preprocess
        else {0: "batch", 2: "height", 3: "width"}
    )
    _name_axes(model.graph.input[0], names)
    names = (
        {0: "batch", 1: "height", 2: "width"} if argmax else {0: "batch", 2: "height", 3: "width"}
    )
    _name_axes(model.graph.output[0], names)
    # Shapes of intermediate results under other names, and from which lines of source on this
    # machine each node came.
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "fsanet", __version__
    for name, text in ({} if description is None else description.as_metadata()).items():
        model.metadata_props.add(key=name, value=text)
    return model.SerializeToString()


def _name_axes(value: Any, names: dict[int, str]) -> None:
    axes = value.type.tensor_type.shape.dim
    for index, name in names.items():
        if not axes[index].HasField("dim_value"):
            axes[index].dim_param = name


def with_fixed_padding(network: nn.Module) -> nn.Module:
    """A copy whose TensorFlow-style convolutions pad by a constant number of pixels.

    Their padding depends on the size of the map, which makes the expressions of a dynamic size grow
    with each layer, until the exporter takes minutes. On a map whose sides are multiples of the
    stride, as those of images of multiples of 32 are, it is constant.
    """
    network = copy.deepcopy(network)
    for name, module in [*network.named_modules()]:
        if isinstance(module, Conv2dSame):
            sides = zip(module.kernel_size, module.stride, module.dilation, strict=True)
            rows, columns = (max(d * (k - 1) + 1 - stride, 0) for k, stride, d in sides)
            left, top = columns // 2, rows // 2
            padding = nn.ZeroPad2d((left, columns - left, top, rows - top))
            convolution = nn.Conv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                0,
                module.dilation,  # type: ignore[arg-type]
                module.groups,
                module.bias is not None,
                device="meta",
            )
            convolution.weight, convolution.bias = module.weight, module.bias
            network.set_submodule(name, nn.Sequential(padding, convolution))
    return network


def _run_onnx(content: bytes, images: Tensor) -> Tensor:
    onnxruntime = import_extra("onnxruntime", "onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(result)


def _need_onnx() -> None:
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_extra(name, "onnx")
    except InputError as error:
        raise InputError(f"ONNX export {error}, or write a .pt2 file") from error
