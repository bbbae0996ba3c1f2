"""A whole network with no attention, with regular and with frequency attention, side by side.

It is one network with one set of weights: only the attention in its head is exchanged, so that
nothing else can make a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fsanet.attention import AttentionKind, FrequencySelfAttention, make_attention
from fsanet.attention.block import AttentionBlock
from fsanet.attention.similarity import Similarity
from fsanet.bench.measure import (
    Findings,
    Settings,
    Subject,
    Timing,
    measure_alone,
    time_passes,
    torch_threads,
)
from fsanet.convert import load_model
from fsanet.cost import (
    Clock,
    Quartiles,
    Timed,
    Watch,
    count_flops,
    count_parameters,
    no_watch,
    ratios,
)
from fsanet.errors import InputError, check_range, one_line
from fsanet.files import environment
from fsanet.models import FsaNet

__all__ = ["VARIANTS", "NetworkReport", "NetworkRow", "NetworkSettings", "compare_networks"]

VARIANTS: dict[str, AttentionKind | None] = {
    "none": None,
    "regular": "spatial",
    "frequency": "frequency",
}


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Which network is measured, and how.

    Attributes:
        source: a timm encoder, for a network with random weights and 19 classes; or the folder of
            a training run or of ``save_pretrained``.
        size: (height, width) of the images.
        similarity: similarity of frequency attention; None for that of the network.
        recurrence: rounds of frequency attention; None for those of the network.
        k: band of frequency attention; None for that of the network.
    """

    source: str
    size: tuple[int, int] = (769, 769)
    similarity: Similarity | None = None
    recurrence: int | None = None
    k: int | None = None
    rounds: int = 10
    seconds: float = 120.0
    limit_seconds: float = 120.0


@dataclass(frozen=True)
class NetworkRow:
    """The network with one kind of attention.

    Attributes:
        variant: "none", "regular" or "frequency".
        findings: parameters, FLOPs and peak memory of a forward pass.
        latency: times of a forward pass.
        over_none: these over the time without attention, round by round.
        head: share of the forward pass spent in the head, 0..1.
        attention: share spent in the attention layer, 0..1.
    """

    variant: str
    findings: Findings
    latency: Timing | None = None
    over_none: Quartiles | None = None
    head: Quartiles | None = None
    attention: Quartiles | None = None

    def images_per_second(self, batch: int) -> float | None:
        return None if self.latency is None else batch / self.latency.seconds.median


@dataclass(frozen=True)
class NetworkReport:
    """All variants, with the settings and the machine they were measured with."""

    settings: NetworkSettings
    attention: str  # the frequency layer, in words
    environment: dict[str, str]
    rows: tuple[NetworkRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        batch = self.settings.batch
        return {
            "settings": asdict(self.settings),
            "attention": self.attention,
            "environment": self.environment,
            "rows": [
                {**asdict(row), "images_per_second": row.images_per_second(batch)}
                for row in self.rows
            ],
        }


def compare_networks(settings: NetworkSettings, *, watch: Watch = no_watch) -> NetworkReport:
    """Measure the network with each kind of attention.

    Raises:
        InputError: for an encoder or a folder that cannot be used.
    """
    settings.check_input(3, settings.size)
    check_range("recurrence", settings.recurrence or 1, 1, 1000)
    with torch_threads(settings.threads):
        model = build_network(settings)  # first of all, so that bad input is reported at once
        images, clock = make_images(settings), Clock(torch.device(settings.device))
        attention = {name: attention_layer(model, name, settings) for name in VARIANTS}
        findings = {}
        step = watch("memory", len(VARIANTS))
        for name in VARIANTS:
            make = partial(make_network, settings, name)
            counted = _count(model, attention[name], images)
            findings[name] = measure_alone(make, settings, counted, backward=False)
            step(name)
        passes = {
            name: MarkedPass(model, attention[name], images, clock)
            for name in VARIANTS
            if findings[name].problem is None
        }
        timings, problems = time_passes(
            {name: Timed(one.run, one.prepare) for name, one in passes.items()},
            settings,
            baseline="none",
            seconds=settings.seconds,
            watch=lambda phase, count: watch(f"forward {phase}".strip(), count),
        )
        about = environment(settings.device)
    rows = []
    for name in VARIANTS:
        found = replace(findings[name], problem=findings[name].problem or problems.get(name))
        row = NetworkRow(name, found)
        if name in timings:
            none = timings.get("none")
            over = None if none is None else ratios(timings[name].rounds, none.rounds)
            row = NetworkRow(
                name,
                found,
                latency=timings[name],
                over_none=None if over is None else Quartiles.of(over),
                head=passes[name].share("head"),
                attention=passes[name].share("attention") if name != "none" else None,
            )
        rows.append(row)
    layer = attention["frequency"]
    words = f"{type(layer).__name__}({layer.extra_repr()})"
    return NetworkReport(settings, words, about, tuple(rows))


def build_network(settings: NetworkSettings) -> FsaNet:
    """Build or load the network, in evaluation mode on its device.

    Raises:
        InputError: for an encoder or a folder that cannot be used.
    """
    torch.manual_seed(0)
    source = settings.source
    if Path(source).exists() or "/" in source:
        model = load_model(source, task="semantic")
        if not isinstance(model, FsaNet):
            raise InputError(
                f"{source} holds a {type(model).__name__}; give an FsaNet, whose attention can be "
                "exchanged"
            )
    else:
        model = FsaNet(source, num_classes=19, zero_init=False)
    model.auxiliary = None  # used in training only
    return model.to(device=settings.device, dtype=settings.torch_dtype).eval()


def attention_layer(model: FsaNet, variant: str, settings: NetworkSettings) -> nn.Module:
    """Build a variant's attention for the head of ``model``, configured like the network's own.

    Its weights are random: they do not change the cost.
    """
    own = model.head.attention
    options: dict[str, Any] = {"zero_init": False}
    if isinstance(own, AttentionBlock):
        options |= {"block": own.block, "qkv_bias": own.qkv_bias}
    if variant == "regular":
        options |= {"similarity": "softmax"}
    elif isinstance(own, FrequencySelfAttention):
        options |= {"k": own.band, "similarity": own.similarity, "recurrence": own.recurrence}
    if variant == "frequency":
        asked = {name: getattr(settings, name) for name in ("k", "similarity", "recurrence")}
        options |= {name: value for name, value in asked.items() if value is not None}
    weight = cast(nn.Conv2d, model.head.reduce[0]).weight
    layer = make_attention(VARIANTS[variant], weight.shape[0], **options)
    return layer.to(device=weight.device, dtype=weight.dtype).eval()


def make_images(settings: NetworkSettings) -> Tensor:
    """Random images (batch, 3, H, W); on a CPU channels-last, as the predictor uses them."""
    shape = settings.batch, 3, *settings.size
    images = torch.randn(shape, device=settings.device, dtype=settings.torch_dtype)
    on_cpu = images.device.type == "cpu"
    return images.contiguous(memory_format=torch.channels_last) if on_cpu else images


def make_network(settings: NetworkSettings, variant: str) -> Subject:
    """Build the network with a variant's attention, and its input."""
    model = build_network(settings)
    model.head.attention = attention_layer(model, variant, settings)
    return Subject(model, model, make_images(settings))


class MarkedPass:
    """A variant's forward pass that records when head and attention begin and end."""

    def __init__(self, model: FsaNet, attention: nn.Module, images: Tensor, clock: Clock) -> None:
        self.model, self.attention, self.images, self.clock = model, attention, images, clock
        self.seconds: dict[str, list[float]] = {"whole": [], "head": [], "attention": []}

    def prepare(self) -> None:
        self.model.head.attention = self.attention

    def run(self) -> Tensor:
        marks: dict[str, list[Any]] = {"whole": [], "head": [], "attention": []}

        def marker(name: str) -> Callable[..., None]:
            return lambda *_: marks[name].append(self.clock.mark())

        hooks = []
        for name, module in (("head", self.model.head), ("attention", self.attention)):
            hooks.append(module.register_forward_pre_hook(marker(name)))
            hooks.append(module.register_forward_hook(marker(name)))
        try:
            marker("whole")()
            with torch.no_grad():
                logits = self.model(self.images)
            marker("whole")()
        finally:
            for hook in hooks:
                hook.remove()
        for name, (begin, end) in marks.items():
            self.seconds[name].append(self.clock.seconds(begin, end))
        return logits

    def share(self, name: str) -> Quartiles | None:
        """Share of "head" or "attention" in each pass, the first (cold) one left out."""
        pairs = zip(self.seconds[name], self.seconds["whole"], strict=True)
        shares = [part / whole for part, whole in pairs][1:]
        return Quartiles.of(shares) if shares else None


def _count(model: FsaNet, attention: nn.Module, images: Tensor) -> Findings:
    """Parameters and FLOPs of the network with an attention layer; nothing is computed."""
    model = copy.deepcopy(model)
    model.head.attention = copy.deepcopy(attention)
    model.to("meta")
    try:
        with torch.no_grad():
            flops = count_flops(lambda: model(images.to("meta")))
    except (RuntimeError, ValueError) as error:
        size = "x".join(map(str, images.shape[2:]))
        raise InputError(f"the network takes no {size} image ({one_line(error)})") from error
    return Findings(parameters=count_parameters(model), flops=flops)
