"""`fsanet predict`: segment images, or find instances in them."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fsanet.cli.help import Section
from fsanet.errors import InputError, check_range, escaped

if TYPE_CHECKING:
    import torch

    from fsanet.predict.video import VideoResult

HELP = [Section("fsanet.cli.predict:predict")]


def run(given: list[str]) -> int:
    from fsanet.cli.parsing import parse
    from fsanet.files import first_process
    from fsanet.predict.launch import is_launched, launch, report_error, this_process
    from fsanet.predict.video import is_video

    options = parse(predict, given)
    if any(map(is_video, options["images"])):
        _check_videos(options)
        predict(**options)
        return 0
    where = {name: options[name] for name in ("accelerator", "devices", "num_nodes")}
    if options["device"] and (where["devices"], where["num_nodes"]) != ("1", 1):
        raise InputError(
            f"--device {options['device']}: is for a single process; give --accelerator and "
            "--devices for several"
        )
    if options["dtype"] == "auto" and (
        (where["devices"], where["num_nodes"]) != ("1", 1) or this_process().world_size > 1
    ):
        raise InputError(
            "--dtype auto: is for a single process, as several may measure differently; give "
            "bfloat16 or float16, or leave it out"
        )
    try:
        out = _folder(options["out"], options["cityscapes_export"])
        if options["out"] is None and (options["format"] or options["uncertain"]):
            raise InputError("--format and --uncertain write into --out; give it")
        launched = launch(["predict", *given], out, **where)
        reports = first_process() if launched else predict(**options)
        if reports:
            _finish(**{name: options[name] for name in _FINISHING})
        return 0
    except InputError as error:
        if not is_launched():
            raise
        report_error(error)
        return 2
    except KeyboardInterrupt as stop:
        if this_process().rank == 0 and not is_launched():
            again = "" if options["resume"] else " with --resume"
            print(f"fsanet: interrupted; the same command{again} goes on", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)


def predict(
    images: list[str],
    *,
    model: str,
    out: Path | None = None,
    cityscapes_export: Path | None = None,
    resume: bool = False,
    recursive: bool = True,
    device: str | None = None,
    accelerator: str = "auto",
    devices: str = "1",
    num_nodes: int = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    dtype: Literal["auto", "bfloat16", "float16"] | None = None,
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
    max_pixels: int = 200_000_000,
    format: Literal["coco", "cvat", "labelstudio"] | None = None,
    uncertain: int | None = None,
    smooth: float = 0.0,
    **options: Any,
) -> bool:
    """Segment images, folders of images or the frames of videos, or find instances in them.

    Args:
        images: image files, folders of images, and patterns such as 'photos/*.jpg'; or videos.
        model: run folder, model folder, hub id, or an .onnx file of fsanet export.
        out: folder for masks, overlays and summaries; for one video also the video to write.
        cityscapes_export: zip file to write for the Cityscapes test server; without --out, masks
            and overlays are not kept.
        resume: keep what an earlier run with the same model and settings has finished.
        recursive: search sub-folders; --no-recursive leaves them out.
        device: device of a single process, such as cpu, cuda:1 or mps (default: a GPU if there is
            one).
        accelerator: kind of device for several processes: cpu, gpu or auto.
        devices: processes per machine, auto for one per GPU, or indices of GPUs such as 0,2.
        num_nodes: number of machines.
        strategy: has no effect; accepted because fsanet train has it.
        dtype: compute in half precision where that is safe; auto measures float32 and bfloat16 on
            an image, and takes the faster one if 99.5 % of the pixels have the same class.
        runtime: what runs an .onnx file.
        max_pixels: images with more pixels are refused before they are decoded.
        format: also write the masks as annotations for a labelling tool: annotations.json (coco),
            annotations.xml (cvat) or tasks.json (labelstudio).
        uncertain: list this many images worth labelling next, those with the highest mean entropy
            of the class probabilities, in uncertain.txt.
        smooth: for videos, weight of the previous frames in the class of a pixel, 0 to 0.999.

    Returns:
        Whether everything is done and this process has to report it.
    """
    import torch

    from fsanet.cli.parsing import available_device
    from fsanet.convert import load_model
    from fsanet.convert.saved import open_exported
    from fsanet.cost import has_bfloat16
    from fsanet.data.images import limit_pixels, list_images
    from fsanet.data.shapes import mask_tools
    from fsanet.predict.folder import predict_folder
    from fsanet.predict.launch import is_launched, process_device
    from fsanet.predict.predictor import check_options
    from fsanet.predict.video import is_video

    videos = any(map(is_video, images))
    if smooth and not videos:
        raise InputError(f"smooth={smooth}: is for videos")
    limit_pixels(max_pixels)
    if uncertain is not None:
        check_range("uncertain", uncertain, 1, 10**9)
        options["entropy"] = True
    if format == "coco":
        mask_tools()  # raises if it is missing
    options["device"] = available_device(device or process_device(accelerator, devices))
    if dtype == "bfloat16" and options["device"] == "cpu" and not has_bfloat16():
        warnings.warn(
            "--dtype bfloat16: this processor has no instructions for it, and is slower with it "
            "than in float32; --dtype auto measures both",
            stacklevel=1,
        )
    network: Any = open_exported(model, runtime)
    if dtype == "auto":
        network = load_model(network, task="semantic")
        files = list_images(images, recursive=recursive)
        earlier = _folder(out, cityscapes_export) if resume else None
        options["dtype"] = _faster(network, files, earlier, options)
    else:
        options["dtype"] = None if dtype is None else getattr(torch, dtype)
    if videos:
        _predict_videos(network, images, _folder(out, None), options | {"smooth": smooth})
        return False
    if cityscapes_export is not None:
        from fsanet.data.datasets.cityscapes import check_submission

        check_options(options)
        files = list_images(images, recursive=recursive)
        network = load_model(network)
        check_submission(cityscapes_export, network.classes, files)
        options["overlay"] = out is not None
    summary = predict_folder(
        network,
        images,
        _folder(out, cityscapes_export),
        resume=resume,
        recursive=recursive,
        **options,
    )
    return summary is not None and not is_launched()


def _faster(
    network: Any, files: list[Path], earlier: Path | None, options: dict[str, Any]
) -> torch.dtype | None:
    """The faster type on the first image that can be read; that of the earlier run, if any."""
    import torch

    from fsanet.data.images import read_image
    from fsanet.inputs import read_json
    from fsanet.predict.precision import choose_dtype

    if earlier is not None:
        with contextlib.suppress(InputError, KeyError, TypeError):  # no earlier run
            before = read_json(earlier / "summary.json", "result")["settings"]["dtype"]
            return torch.bfloat16 if before == "bfloat16" else None
    for file in files:
        with contextlib.suppress(InputError):
            image = read_image(file)
            break
    else:
        return None  # each of them is reported
    choice = choose_dtype(network, image, window=options.get("window"), device=options["device"])
    print(choice)
    return choice.dtype


_IMAGES_ONLY = {
    "cityscapes_export": None,
    "format": None,
    "uncertain": None,
    "resume": False,
    "devices": "1",
    "num_nodes": 1,
}


def _check_videos(options: dict[str, Any]) -> None:
    """Raise `InputError` for options that are for images, and for inputs that are no videos."""
    from fsanet.predict.video import is_video

    for name, default in _IMAGES_ONLY.items():
        if options[name] != default:
            raise InputError(f"--{name.replace('_', '-')}: is for images; leave it out for videos")
    if options["dtype"] == "auto":
        raise InputError("--dtype auto: is for images; give bfloat16 or float16, or leave it out")
    files, out = options["images"], _folder(options["out"], None)
    others = [file for file in files if not is_video(file)]
    stems = Counter(Path(file).stem.casefold() for file in files)
    twice = [file for file in files if stems[Path(file).stem.casefold()] > 1]
    if twice and not others:
        raise InputError(f"{twice[0]}, {twice[1]}: have one name; give each a folder of its own")
    if others or (len(files) > 1 and is_video(out)):
        what = f"{others[0]} is no video" if others else f"--out {out} is one file"
        raise InputError(f"several inputs, and {what}; give videos alone, and a folder as --out")


def _predict_videos(model: Any, files: list[str], out: Path, options: dict[str, Any]) -> None:
    """Predict videos, one after the other, and print a line or two about each."""
    from fsanet.convert import load_model
    from fsanet.predict.video import predict_video

    network, incomplete = load_model(model), list[str]()
    for file in files:
        try:
            result = predict_video(network, file, out, **options)
        except InputError as error:  # the others are predicted all the same
            incomplete.append(str(error))
            continue
        print(escaped(_about(result)))
        if result.problem is not None:
            incomplete.append(
                f"{file}: ends after {result.frames} frames ({result.problem}), which are in "
                f"{result.file}"
            )
    if incomplete:
        several = f"{len(incomplete)} of {len(files)} videos are incomplete, the first: "
        raise InputError((several if len(files) > 1 else "") + incomplete[0])


def _about(result: VideoResult) -> str:
    """What is printed of a video."""
    line = f"{result.frames} frames in {result.file}"
    if not math.isnan(result.flicker):
        line += f"; flicker: {100 * result.flicker:.2f} % of pixels change class per frame"
    if result.smoothed is not None and not math.isnan(result.smoothed):
        line += f", {100 * result.smoothed:.2f} % after smoothing"
    return line


def _folder(out: Path | None, cityscapes_export: Path | None) -> Path:
    if out is None and cityscapes_export is None:
        raise InputError("--out is missing; give the folder to write to")
    return Path(f"{cityscapes_export}.parts") if out is None else out


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_FINISHING = ("images", "recursive", "out", "cityscapes_export", "format", "uncertain")


def _finish(
    images: list[str],
    recursive: bool,
    out: Path | None,
    cityscapes_export: Path | None,
    format: Any,
    uncertain: int | None,
) -> None:
    """Write the zip file if there is to be one, and print what was done."""
    from fsanet.data.images import list_images
    from fsanet.inputs import read_json
    from fsanet.predict.folder import remove_results
    from fsanet.predict.launch import this_process

    folder = _folder(out, cityscapes_export)
    summary = read_json(folder / "summary.json", "summary")
    if "state" in summary:
        return  # other machines are still working
    if cityscapes_export is not None:
        from fsanet.data.datasets.cityscapes import write_submission

        refused = write_submission(folder, cityscapes_export)
        if refused:
            print(
                f"fsanet: warning: {len(refused)} predictions are not 2048 x 1024 pixels, which "
                f"the server refuses; the first is {refused[0]}",
                file=sys.stderr,
            )
        if out is None and this_process().world_size == 1:  # else others may still read it
            remove_results(folder)
    if summary["images"] and (format is not None or uncertain is not None):
        from fsanet.predict.annotations import most_uncertain, write_annotations

        files = list_images(images, recursive=recursive)
        if format is not None:
            print(f"annotations in {write_annotations(folder, format, images=files)}")
        if uncertain is not None:
            for image, entropy in most_uncertain(folder, uncertain, images=files):
                print(f"{entropy:.4f}  {escaped(image)}")
    what = _count(summary["images"], "image")
    if "instances" in summary:
        what = f"{_count(summary['instances'], 'instance')} on {what}"
    before = f" ({summary['done_before']} of them before)" if summary["done_before"] else ""
    where = cityscapes_export or folder
    print(f"{what} in {summary['seconds']:.1f} s{before}; results in {where}")
    if summary["failed"]:
        first = summary["failed"][0]["error"]
        raise InputError(f"{len(summary['failed'])} not read, the first: {first}")
