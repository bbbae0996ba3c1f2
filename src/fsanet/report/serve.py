"""A page in the browser: drop an image, see its classes, click a pixel to see what it attends to.

Made with gradio, bound to 127.0.0.1. Nothing is loaded from elsewhere, analytics and sharing are
off, one request runs at a time, and what is uploaded is removed as soon as it is read.

Legend: H x W image, R rounds, h x w grid of the attention.
"""

from __future__ import annotations

import html
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from fsanet.attention.dct import Band
from fsanet.data.images import limit_pixels, read_image
from fsanet.errors import InputError, check_range, check_ranges, one_line
from fsanet.files import model_summary
from fsanet.predict.draw import enlargement, heat_map, percent
from fsanet.predict.predictor import Predictor
from fsanet.predict.result import Segmentation
from fsanet.report.explain import attend_from, find_layer, reduce_image, uniform_weight

__all__ = ["Page", "ServedModel"]

_LOG = logging.getLogger(__name__)
_LONGEST_SIDE = 1024  # pixels of an image whose attention is shown
_LARGEST_K = 64
_KEPT = 1800  # seconds that results of a visitor are kept
_STYLE = """
.legend, .legend tr, .legend td {border: 0 !important}
.legend td {padding: 2px 10px 2px 0} .legend td:last-child {text-align: right}
.legend i {display: inline-block; width: 14px; height: 14px; border-radius: 3px;
  vertical-align: -2px; margin-right: 8px; border: 1px solid rgba(0, 0, 0, .3)}
.drawn img {width: 100% !important; height: auto !important}
.overlay img {image-rendering: pixelated; cursor: crosshair}
footer {display: none !important}
"""


class ServedModel:
    """A network on the page, with a band of frequencies that can be changed.

    Args:
        name: heading.
        model: a segmentation network.
        window: side of the sliding window, see `fsanet.Predictor`; None for the whole image.
    """

    def __init__(
        self, name: str, model: nn.Module, window: int | tuple[int, int] | None = None
    ) -> None:
        self.name = name
        self.predictor = Predictor(model, window=window)
        self.summary = model_summary(model)
        modules: list[Any] = list(model.modules())
        self._saved: list[tuple[Any, Band]] = [
            (one, one.band) for one in modules if isinstance(getattr(one, "band", None), Band)
        ]

    @property
    def k(self) -> int | None:
        """The saved k, as near as one number can say it; None without frequency attention."""
        ends = [end for _, band in self._saved for end in (band.h1, band.w1)]
        if not ends:
            return None
        return max(_LARGEST_K if end is None else min(end, _LARGEST_K) for end in ends)

    def set_k(self, k: int) -> None:
        """Keep the lowest k x k frequencies; for the saved k, the bands as they were saved.

        Raises:
            InputError: k is no whole number, or out of range.
        """
        check_range("k", k, 1, _LARGEST_K)
        for module, band in self._saved:
            module.band = band if k == self.k else Band.of(k)

    def attend(self, image: Tensor, at: tuple[int, int]) -> tuple[Image.Image, str]:
        """What a pixel of an image (3, H, W) attends to in the last round, with a line about it.

        Raises:
            InputError: no attention layer over maps.
        """
        smaller, pixel = reduce_image(image, at, _LONGEST_SIDE)
        rows = attend_from(self.predictor.model, smaller, pixel)  # (R, h, w)
        _, layer = find_layer(self.predictor.model)
        uniform = uniform_weight(layer, rows[-1])
        last = f"in round {len(rows)} of {len(rows)}, " if len(rows) > 1 else ""
        line = (
            f"{last}weights {rows[-1].min():.2g} to {rows[-1].max():.2g}, red above "
            f"{uniform:.2g}, blue below."
        )
        drawn = heat_map(rows[-1].numpy(), smaller.numpy(), at=pixel, centre=uniform)
        return drawn, line


@dataclass
class Visit:
    """What is kept of a visitor's image: pixels (3, H, W), results, and files for download."""

    image: Tensor
    stem: str
    results: list[Segmentation] = field(default_factory=list)
    folder: tempfile.TemporaryDirectory[str] | None = None

    def __deepcopy__(self, memo: object) -> Visit:  # gradio copies what it keeps
        return self


class Page:
    """The page for one network, or for two side by side.

    Args:
        models: one or two.
        max_file_mb: largest upload in megabytes.
        max_pixels: images with more pixels are refused before they are decoded.

    Raises:
        InputError: gradio is not installed, or a number is out of range.
    """

    def __init__(
        self, models: Sequence[ServedModel], *, max_file_mb: int = 20, max_pixels: int = 20_000_000
    ) -> None:
        check_ranges({"max_file_mb": (max_file_mb, 1, 10_000)})
        limit_pixels(max_pixels)
        self.models, self.max_file_mb, self.max_pixels = list(models), max_file_mb, max_pixels
        self._files = tempfile.TemporaryDirectory(prefix="fsanet-serve-")
        os.environ["GRADIO_TEMP_DIR"] = str(Path(self._files.name, "gradio"))
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            import gradio
        except ImportError as error:
            raise InputError("the page needs gradio: pip install 'fsanet[serve]'") from error
        self._gradio: Any = gradio
        # These two print the traceback of whatever a request raises, be it the request's own fault.
        for module in (self._gradio.queueing, self._gradio.routes):
            module.traceback = SimpleNamespace(print_exc=_log_error)
        self._blocks: Any = self._build()

    def start(self, port: int | None) -> str:
        """Serve on a port of 127.0.0.1, a free one for None, in threads; returns the address.

        Raises:
            InputError: the port is taken.
        """
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        gradio = self._gradio
        font = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]
        mono = ["ui-monospace", "Consolas", "monospace"]
        # Another site whose name leads to 127.0.0.1 has a host of its own.
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
        try:
            _, address, _ = self._blocks.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                footer_links=[],
                max_file_size=self.max_file_mb * 2**20,  # gradio's megabyte, in its message
                ssr_mode=False,
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                state_session_capacity=50,
                app_kwargs={"middleware": [hosts, Middleware(_OneLineErrors)]},
                theme=gradio.themes.Default(font=font, font_mono=mono),
                css=_STYLE,
            )
        except OSError as error:
            raise InputError(
                f"port {port} of 127.0.0.1 cannot be used ({one_line(error)}); give another --port"
            ) from error
        return str(address)

    @property
    def files(self) -> Path:
        """The folder of all files of this page; removed by `stop`."""
        return Path(self._files.name)

    def wait(self) -> None:
        """Wait until the program is interrupted."""
        threading.Event().wait()

    def stop(self) -> None:
        """End serving, and remove all files."""
        self._blocks.close(verbose=False)
        self._files.cleanup()

    # --- what the page does -----------------------------------------------------------------

    def _segment(self, visit: Visit, k: int | None) -> None:
        """Predict with each network, and write the files for download."""
        results, folder = [], tempfile.TemporaryDirectory(dir=self._files.name)
        for number, served in enumerate(self.models):
            if k is not None:
                served.set_k(k)
            result = served.predictor(visit.image)
            extra = {"model": served.summary, "k": k if served.k is not None else None}
            result.save(folder.name, self._stem(visit, number), overlay=False, extra=extra)
            results.append(result)
        visit.results, visit.folder = results, folder

    def _stem(self, visit: Visit, number: int) -> str:
        return visit.stem if len(self.models) == 1 else f"{visit.stem}-{'AB'[number]}"

    def _change_opacity(self, visit: Visit | None, alpha: float) -> list[Any]:
        with self._messages():
            return self._shown(visit, alpha)

    def _shown(self, visit: Visit | None, alpha: float) -> list[Any]:
        """Values of overlay, legend and both downloads, for each network."""
        if visit is None or visit.folder is None:
            return [None, "", None, None] * len(self.models)
        values: list[Any] = []
        for number, result in enumerate(visit.results):
            file = Path(visit.folder.name, self._stem(visit, number))
            overlay = result.overlay(alpha=alpha, legend=False)
            # Not enlarged by the page: gradio would then misplace clicks.
            factor = enlargement(overlay.height, overlay.width)
            overlay = overlay.resize(
                (overlay.width * factor, overlay.height * factor), Image.Resampling.NEAREST
            )
            values += [overlay, legend_table(result), f"{file}_mask.png", f"{file}.json"]
        return values

    def _upload(self, file: str | None, k: int | None, alpha: float) -> list[Any]:
        if file is None:
            return [None, None, "", *self._shown(None, alpha), *self._no_attention()]
        path = Path(file)
        try:
            try:
                visit = Visit(read_image(path), path.stem[:80])
            finally:
                path.unlink(missing_ok=True)
            self._segment(visit, k)
            height, width = visit.image.shape[1:]
            about = (
                f"**{_plain(path.name)}**, {width} x {height} pixels. Click a pixel to see what it "
                "attends to."
            )
            return [None, visit, about, *self._shown(visit, alpha), *self._no_attention()]
        except InputError as error:  # passed on, it would leave an error in each part of the page
            text = str(error).replace(str(path), path.name)
            self._gradio.Warning(html.escape(text), duration=None)
            return self._upload(None, k, alpha)

    def _change_k(self, visit: Visit | None, k: int, alpha: float) -> list[Any]:
        with self._messages():
            if visit is not None:
                self._segment(visit, k)
            return [visit, *self._shown(visit, alpha), *self._no_attention()]

    def _click(self, visit: Visit | None, k: int | None, event: Any) -> list[Any]:
        if visit is None:
            return self._no_attention()
        height, width = visit.image.shape[1:]
        values: list[Any] = []
        with self._messages():
            x, y = (value // enlargement(height, width) for value in _pixel(event.index))
            at = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            for served, result in zip(self.models, visit.results, strict=True):
                if k is not None:
                    served.set_k(k)
                name = result.classes[int(result.mask[at[1], at[0]])]
                about = f"Pixel {at[0]},{at[1]} is **{_plain(name)}**"
                try:
                    drawn, line = served.attend(visit.image, at)
                    values += [drawn, f"{about} and attends to this: {line}"]
                except InputError as error:
                    values += [None, f"{about}. {error}"]
        return values

    def _no_attention(self) -> list[Any]:
        return [None, ""] * len(self.models)

    @contextmanager
    def _messages(self) -> Iterator[None]:
        """Show an `InputError` to the visitor."""
        try:
            yield
        except InputError as error:
            raise self._gradio.Error(
                html.escape(str(error)), duration=None, print_exception=False
            ) from error

    # --- how it looks -----------------------------------------------------------------------

    def _build(self) -> Any:
        gr = self._gradio
        ks = dict.fromkeys(served.k for served in self.models if served.k is not None)
        limits = f"up to {self.max_file_mb} MB and {self.max_pixels / 1e6:g} million pixels"
        with gr.Blocks(
            title="fsanet", analytics_enabled=False, delete_cache=(300, _KEPT), fill_width=True
        ) as blocks:
            gr.Markdown("# fsanet")
            visit = gr.State(None, time_to_live=_KEPT)
            with gr.Row():
                file = gr.File(
                    label=f"Drop an image here, {limits}", elem_id="upload", height=140, scale=2
                )
                with gr.Column(scale=1):
                    alpha = gr.Slider(0, 1, 0.5, step=0.05, label="opacity", elem_id="opacity")
                    k = gr.Slider(
                        1,
                        _LARGEST_K,
                        max(ks, default=8),
                        step=1,
                        label=f"k, frequencies kept per axis (saved: {' and '.join(map(str, ks))})",
                        visible=bool(ks),
                        elem_id="k",
                    )
            about = gr.Markdown("", elem_id="about")
            shown, attention, pictures = [], [], []
            with gr.Row():
                for number, served in enumerate(self.models):
                    with gr.Column(min_width=300):
                        gr.Markdown(f"### {_plain(served.name)}")
                        overlay = gr.Image(
                            show_label=False,
                            format="png",
                            interactive=False,
                            buttons=["fullscreen"],
                            elem_id=f"overlay-{number}",
                            elem_classes=["drawn", "overlay"],
                        )
                        legend = gr.HTML(elem_id=f"legend-{number}")
                        with gr.Row():
                            mask = gr.DownloadButton("mask (PNG)", elem_id=f"mask-{number}")
                            summary = gr.DownloadButton("areas (JSON)", elem_id=f"json-{number}")
                        pictures.append(overlay)
                        shown += [overlay, legend, mask, summary]
                if len(self.models) == 1:  # beside the classes, where another network would be
                    with gr.Column(min_width=300):
                        attention += self._attention_parts("What a pixel attends to", 0)
            if len(self.models) > 1:  # in a row of its own: legends differ in height
                with gr.Row():
                    for number, served in enumerate(self.models):
                        with gr.Column(min_width=300):
                            heading = f"What a pixel attends to in {_plain(served.name)}"
                            attention += self._attention_parts(heading, number)
            one: dict[str, Any] = {
                "concurrency_limit": 1,
                "concurrency_id": "one",
                "api_visibility": "private",
            }
            file.upload(
                self._upload, [file, k, alpha], [file, visit, about, *shown, *attention], **one
            )
            k.release(self._change_k, [visit, k, alpha], [visit, *shown, *attention], **one)
            alpha.release(self._change_opacity, [visit, alpha], shown, **one)

            def click(seen: Visit | None, chosen: int | None, event: Any) -> list[Any]:
                return self._click(seen, chosen, event)

            # Not in the signature, where it would be text: gradio looks for the class.
            click.__annotations__["event"] = gr.SelectData
            for picture in pictures:
                picture.select(click, [visit, k], attention, **one)
        blocks.queue(max_size=32)
        return blocks

    def _attention_parts(self, heading: str, number: int) -> list[Any]:
        """The picture of what a pixel attends to, and the line below it."""
        gr = self._gradio
        gr.Markdown(f"### {heading}")
        row = gr.Image(
            show_label=False,
            elem_classes="drawn",
            format="png",
            interactive=False,
            buttons=["fullscreen"],
            elem_id=f"attention-{number}",
        )
        return [row, gr.Markdown(elem_id=f"line-{number}")]


class _OneLineErrors:
    """Answers a request that the application fails on; a server would print the traceback."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse

        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            _log_error()
            with suppress(RuntimeError):  # an answer has begun
                await JSONResponse({"error": one_line(error)}, 500)(scope, receive, send)


def _log_error() -> None:
    """Log the exception that is being handled; the command line prints such logs on one line."""
    error = sys.exc_info()[1]
    _LOG.error("a request failed: %s: %s", type(error).__name__, error, exc_info=error)


def _pixel(index: Any) -> tuple[int, int]:
    """The x and y that a click has sent."""
    try:
        x, y = (int(value) for value in index)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"pixel {index!r:.50}: must be two numbers, x and y") from error
    return x, y


def legend_table(result: Segmentation) -> str:
    """The classes of a result and their areas as an HTML table, largest first."""
    rows = [
        f'<tr><td><i style="background:rgb({",".join(map(str, colour))})"></i>'
        f"{html.escape(name)}</td><td>{percent(area)}</td></tr>"
        for name, colour, area in result.legend()
    ]
    return f'<table class="legend">{"".join(rows)}</table>'


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return "".join(f"&#{ord(c)};" if not (c.isalnum() or c in " .-") else c for c in text)
