"""`fsanet convert`: replace the attention of a trained network, or open a published checkpoint."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fsanet.cli.help import EVALUATION, Section
from fsanet.errors import InputError, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from fsanet.cli.recipe import Test

HELP = [
    Section("fsanet.cli.convert:convert", skip={"test"}),
    EVALUATION,
    Section(
        "fsanet.cli.convert:convert_checkpoint",
        "instead, to open a published checkpoint: fsanet convert FILE --from NAME --out OUT",
    ),
]

Similarity = Literal["dot", "linear_softmax", "linear", "softmax"]


def run(arguments: list[str]) -> int:
    if any(text == "--from" or text.startswith("--from=") for text in arguments):
        from fsanet.cli.parsing import call

        return call(convert_checkpoint, arguments)
    from fsanet.cli.recipe import call_with_data

    return call_with_data(convert, arguments, need_data=False)


def convert(
    model: str,
    *,
    test: Test,
    out: str,
    k: list[str] | None = None,
    match: list[str] | None = None,
    similarity: Similarity | None = None,
    route: Literal["tokens", "grid"] = "tokens",
    grid: int = 16,
    calibrate: float | None = None,
    by: Literal["error", "miou"] = "error",
    images: list[str] | None = None,
    calibrate_images: int = 4,
    route_error: bool = False,
    eval: bool = False,
    size: int | tuple[int, int] = 512,
    overwrite: bool = False,
) -> int:
    """Replace the attention of a trained network, with its weights and without retraining.

    --eval and --calibrate test networks with the options of fsanet eval; a run folder knows its own
    data. With --from, a published checkpoint is opened instead.

    Args:
        model: run folder, model folder, or a SegFormer of transformers.
        test: the data, and how networks are tested.
        out: folder for the converted network.
        k: frequencies to keep: 8, 8,6 (rows, columns), 0:8,0:6 (ranges), all; or PATTERN=K ... by
            module name; by default 8.
        match: patterns for the names of the modules to convert; by default all.
        similarity: similarity of the converted attention; by default the network's own.
        route: softmax over all keys (tokens), or over a grid of keys evaluated from coefficients.
        grid: points per side of that grid.
        calibrate: choose k for each module, the smallest within this tolerance.
        by: what the tolerance limits: the relative error, or the drop in mIoU (slow).
        images: images to calibrate on; by default from the val split of the data.
        calibrate_images: number of images from the val split.
        route_error: print the error of the grid route for several grids.
        eval: print mIoU, time and memory before and after.
        size: image size to count FLOPs for.
        overwrite: replace the network in the output folder.
    """
    from fsanet.files import check_writable

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of the profiler that measures memory
    folder = Path(out)
    by_miou = calibrate is not None and by == "miou"
    needs_images = (calibrate is not None or route_error) and not images
    if folder.resolve() in (Path(model).resolve(), Path(model, "model").resolve()):
        raise InputError(f"--out {out}: is the folder of the model; give another one")
    if (folder / "config.json").exists() and not overwrite:
        raise InputError(f"--out {out}: holds a network; give another folder, or --overwrite")
    if calibrate is not None and k is not None:
        raise InputError("--calibrate chooses k itself: leave out --k or --calibrate")
    if by == "miou" and calibrate is None:
        raise InputError("--by miou requires --calibrate")
    check_range("calibrate_images", calibrate_images, 1, 10**6)
    if calibrate is not None:
        check_range("calibrate", calibrate, 0.0, 1e6)
    pixels = (size, size) if isinstance(size, int) else size
    if min(pixels) < 1 or max(pixels) > 100_000:
        raise InputError(f"--size {size}: give a side, or height and width, in pixels, to 100000")
    check_writable(folder)
    if test.data is None and (eval or by_miou or needs_images):
        raise InputError(
            f"{model}: not a run folder, so its data are not known; give --data, or --images to "
            "calibrate on"
        )
    from fsanet.convert import calibrate as choose_k
    from fsanet.convert import compare_grids, convert_attention, load_model
    from fsanet.convert.calibration import error_table
    from fsanet.convert.conversion import to_json
    from fsanet.convert.saved import save_like
    from fsanet.files import environment, write_bytes, write_json
    from fsanet.report.conversion import network_inputs
    from fsanet.report.figures import draw_calibration

    network: Any = load_model(model, task="semantic").eval()
    options: dict[str, Any] = {"similarity": similarity, "match": tuple(match or ["*"])}
    options |= {"route": route, "grid": grid}
    report: dict[str, Any] = {"model": model, "options": options}
    bands: Any = _bands(k or ["8"])
    inputs: list[Tensor] = []
    if calibrate is not None or route_error:
        inputs = network_inputs(network, _calibration_images(images, test.data, calibrate_images))
    if calibrate is not None:
        metric = (lambda candidate: test.evaluate(candidate).miou) if by_miou else None
        found = choose_k(network, inputs, tolerance=calibrate, metric=metric, **options)
        picture = folder / "calibration.png"
        write_json(folder / "calibration.json", found.as_dict())
        write_bytes(picture, draw_calibration(found))
        print(f"{found.table()}\ndrawn in {picture}\n")
        if not found.k:
            raise InputError(
                f"--calibrate {calibrate}: no k keeps any module within it; nothing was "
                f"converted, {picture} shows the errors"
            )
        bands = {glob.escape(name): side for name, side in found.k.items()}
        options["match"] = "*"
    if route_error:
        band = 8 if isinstance(bands, dict) else bands
        errors = compare_grids(network, inputs, k=band, match=options["match"])
        print(f"route grid compared with route tokens, relative error:\n{error_table(errors)}\n")
        report["route_error"] = errors
    conversion = convert_attention(network, bands, **options)
    print(conversion.table(pixels))
    flops = conversion.flops(pixels)
    report["modules"] = [module.as_dict() for module in conversion.modules]
    report["flops"] = {"size": list(pixels), "before": flops.before, "after": flops.after}
    if eval:
        report["evaluation"] = _evaluate(network, conversion.model, test)
    save_like(conversion, model, folder)
    write_json(folder / "report.json", to_json(report) | {"versions": environment()})
    print(f"saved in {out}; load with fsanet.load_model({out!r})")
    return 0


def convert_checkpoint(
    file: str,
    *,
    from_: Literal["ccnet", "mmseg"],
    out: str,
    similarity: Similarity | None = None,
    k: str | None = None,
    recurrence: int | None = None,
    align_corners: bool | None = None,
    classes: str | None = None,
    drop_biases: bool = False,
    leave_out: list[str] | None = None,
    overwrite: bool = False,
) -> int:
    """Convert a published checkpoint into a folder for fsanet.load_model.

    What the weights do not determine is taken from the paper's recipes unless it is given. ccnet:
    dot, k=8, recurrence 2. mmseg, the paper's FSA head: dot, k=5, recurrence 2. mmseg, its own
    non-local networks: regular softmax attention, recurrence 1; --k makes it frequency attention.
    Corners are aligned for Cityscapes only.

    Args:
        file: checkpoint, .pth or .safetensors.
        from_: ccnet, the paper's CCNet-lineage network; mmseg, the paper's
            MMSegmentation head or a nonlocal_r50/r101-d8 checkpoint of MMSegmentation.
        out: folder for config.json and model.safetensors.
        similarity: similarity of the attention.
        k: band of frequencies: 8, 8,6, or ranges 0:8,0:6.
        recurrence: rounds of attention.
        align_corners: how logits are upsampled: true for recipes with crops of 769 and 849, false
            for the others (512x1024 Cityscapes recipes too).
        classes: cityscapes, ade20k, voc, or a text file with one name per line; by default what
            the file says, and cityscapes for ccnet.
        drop_biases: leave out the biases of a non-local network's queries, keys and values, as
            the paper's no-retraining study does.
        leave_out: patterns (* and ?) of published weight names to leave out.
        overwrite: replace the network in the output folder.
    """
    from fsanet.attention.dct import Band
    from fsanet.cli.parsing import read_band
    from fsanet.convert.checkpoints import convert_checkpoint as convert_file
    from fsanet.files import check_writable

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    if (folder / "model.safetensors").exists() and not overwrite:
        raise InputError(f"--out {out}: holds a network; give another folder, or --overwrite")
    check_writable(folder)
    network = convert_file(
        file,
        from_,
        similarity=similarity,
        k=None if k is None else Band.of(read_band(k)),
        recurrence=recurrence,
        align_corners=align_corners,
        classes=None if classes is None else _classes(classes),
        drop_biases=drop_biases,
        leave_out=leave_out or [],
    )
    network.build().save_pretrained(folder)
    arguments = network.arguments
    band = f", k={arguments['k']}" if arguments["attention"] == "frequency" else ""
    print(f"{file}: {network.kind}, {arguments['encoder']}, {len(network.weights)} weights")
    print(
        f"attention: {arguments['attention']}, similarity={arguments['similarity']}{band}, "
        f"recurrence={arguments['recurrence']}{', with biases' if arguments['qkv_bias'] else ''}; "
        f"align_corners={arguments['align_corners']}; {arguments['num_classes']} classes"
    )
    if network.assumed:
        values = ", ".join(f"{name}={value}" for name, value in network.assumed.items())
        print(f"assumed, as the file does not say: {values}")
    for name in network.left_out:
        print(f"left out: {name}")
    if not arguments["aux_channels"]:
        print("no auxiliary head in the file (only used in training)")
    print(f"saved in {out}; load with fsanet.load_model({out!r})")
    return 0


def _bands(texts: list[str]) -> Any:
    from fsanet.cli.parsing import read_band

    if len(texts) == 1 and "=" not in texts[0]:
        return read_band(texts[0])
    bands = {}
    for text in texts:
        pattern, equals, band = text.rpartition("=")
        if not equals:
            raise InputError(f"--k {text}: with several, each has to be PATTERN=K")
        bands[pattern] = read_band(band)
    return bands


def _calibration_images(paths: list[str] | None, data: Any, count: int) -> list[Any]:
    """Files, or images spread over the validation split."""
    from fsanet.data.images import list_images

    if paths:
        return [*list_images(paths)]
    data.prepare_data()
    data.setup("validate")
    dataset = data.dataset("val")
    count = min(count, len(dataset))
    return [dataset[index * len(dataset) // count][0] for index in range(count)]


def _evaluate(before: Any, after: Any, test: Test) -> dict[str, dict[str, float]]:
    """Print and return mIoU, time and memory of both networks."""
    import torch

    from fsanet.data.images import read_image
    from fsanet.report.conversion import compare_networks, comparison_table

    split, accelerator = test.options["split"], test.options["accelerator"]
    gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if gpu else "cpu")
    image = read_image(test.data.dataset(split)[0][0])
    found = compare_networks(before, after, test.evaluate, image, device)
    height, width = image.shape[-2:]
    print(f"\n{split} split; time and memory of one {width} x {height} image on {device}:")
    print(comparison_table(found))
    return found


def _classes(text: str) -> str | list[str]:
    from fsanet.data.datasets import LABEL_SETS
    from fsanet.inputs import read_text

    if text in LABEL_SETS:
        return text
    if not Path(text).is_file():
        raise InputError(
            f"--classes {text}: neither {', '.join(LABEL_SETS)} nor a file of class names"
        )
    lines = read_text(text, "class list").splitlines()
    return [line.strip() for line in lines if line.strip()]
