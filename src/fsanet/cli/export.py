"""`fsanet export`: a trained network as one file for other runtimes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fsanet.cli.help import Section

HELP = [Section("fsanet.cli.export:export")]


def export(
    model: str,
    *,
    out: str | None = None,
    size: tuple[int, int] = (512, 512),
    fixed: bool = False,
    argmax: bool = False,
    preprocess: bool = False,
    compare: list[str] | None = None,
) -> int:
    """Write a trained network as one ONNX or torch.export file.

    The file takes RGB images of any height and width from 64 pixels, as floats in 0..1 of shape
    (batch, 3, height, width), and gives logits. The normalisation is part of it. It is run once and
    compared with the network. The metadata of an .onnx file holds classes, colours and the input
    format; `fsanet predict --model FILE.onnx` and `fsanet eval` run it. A network for instances
    takes one image, and gives boxes, labels, scores and masks; fsanet itself does not run such a
    file.

    Args:
        model: run folder, model folder, or hub id.
        out: file to write; its name ends in .onnx or .pt2. With --compare it may be left out.
        size: height and width of the image to trace with.
        fixed: export for one image of that size only.
        argmax: give class ids, uint8 (batch, height, width), in place of logits.
        preprocess: take uint8 images 0..255 as they are decoded, (batch, height, width, 3).
        compare: image files and folders to run the network and the .onnx file on, in each backend
            that is installed: size, time, memory, pixels that agree, and mIoU where an image
            X/images/NAME.jpg has labels X/masks/NAME.png.
    """
    from fsanet.errors import InputError

    if out is None and compare is None:
        raise InputError("--out is missing; give the file to write, or --compare IMAGES")
    if compare is not None:
        if out is not None and not out.lower().endswith(".onnx"):
            raise InputError(f"--compare needs an .onnx file, and --out is {out}")
        if fixed:
            raise InputError("--compare feeds whole images of their own sizes; leave out --fixed")
        from fsanet.data.images import list_images

        list_images(compare)  # one that is missing is found before the export
    with tempfile.TemporaryDirectory() as folder:
        file = out or str(Path(folder, "model.onnx"))
        about = _export(model, file, size=size, fixed=fixed, argmax=argmax, preprocess=preprocess)
        if out is not None:  # else the file goes away again
            print(*about, sep="\n")
        if compare is not None:
            _compare(model, file, compare)
    return 0


def _export(
    model: str, out: str, *, size: tuple[int, int], fixed: bool, argmax: bool, preprocess: bool
) -> tuple[str, str]:
    """Write the file; what it takes and gives, and how far it is from the network."""
    from fsanet.convert import load_model
    from fsanet.models import MaskRcnnFsa
    from fsanet.predict.export import check_target, export_network

    check_target(out, size)
    network = load_model(model)
    difference = export_network(
        network, out, size=size, dynamic=not fixed, argmax=argmax, preprocess=preprocess
    )
    if isinstance(network, MaskRcnnFsa):
        takes = "uint8 0..255 (height, width, 3)"
        if not preprocess:
            takes = "floats 0..1 (3, height, width), not normalised"
        return (
            f"{out}: takes one RGB image, {takes}; gives boxes, labels from 1, scores and masks",
            f"{out}: largest difference of scores {difference:.1e}",
        )
    takes = "uint8 0..255 (batch, height, width, 3)"
    if not preprocess:
        takes = "floats 0..1 (batch, 3, height, width), not normalised"
    gives = "class ids, uint8 (batch, height, width)" if argmax else "logits"
    far = f"largest difference of logits {difference:.1e} of the largest logit"
    if argmax:
        far = f"{100 * (1 - difference):.3f} % of pixels have the class of the network"
    return f"{out}: takes RGB images, {takes}; gives {gives}", f"{out}: {far}"


def _compare(model: str, file: str, images: list[str]) -> None:
    from fsanet.cli.eval import print_table
    from fsanet.predict.compare import compare_backends, table
    from fsanet.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        rows = compare_backends(model, file, images, watch=progress.watch)
    header, *body = table(rows)
    print_table("", header, body)


def run(arguments: list[str]) -> int:
    from fsanet.cli.parsing import call

    return call(export, arguments)
