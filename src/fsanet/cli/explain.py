"""`fsanet explain`: why a pixel got its class."""

from __future__ import annotations

from pathlib import Path

from fsanet.cli.help import Section
from fsanet.errors import InputError, printable

HELP = [Section("fsanet.cli.explain:explain")]


def explain(
    image: str,
    *,
    model: str,
    at: str,
    out: Path,
    layer: str | None = None,
    steps: int = 50,
    gradients: bool = True,
    max_side: int = 1024,
    max_pixels: int = 200_000_000,
    device: str | None = None,
) -> int:
    """Show why a pixel got its class.

    Writes what the pixel attends to, what each band of frequencies contributes, what changes when
    one is dropped, and integrated gradients: pictures, explanation.json and report.html.

    Args:
        image: image file.
        model: run folder, model folder, or hub id.
        at: the pixel as X,Y, from the left and from the top.
        out: folder to write to.
        layer: name of the attention layer (default: the last one).
        steps: points of the integral of integrated gradients.
        gradients: compute integrated gradients; --no-gradients leaves them out.
        max_side: a larger image is first reduced until its longer side has this many pixels.
        max_pixels: images with more pixels are refused before they are decoded.
        device: device such as cpu, cuda:1 or mps (default: a GPU if there is one).
    """
    from fsanet.cli.parsing import available_device
    from fsanet.convert import load_model
    from fsanet.data.images import limit_pixels, read_image
    from fsanet.errors import check_range
    from fsanet.files import check_writable
    from fsanet.predict.draw import percent
    from fsanet.progress import ConsoleProgress
    from fsanet.report.explain import check_pixel, reduce_image
    from fsanet.report.explain import explain as explain_pixel
    from fsanet.report.explanation import write_explanation

    pixel = _pixel(at)
    check_range("max_side", max_side, 16, 100_000)
    limit_pixels(max_pixels)
    pixels = read_image(image)
    check_pixel(pixel, pixels)
    network = load_model(model, task="semantic").to(available_device(device))
    check_writable(out)
    pixels, pixel = reduce_image(pixels, pixel, max_side)
    with ConsoleProgress() as progress:
        found = explain_pixel(
            network,
            pixels,
            pixel,
            layer=layer,
            steps=steps,
            gradients=gradients,
            watch=progress.watch,
        )
    report = write_explanation(found, out, source=image, model=network)
    print(
        f"pixel {at} is {printable(found.outcome.class_at_pixel)} "
        f"({percent(found.outcome.probability)}); report: {report}"
    )
    return 0


def _pixel(text: str) -> tuple[int, int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise InputError(f"--at {text}: give a pixel as X,Y, such as 240,180")
    return int(parts[0]), int(parts[1])


def run(arguments: list[str]) -> int:
    from fsanet.cli.parsing import call

    return call(explain, arguments)
