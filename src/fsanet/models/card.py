"""The model card that a saved network gets: README.md with metadata for the Hugging Face hub.

It says what is known of the network and nothing else: of one that `fsanet.train` did not train, no
command and no scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fsanet.errors import escaped

__all__ = ["TrainingFacts", "model_card"]

_LICENSE = "apache-2.0"
_METRICS = {"val/miou": ("mean_iou", "mIoU"), "val/mask_AP": ("mask_ap", "mask AP")}

_SEMANTIC_CODE = """\
import fsanet
predict = fsanet.Predictor(fsanet.load_model("."))  # this folder, or its id on the hub
predict("photo.jpg").overlay().save("overlay.png")"""

_INSTANCE_CODE = """\
import fsanet.predict.predictor
predict = fsanet.predict.predictor.Detector(fsanet.load_model("."))  # this folder, or its hub id
predict("photo.jpg").overlay().save("overlay.png")"""

_PIPELINE = """
Or with transformers (`fsanet.hf` registers the network; no code comes from this folder):

```python
import fsanet.hf, transformers
segment = transformers.pipeline("image-segmentation", model=".")
segment("photo.jpg")
```
"""


@dataclass(frozen=True)
class TrainingFacts:
    """What `fsanet.train.train` knows of a network that it saves.

    Attributes:
        command: the command line, if it was one.
        data: class of the data module.
        images: number of training images.
        step: optimiser steps done.
        metric: validation metric by which these weights were chosen.
        score: its value in 0..1; nan if nothing was validated.
    """

    command: str | None
    data: str
    images: int
    step: int
    metric: str
    score: float


def model_card(
    network: Any, facts: TrainingFacts | None = None, *, license: str = _LICENSE, **metadata: Any
) -> ModelCard:
    """Write the card of a network.

    Args:
        network: a `SavedNetwork`.
        facts: how it was trained, if that is known.
        license: of the weights, as the hub abbreviates it.
        **metadata: further entries of the metadata, such as ``datasets``.
    """
    instances = network.network == "MaskRcnnFsa"
    task = "instance segmentation" if instances else "semantic segmentation"
    config = network._hub_mixin_config
    body = config.get("encoder") or config.get("backbone") or f"SegFormer {config.get('variant')}"
    name = f"{network.network} ({body})"
    results = None
    if facts is not None and not math.isnan(facts.score):
        kind, title = _METRICS.get(facts.metric, (facts.metric, facts.metric))
        results = [
            EvalResult(
                task_type="image-segmentation",
                dataset_type=facts.data.lower(),
                dataset_name=facts.data,
                dataset_split="validation",
                metric_type=kind,
                metric_name=f"{title} (validation split)",
                metric_value=round(facts.score, 6),
            )
        ]
    data = ModelCardData(
        license=license,
        library_name="fsanet",
        pipeline_tag="image-segmentation",
        tags=[task.replace(" ", "-"), "frequency-self-attention"],
        model_name=name,
        eval_results=results,
        **metadata,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_inline(name)}",
        f"A network for {task} with {_attention(config)}, of "
        "[FsaNet](https://arxiv.org/abs/2211.15595), saved by "
        f"fsanet: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters, "
        f"{len(network.classes)} classes.",
        f"```python\n{_INSTANCE_CODE if instances else _SEMANTIC_CODE}\n```",
    ]
    if not instances and len(network.mean) == 3:
        parts.append(_PIPELINE.strip())
    parts += ["## Training", *_training(facts)]
    parts += ["## Classes", _listed(network.classes)]
    parts += ["## Intended use and limits", *_limits(network, instances, facts, license)]
    return ModelCard("\n\n".join(parts) + "\n")


def _training(facts: TrainingFacts | None) -> list[str]:
    if facts is None:
        return ["How these weights were made was not recorded when they were saved."]
    lines = [
        f"Trained on the {facts.images} training images of `{facts.data}`; these are the weights "
        f"after {facts.step} optimiser steps."
    ]
    if facts.command is not None:
        lines.append(f"```sh\n{escaped(facts.command)}\n```")
    if not math.isnan(facts.score):
        _, title = _METRICS.get(facts.metric, (facts.metric, facts.metric))
        lines.append(
            f"{title} on the validation split: {100 * facts.score:.2f} %. These weights were "
            "chosen by it, so on other images expect less."
        )
    return lines


def _limits(network: Any, instances: bool, facts: TrainingFacts | None, license: str) -> list[str]:
    what = "finds instances of the classes above" if instances else "gives each pixel a class"
    lines = [
        f"The network {what}, in images like those it was trained on. On other cameras, places, "
        "weather or resolutions its scores are unknown; measure them before you rely on it "
        "(`fsanet eval`).",
    ]
    if not instances:
        lines.append(
            "Each pixel gets one of these classes, also where none of them fits, and probabilities "
            "are not calibrated."
        )
    lines.append(
        "It has not been examined for bias, nor for use where people's safety or rights depend on "
        "its result."
    )
    terms = "" if facts is None else f" The terms of the images of `{facts.data}` hold as well."
    lines.append(f"Licence: {license}, unless whoever shares the weights states another.{terms}")
    return ["\n".join(f"- {line}" for line in lines)]


def _attention(config: dict[str, Any]) -> str:
    kind = config.get("attention", "frequency")
    if kind is None:
        return "no attention"
    if kind == "spatial":
        return "regular self-attention"
    return f"frequency self-attention (k = {config.get('k')}, {config.get('similarity', 'dot')})"


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(f"{_inline(name)} ({index})" for index, name in enumerate(classes))


def _inline(text: str) -> str:
    """A name on one line of Markdown, whatever is in it."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in escaped(text))
