"""`fsanet predict`: segment images and folders of images."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fsanet.cli import instances
from fsanet.cli.parsing import Parser, available_device, has, quiet, side
from fsanet.errors import InputError


def run(given: list[str]) -> int:
    from fsanet.files import first_process

    quiet()
    try:
        return _run(given)
    except InputError:
        if first_process():
            raise
        return 0  # the first process says it; a code here would have it killed while it does
    except KeyboardInterrupt:
        if not first_process():
            return 0
        again = "" if "--resume" in given else " with --resume"
        print(f"fsanet: interrupted; the same command{again} goes on", file=sys.stderr)
        return 130


def _run(given: list[str]) -> int:
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
    add("--device", help="of one process: cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add("--accelerator", default="auto", help="of several: cpu, gpu, auto (default)")
    add("--devices", default="1", metavar="N", help="processes a machine, or auto, or 0,2 (GPUs)")
    add("--num-nodes", "--num_nodes", type=int, default=1, metavar="N", help="machines")
    add("--strategy", default="auto", help="auto (default) or ddp")
    add("--resume", action="store_true", help="keep what an earlier run has finished")
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

    import torch

    how = {
        "window": window,
        "stride": stride,
        "scales": options.scales,
        "flip": options.flip,
        "batch_size": options.batch_size,
        "dtype": None if options.dtype is None else getattr(torch, options.dtype),
        "offload": options.offload,
    } | sharing(options)
    if export:
        return _export(options, how)
    from fsanet.predict.folder import predict_to_folder

    summary = predict_to_folder(
        options.model,
        options.images,
        options.out,
        confidence=options.confidence,
        alpha=options.alpha,
        legend=not options.no_legend,
        **how,
    )
    return told(summary, f"{summary['images']} images", options.out)


def sharing(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of both kinds of prediction: what to read, where to compute, what to show."""
    from fsanet.predict.processes import started_outside

    devices = int(options.devices) if options.devices.isdecimal() else options.devices
    alone = devices == 1 and options.num_nodes == 1 and options.strategy == "auto"
    alone = alone and started_outside() == 1
    if not alone:
        import lightning.fabric  # noqa: F401  its import would undo what quiet() does

        quiet()
    device = options.device
    if device is not None or (alone and options.accelerator == "auto"):
        device = available_device(device)
    return {
        "device": device,
        "accelerator": options.accelerator,
        "devices": devices,
        "num_nodes": options.num_nodes,
        "strategy": options.strategy,
        "recursive": not options.no_recursive,
        "resume": options.resume,
        "progress": True,
    }


def told(summary: dict[str, Any], what: str, out: str) -> int:
    """Say what was done; raises `InputError` for images that could not be read."""
    from fsanet.files import first_process

    if not first_process():
        return 0
    before = summary["done_before"]
    kept = f" ({before} of them before)" if before else ""
    print(f"{what} in {summary['seconds']:.1f} s{kept}; results in {out}")
    failed = summary["failed"]
    if failed:
        raise InputError(f"{len(failed)} not read, the first: {failed[0]['error']}")
    return 0


def _export(options: argparse.Namespace, how: dict[str, Any]) -> int:
    from fsanet.files import first_process
    from fsanet.predict.cityscapes_export import TEST_IMAGES, export_cityscapes

    done = export_cityscapes(options.model, options.images, options.cityscapes_export, **how)
    if not first_process():
        return 0
    print(f"{done.images} predictions in {done.file} (the test set has {TEST_IMAGES} images)")
    if done.other_sizes:
        print(
            f"fsanet: warning: {done.other_sizes} of them are not 2048 x 1024 pixels; "
            "the server will refuse these",
            file=sys.stderr,
        )
    return 0
