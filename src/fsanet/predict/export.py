"""Export of a network to a single file for other runtimes: ONNX, or a torch.export program.

Shapes: B batch, C input channels, (H, W) image.
"""

from __future__ import annotations

import copy
import io
import os
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from fsanet.convert import load_model
from fsanet.errors import InputError
from fsanet.files import check_writable_file, write_whole

__all__ = ["Format", "export_network", "with_fixed_padding"]

Format = Literal["onnx", "torch"]


class _Deployed(nn.Module):
    """A network whose graph includes the normalisation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """RGB floats in 0..1, (B, C, H, W) -> logits (B, classes, H, W)."""
        network: Any = self.network
        return network(network.normalise(images))


def export_network(
    model: nn.Module | str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    format: Format | None = None,
    size: tuple[int, int] = (512, 512),
    dynamic: bool = True,
) -> float:
    """Export a network to one file, and run the exported network once to compare the two.

    The exported network takes RGB floats in 0..1, (B, C, H, W), and returns logits.

    Args:
        model: a network with ``normalise``, or whatever `fsanet.load_model` opens.
        file: ends in ``.onnx`` (requires the extra `onnx`) or ``.pt2``.
        format: "onnx" or "torch"; by default determined by the suffix of the file.
        size: image (H, W) to trace with.
        dynamic: accept any batch size, and any height and width that is a multiple of 32 from 64
            to 16384; otherwise only ``size``.

    Returns:
        The largest difference between the logits of the two networks relative to the largest
        logit, at a size other than the traced one (at the traced one if not dynamic).

    Raises:
        InputError: an unknown suffix, a size that is not a multiple of 32, a missing extra, a
            network that torch.export cannot store, or a path that is not writable.
    """
    file = Path(file)
    kind = format or {".onnx": "onnx", ".pt2": "torch"}.get(file.suffix.lower())
    if kind not in ("onnx", "torch"):
        raise InputError(f"{file}: give a name that ends in .onnx or .pt2, or the format")
    if len(size) != 2 or min(size) < 64 or any(side % 32 for side in size):
        raise InputError(
            f"size {tuple(size)}: give height and width as multiples of 32, at least 64"
        )
    if kind == "onnx":
        _need_onnx()
    check_writable_file(file)
    network: Any = load_model(model).float().cpu()
    deployed = _Deployed(with_fixed_padding(network))
    channels = getattr(network, "in_channels", 3)
    traced = torch.rand(2 if dynamic else 1, channels, *size)
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch", min=1, max=1024)
        height, width = (torch.export.Dim(name, min=2, max=512) for name in ("h32", "w32"))
        shapes = ({0: batch, 2: 32 * height, 3: 32 * width},)
    other = torch.rand(1, channels, size[0] + 32, size[1] + 64) if dynamic else traced
    with torch.no_grad():
        program = torch.export.export(deployed, (traced,), dynamic_shapes=shapes)
        want = _Deployed(network)(other)
        # Into memory first: torch's writer ends the process if the disk is full.
        content = io.BytesIO()
        if kind == "torch":
            got = program.module()(other)
            try:
                torch.export.save(program, content)
            except RuntimeError as error:  # such as encoders whose padding rounds a dynamic size up
                raise InputError(
                    f"{file}: torch.export.save cannot store this network "
                    f"({str(error).splitlines()[0]}); write an .onnx file, or a fixed size"
                ) from error
        else:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
            content.write(exported.model_proto.SerializeToString())  # type: ignore[union-attr]
            got = _run_onnx(content.getvalue(), other)
    write_whole(file, lambda stream: stream.write(content.getbuffer()))
    return ((got - want).abs().max() / want.abs().max()).item()


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
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


def _need_onnx() -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX export needs {error.name}: pip install onnx onnxscript onnxruntime, or write a "
            ".pt2 file"
        ) from error
    del onnxruntime
