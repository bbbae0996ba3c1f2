"""Whole networks with no attention, regular and frequency attention, side by side.

One network, one set of weights: only the attention inside its head is exchanged, so that nothing
else can make a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.similarity import Similarity
from fsanet.bench.harness import Watch, no_watch, threads, time_subjects
from fsanet.bench.probe import Findings, Limits, Subject, run_probe
from fsanet.bench.results import Timing
from fsanet.bench.timing import Clock, Quartiles, quartiles, ratios
from fsanet.convert import load_model
from fsanet.errors import InputError
from fsanet.files import environment
from fsanet.models import FsaNet

__all__ = ["VARIANTS", "NetworkReport", "NetworkRow", "NetworkSettings", "run_network_bench"]

VARIANTS = ("none", "regular", "frequency")
BASELINE = "none"


@dataclass(frozen=True)
class NetworkSettings:
    """What is measured of a network.

    Attributes:
        source: timm encoder, then with random weights and 19 classes; or a folder of a training
            run or of ``save_pretrained``.
        size: (height, width) of the images.
        similarity, recurrence, k: of frequency attention; None for those of the network.
        rounds: at most.
        seconds: for all rounds.
        limit_seconds: a network that takes longer for one forward pass is left out.
        limit_memory: bytes a network may take beyond its weights; None for 80 % of what is free.
    """

    source: str
    size: tuple[int, int] = (769, 769)
    batch: int = 1
    similarity: Similarity | None = None
    recurrence: int | None = None
    k: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)
    rounds: int = 10
    seconds: float = 120.0
    limit_seconds: float = 120.0
    limit_memory: int | None = None


@dataclass(frozen=True)
class NetworkRow:
    """One variant.

    Attributes:
        variant: "none", "regular" or "frequency".
        findings: parameters, FLOPs and peak memory of a forward pass.
        latency: seconds of a forward pass.
        over_none: these over the seconds without attention, round by round.
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

    def as_dict(self, batch: int) -> dict[str, Any]:
        return asdict(self) | {"images_per_second": self.images_per_second(batch)}


@dataclass(frozen=True)
class NetworkReport:
    """All variants, with what they were measured on."""

    settings: NetworkSettings
    attention: str  # the frequency layer in words
    environment: dict[str, str]
    rows: tuple[NetworkRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "settings": asdict(self.settings),
            "attention": self.attention,
            "environment": self.environment,
            "rows": [row.as_dict(self.settings.batch) for row in self.rows],
        }


def build_network(settings: NetworkSettings) -> FsaNet:
    """The network the settings name, in evaluation mode on its device.

    Raises:
        InputError: an encoder or folder that cannot be used.
    """
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    torch.manual_seed(0)
    source = settings.source
    if Path(source).exists() or "/" in source:
        model = load_model(source, task="semantic")
        if not isinstance(model, FsaNet):
            raise InputError(
                f"{source}: a {type(model).__name__}; only an FsaNet's attention is exchanged here"
            )
    else:
        model = FsaNet(source, num_classes=19, zero_init=False)
    model.auxiliary = None  # it takes part in training only
    return model.to(device=device, dtype=dtype).eval()


def attention_layer(model: FsaNet, variant: str, settings: NetworkSettings) -> nn.Module:
    """A variant's attention for the head of ``model``, with the options of the network's own.

    Its weights are fresh: they do not change the cost.
    """
    own = model.head.attention
    if variant == "none":
        return nn.Identity()
    shared: dict[str, Any] = {"zero_init": False}
    if isinstance(own, (FrequencySelfAttention, SpatialSelfAttention)):
        shared |= {"block": own.block, "qkv_bias": own.qkv_bias}
    channels = model.head.classify.in_channels
    if variant == "regular":
        layer: nn.Module = SpatialSelfAttention(channels, similarity="softmax", **shared)
    else:
        frequency = own if isinstance(own, FrequencySelfAttention) else None
        band: Any = frequency.band if frequency else 8
        recurrence = frequency.recurrence if frequency else 1
        layer = FrequencySelfAttention(
            channels,
            k=band if settings.k is None else settings.k,
            similarity=settings.similarity or (frequency.similarity if frequency else "dot"),
            recurrence=settings.recurrence or recurrence,
            **shared,
        )
    weight = model.head.classify.weight
    return layer.to(device=weight.device, dtype=weight.dtype).eval()


def make_images(settings: NetworkSettings) -> Tensor:
    """(batch, 3, H, W), normal; on a CPU with the channels innermost, as the predictor does."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    images = torch.randn(settings.batch, 3, *settings.size, device=device, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last) if device.type == "cpu" else images


@dataclass(frozen=True)
class NetworkJob:
    """A network and its input, as sent to a probe."""

    settings: NetworkSettings
    variant: str
    device: str
    backward: bool = False

    def prepare(self) -> Subject:
        model = build_network(self.settings)
        model.head.attention = attention_layer(model, self.variant, self.settings)
        return Subject(model, model, make_images(self.settings))


class Marked:
    """A variant's forward pass, with marks where head and attention begin and end."""

    def __init__(self, model: FsaNet, attention: nn.Module, images: Tensor, clock: Clock) -> None:
        self.model, self.attention, self.images, self.clock = model, attention, images, clock
        self.marks: dict[str, Any] = {}
        self.seconds: dict[str, list[float]] = {"whole": [], "head": [], "attention": []}

    def prepare(self) -> None:
        self.model.head.attention = self.attention

    def run(self) -> Tensor:
        hooks = []
        for name, module in (("head", self.model.head), ("attention", self.attention)):
            hooks.append(module.register_forward_pre_hook(self._marker(name, 0)))
            hooks.append(module.register_forward_hook(self._marker(name, 1)))
        try:
            with torch.no_grad():
                start = self.clock.mark()
                logits = self.model(self.images)
                self.marks["whole"] = [start, self.clock.mark()]
        finally:
            for hook in hooks:
                hook.remove()
        for name, (begin, end) in self.marks.items():
            self.seconds[name].append(self.clock.seconds(begin, end))
        return logits

    def shares(self, name: str) -> Quartiles | None:
        """Of the head or the attention in the whole, run by run, the first one (cold) left out."""
        pairs = zip(self.seconds[name], self.seconds["whole"], strict=True)
        return quartiles([part / whole for part, whole in pairs][1:])

    def _marker(self, name: str, index: int) -> Callable[..., None]:
        def mark(*_: object) -> None:
            if index == 0:
                self.marks[name] = [self.clock.mark()]
            else:
                self.marks[name].append(self.clock.mark())

        return mark


def run_network_bench(settings: NetworkSettings, *, watch: Watch = no_watch) -> NetworkReport:
    """Measure the network with each kind of attention.

    Raises:
        InputError: an encoder or folder that cannot be used.
    """
    with threads(settings.threads):
        model = build_network(settings)  # before the probes: bad input is told at once
        images, clock = make_images(settings), Clock(torch.device(settings.device))
        attention = {name: attention_layer(model, name, settings) for name in VARIANTS}
        step = watch("probe", len(VARIANTS))
        findings = {}
        for variant in VARIANTS:
            limits = Limits.of(settings.limit_seconds, settings.limit_memory, settings.threads)
            findings[variant] = run_probe(NetworkJob(settings, variant, settings.device), limits)
            step(variant)
        subjects = {
            name: Marked(model, attention[name], images, clock)
            for name in VARIANTS
            if findings[name].problem is None
        }
        timings, problems = time_subjects(
            subjects,
            device=torch.device(settings.device),
            baseline=BASELINE,
            rounds=settings.rounds,
            seconds=settings.seconds,
            watch=lambda text, count: watch(f"forward{text}", count),
        )
        about = environment(settings.device)
    rows = []
    for name in VARIANTS:
        found = replace(findings[name], problem=findings[name].problem or problems.get(name))
        if name not in timings:
            rows.append(NetworkRow(name, found))
            continue
        subject, none = subjects[name], timings.get(BASELINE)
        rows.append(
            NetworkRow(
                name,
                found,
                latency=timings[name],
                over_none=None
                if none is None
                else quartiles(ratios(timings[name].rounds, none.rounds)),
                head=subject.shares("head"),
                attention=subject.shares("attention") if name != "none" else None,
            )
        )
    layer = attention["frequency"]
    return NetworkReport(
        settings, f"{type(layer).__name__}({layer.extra_repr()})", about, tuple(rows)
    )
