"""`fsanet serve`: segment images on a page in the browser."""

from __future__ import annotations

from fsanet.cli.help import Section

HELP = [Section("fsanet.cli.serve:serve")]


def serve(
    *,
    model: str,
    compare: str | None = None,
    port: int = 7860,
    window: int | tuple[int, int] | None = None,
    max_file_mb: int = 20,
    max_pixels: int = 20_000_000,
    device: str | None = None,
) -> int:
    """Serve a page on this machine: drop an image, see its classes, click a pixel.

    The page shows the mask over the image, the area of each class, and what a clicked pixel attends
    to; k can be changed without retraining, and mask and areas can be downloaded. The page can be
    reached only from this machine, loads nothing from elsewhere, and keeps no upload. Ctrl-C ends
    it.

    Args:
        model: run folder, model folder, or hub id.
        compare: a second network, shown beside the first.
        port: port on 127.0.0.1.
        window: side of the sliding window in pixels, or height and width (default: whole images).
        max_file_mb: largest upload in megabytes.
        max_pixels: images with more pixels are refused before they are decoded.
        device: device such as cpu, cuda:1 or mps (default: a GPU if there is one).
    """
    from fsanet.cli.parsing import available_device
    from fsanet.convert import load_model
    from fsanet.errors import check_range
    from fsanet.report.serve import Page, ServedModel

    check_range("port", port, 1, 65535)
    device = available_device(device)
    models = [
        ServedModel(name, load_model(name, task="semantic").to(device), window)
        for name in (model, compare)
        if name is not None
    ]
    page = Page(models, max_file_mb=max_file_mb, max_pixels=max_pixels)
    try:
        print(f"open {page.start(port)} in a browser; Ctrl-C ends it", flush=True)
        page.wait()
    finally:
        page.stop()
    return 0


def run(arguments: list[str]) -> int:
    from fsanet.cli.parsing import call

    return call(serve, arguments)
