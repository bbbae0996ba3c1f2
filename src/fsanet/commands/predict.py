"""`fsanet predict`: segment images and folders of images."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fsanet.commands import instances
from fsanet.commands.parsing import Parser, available_device, has, side
from fsanet.errors import InputError


def run(given: list[str]) -> int:
    parser = Parser(prog="fsanet predict", description="Segment images and folders of images.")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    add("--model", required=True, metavar="DIR", help="run folder, model folder, or hub id")
    export = has(given, "--cityscapes-export")
    add("--out", required=not export, metavar="DIR", help="masks, overlays and summaries go here")
    add(
        "--cityscapes-export",
        metavar="FILE.zip",
        help="in place of --out: what the Cityscapes test server takes, label ids in a zip",
    )
    add("--window", type=int, nargs="+", metavar="N", help="sliding window: side, or height width")
    add("--stride", type=int, nargs="+", metavar="N", help="its step (default: 2/3 of it)")
    add("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="average over scales")
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--batch-size", type=int, default=1, metavar="N", help="windows or images at once")
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add("--dtype", choices=["bfloat16", "float16"], help="half precision where it is safe")
    add("--offload", action="store_true", help="keep logits in main memory")
    add("--confidence", action="store_true", help="write how sure the network is, too")
    add("--no-recursive", action="store_true", help="leave out sub-folders")
    add("--alpha", type=float, default=0.5, help="strength of the overlay, 0..1")
    add("--no-legend", action="store_true", help="overlays without a legend")
    add("--score", type=float, help="instances: lowest score that is shown (default: 0.5)")
    options = parser.parse_args(given)
    if export and options.out is not None:
        raise InputError("--cityscapes-export and --out: give one of them")
    if export and (options.confidence or instances.is_instance_model(options.model)):
        raise InputError("--cityscapes-export holds class ids alone: no --confidence, no instances")
    if instances.is_instance_model(options.model):
        return instances.predict(options)
    if options.score is not None:
        raise InputError("--score: for networks that find instances; this model is not one")
    window, stride = (side(name, getattr(options, name)) for name in ("window", "stride"))

    device = available_device(options.device)

    import torch

    how = {
        "window": window,
        "stride": stride,
        "scales": options.scales,
        "flip": options.flip,
        "batch_size": options.batch_size,
        "device": device,
        "dtype": None if options.dtype is None else getattr(torch, options.dtype),
        "offload": options.offload,
        "recursive": not options.no_recursive,
        "progress": sys.stderr.isatty(),
    }
    if export:
        return _export(options, how)
    from fsanet.predict import predict_to_folder

    summary = predict_to_folder(
        options.model,
        options.images,
        options.out,
        confidence=options.confidence,
        alpha=options.alpha,
        legend=not options.no_legend,
        **how,
    )
    print(f"{summary['images']} images in {summary['seconds']:.1f} s; results in {options.out}")
    failed = summary["failed"]
    if failed:
        raise InputError(f"{len(failed)} not read, the first: {failed[0]['error']}")
    return 0


def _export(options: argparse.Namespace, how: dict[str, Any]) -> int:
    from fsanet.cityscapes_export import TEST_IMAGES, export_cityscapes

    done = export_cityscapes(options.model, options.images, options.cityscapes_export, **how)
    print(f"{done.images} predictions in {done.file} (the test set has {TEST_IMAGES} images)")
    if done.other_sizes:
        print(
            f"fsanet: warning: {done.other_sizes} of them are not 2048 x 1024 pixels; "
            "the server will refuse these",
            file=sys.stderr,
        )
    return 0
