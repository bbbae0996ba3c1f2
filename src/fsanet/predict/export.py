"""Export of a network to a single file for other runtimes: ONNX, or a torch.export program.

Shapes: B batch, C input channels, (H, W) image.
"""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from fsanet import __version__
from fsanet.convert import load_model
from fsanet.errors import InputError
from fsanet.files import check_writable_file, write_bytes
from fsanet.models import MaskRcnnFsa
from fsanet.models.exported import LARGEST, SMALLEST, Description, ExportedNetwork, import_extra

__all__ = ["DESCRIPTION_FILE", "Format", "check_target", "export_network", "with_fixed_padding"]

Format = Literal["onnx", "torch"]

#: The extra file of a ``.pt2`` archive with what the metadata of an ``.onnx`` file holds.
DESCRIPTION_FILE = "fsanet.json"
_OPSET = 17  # of files from torch's older exporter


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


class _DeployedDetector(nn.Module):
    """A network for instances that returns tensors in place of a list of dictionaries."""

    names = ("boxes", "labels", "scores", "masks")

    def __init__(self, network: nn.Module, *, preprocess: bool) -> None:
        super().__init__()
        self.network = network.eval()
        self.preprocess = preprocess
        self.eval()  # the exporter restores this mode in all parts

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """One RGB image, floats in 0..1 (3, H, W) or uint8 (H, W, 3) -> its N instances.

        Boxes (N, 4), labels from 1 (N,), scores (N,), probabilities of the masks (N, 1, H, W).
        """
        if self.preprocess:
            image = image.permute(2, 0, 1).float() / 255
        (found,) = self.network([image])
        return tuple(found[name] for name in self.names)


def check_target(file: str | Path, size: tuple[int, int], format: str | None = None) -> str:
    """What can be said before a network is opened; the format, ``"onnx"`` or ``"torch"``.

    Raises:
        InputError: as of `export_network`.
    """
    kind = format or {".onnx": "onnx", ".pt2": "torch"}.get(Path(file).suffix.lower())
    if kind not in ("onnx", "torch"):
        raise InputError(f"{file}: give a name that ends in .onnx or .pt2, or the format")
    right = [SMALLEST <= side <= LARGEST and side % 32 == 0 for side in size]
    if len(size) != 2 or not all(right):
        raise InputError(
            f"size {tuple(size)}: give height and width as multiples of 32, at least {SMALLEST} "
            f"and at most {LARGEST}"
        )
    if kind == "onnx":
        _need_onnx()
    check_writable_file(file)
    return kind


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
    file says (see `fsanet.models.exported.Description`); the normalisation is part of it. A network
    for instances takes one image (3, H, W) and returns boxes (N, 4), labels from 1 (N,), scores
    (N,) and probabilities of masks (N, 1, H, W); this library writes such a file, and does not run
    it.

    Args:
        model: a network with ``normalise``, or whatever `fsanet.load_model` opens.
        file: ends in ``.onnx`` (requires the extra `onnx`) or ``.pt2``.
        format: "onnx" or "torch"; by default determined by the suffix of the file.
        size: image (H, W) to trace with.
        dynamic: accept any batch size, and any height and width from 64 to 16384; otherwise
            only one image of ``size``.
        argmax: return class ids, uint8 (B, H, W), in place of logits.
        preprocess: take uint8 (B, H, W, C) in 0..255, as image files are decoded, in place of
            floats (B, C, H, W) in 0..1.

    Returns:
        The largest difference between the logits of the two networks relative to the largest
        logit, or with ``argmax`` the fraction of pixels whose classes differ; at a size other than
        the traced one (at the traced one if not dynamic). Of a network for instances, the largest
        difference between the scores; 1 if the numbers of instances differ.

    Raises:
        InputError: an unknown suffix, a size that is not a multiple of 32, a missing extra, a
            network that torch.export cannot store, instances as ``.pt2`` or with ``argmax``, or a
            path that is not writable.
    """
    file = Path(file)
    kind = check_target(file, size, format)
    network: Any = load_model(model)
    if isinstance(network, ExportedNetwork):
        raise InputError(
            f"{network.file}: is an exported network; give the folder it was exported from"
        )
    network = network.float().cpu()
    if isinstance(network, MaskRcnnFsa):
        if kind != "onnx" or argmax:
            raise InputError(
                "networks for instances are exported to .onnx, and give instances; leave out argmax"
            )
        return _export_detector(network, file, size, dynamic=dynamic, preprocess=preprocess)
    options = {"argmax": argmax, "preprocess": preprocess}
    fixed_padding = with_fixed_padding(network)
    deployed = _Deployed(fixed_padding, **options)
    shapes = _dynamic_shapes(preprocess) if dynamic else None
    traced = _random_images(2 if dynamic else 1, size, network, preprocess)
    other = traced
    if dynamic:
        other = _random_images(1, (size[0] + 41, size[1] + 55), network, preprocess)
    description = describe(network, **options)
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
    write_bytes(file, content.getbuffer())
    if argmax:
        return (got != want).float().mean().item()
    return ((got - want).abs().max() / want.abs().max()).item()


def _export_detector(
    network: MaskRcnnFsa, file: Path, size: tuple[int, int], *, dynamic: bool, preprocess: bool
) -> float:
    """Export a network for instances with torch's older exporter: the new one cannot."""
    deployed = _DeployedDetector(network, preprocess=preprocess)
    larger = (size[0] + 32, size[1] + 64) if dynamic else size
    traced, other = (_random_images(1, s, network, preprocess)[0] for s in (size, larger))
    sides = {0: "height", 1: "width"} if preprocess else {1: "height", 2: "width"}
    axes: dict[str, dict[int, str]] = {name: {0: "instances"} for name in deployed.names}
    if dynamic:
        axes["image"] = sides
        axes["masks"] |= {2: "height", 3: "width"}
    torch.onnx.register_custom_op_symbolic("aten::mT", _transpose, _OPSET)
    content = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # It warns of itself, and of each Python number in torchvision.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            deployed,
            (traced,),
            content,  # type: ignore[arg-type]  # its annotation omits streams, which it writes
            dynamo=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=list(deployed.names),
            dynamic_axes=axes,
        )
        want = deployed(other)[2]
    about = {
        "fsanet": __version__,
        "network": network.network,
        "classes": json.dumps(network.classes),
        "palette": json.dumps(network.palette),
        "category_ids": json.dumps(network.category_ids),
        "input": "uint8 0..255" if preprocess else "float32 0..1",
        "output": "instances",
    }
    onnx = import_extra("onnx", "onnx")
    written = _with_metadata(onnx.load_model_from_string(content.getvalue()), about)
    got = _run_onnx(written, other, "scores")
    write_bytes(file, written)
    if got.shape != want.shape:
        return 1.0
    return (got - want).abs().max().item() if len(got) else 0.0


def _transpose(graph: Any, matrix: Any) -> Any:
    """``Tensor.mT``, which torch's older exporter does not know."""
    axes = matrix.type().dim()
    return graph.op("Transpose", matrix, perm_i=[*range(axes - 2), axes - 1, axes - 2])


def describe(network: Any, *, argmax: bool, preprocess: bool) -> Description | None:
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
        mean=list(network.mean),
        std=list(network.std),
        bgr=bool(getattr(network, "bgr", False)),
    )


def _random_images(count: int, size: tuple[int, int], network: Any, preprocess: bool) -> Tensor:
    channels = getattr(network, "in_channels", None) or len(getattr(network, "mean", (0, 0, 0)))
    if preprocess:
        return torch.randint(0, 256, (count, *size, channels), dtype=torch.uint8)
    return torch.rand(count, channels, *size)


def _dynamic_shapes(preprocess: bool) -> tuple[dict[int, Any]]:
    """The axes of the input that may have other sizes when the network is used."""
    sides = [torch.export.Dim(n, min=SMALLEST, max=LARGEST) for n in ("height", "width")]
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
    _name_axes(model.graph.input[0], height_axis=1 if preprocess else 2)
    _name_axes(model.graph.output[0], height_axis=1 if argmax else 2)
    del model.graph.value_info[:]  # shapes of intermediate results under other names
    return _with_metadata(model, {} if description is None else description.as_metadata())


def _name_axes(value: Any, *, height_axis: int) -> None:
    axes = value.type.tensor_type.shape.dim
    names = {0: "batch", height_axis: "height", height_axis + 1: "width"}
    for index, name in names.items():
        if not axes[index].HasField("dim_value"):
            axes[index].dim_param = name


def _with_metadata(model: Any, about: dict[str, str]) -> bytes:
    """The file of an ONNX model, with these metadata, and without what exporters leave in it."""
    for node in model.graph.node:  # from which lines of source on this machine each came
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "fsanet", __version__
    for name, text in about.items():
        model.metadata_props.add(key=name, value=text)
    return model.SerializeToString()


class _Padding(nn.Module):
    """TensorFlow's padding before a convolution with a stride, in whole numbers.

    The output has ceil(side / stride) pixels per side; an odd pixel of padding is added at the end.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride  # kernel: with dilation

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for side, kernel, stride in zip(x.shape[2:], self.kernel, self.stride, strict=True):
            missing = (side + stride - 1) // stride * stride - side
            first = (missing + kernel - stride) // 2
            if stride == 2:  # the same, without a division of what depends on the size
                first = (kernel - 2) // 2 + (missing if kernel % 2 else 0)
            sides.append((first, missing + kernel - stride - first))
        (top, bottom), (left, right) = sides
        return F.pad(x, (left, right, top, bottom))


def with_fixed_padding(network: nn.Module) -> nn.Module:
    """A copy whose TensorFlow-style convolutions the exporter can follow.

    Timm computes their padding in floating point, even where it is the same at any size, so that
    the expressions of a dynamic size grow with each layer, until the exporter takes minutes.
    """
    network = copy.deepcopy(network)
    for name, module in [*network.named_modules()]:
        if isinstance(module, Conv2dSame):
            sides = zip(module.kernel_size, module.dilation, strict=True)
            rows, columns = (d * (k - 1) + 1 for k, d in sides)
            padding: nn.Module
            if tuple(module.stride) == (1, 1):
                left, top = (columns - 1) // 2, (rows - 1) // 2
                padding = nn.ZeroPad2d((left, columns - 1 - left, top, rows - 1 - top))
            elif rows < module.stride[0] or columns < module.stride[1]:
                padding = nn.Identity()
            else:
                padding = _Padding((rows, columns), (module.stride[0], module.stride[1]))
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


def _run_onnx(content: bytes, images: Tensor, output: str | None = None) -> Tensor:
    onnxruntime = import_extra("onnxruntime", "onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    result, *_ = session.run(output and [output], {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(result)


def _need_onnx() -> None:
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_extra(name, "onnx")
    except InputError as error:
        raise InputError(f"ONNX export {error}, or write a .pt2 file") from error
