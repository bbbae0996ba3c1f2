"""An explanation as numbers, pictures and a page; see `fsanet.report.explain`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fsanet.files import environment, model_summary, write_json, write_whole
from fsanet.predict.draw import heat_map, percent
from fsanet.predict.result import Segmentation
from fsanet.report.explain import Explanation, Outcome
from fsanet.report.page import Report, Section, write_report

__all__ = ["write_explanation"]


def write_explanation(
    one: Explanation, out: str | os.PathLike[str], *, source: str = "", model: nn.Module
) -> Path:
    """Write ``explanation.json``, the pictures as PNG files, and ``report.html`` with all of it.

    Args:
        one: what to write.
        out: folder, created if it does not exist.
        source: name of the image.
        model: the network, for its name and fingerprint.

    Returns:
        the path of ``report.html``.

    Raises:
        InputError: the folder is not writable.
    """
    out = Path(out)
    image, at = one.result.image, one.pixel
    assert image is not None
    pictures: dict[str, Image.Image] = {}

    def heat(file: str, values: Tensor, **options: Any) -> Image.Image:
        pictures[file] = heat_map(values.numpy(), image.numpy(), at=at, **options)
        return pictures[file]

    pictures["overlay.png"] = one.result.overlay(legend=False)
    pixel = heat("pixel.png", torch.zeros(1, 1))
    rounds = [
        (
            f"round {number}" if len(one.rows) > 1 else "attention",
            heat(f"attention-{number}.png", row, centre=one.uniform),
        )
        for number, row in enumerate(one.rows, 1)
    ]
    largest = max(float(part.map.abs().max()) for part in one.parts)
    total = torch.stack([part.map for part in one.parts]).sum(0)
    bands = [
        (
            f"{part.name} ({percent(part.energy)} of the energy)",
            heat(f"band-{number}.png", part.map, largest=largest),
        )
        for number, part in enumerate(one.parts, 1)
    ]
    bands.append(("their sum: the block's input", heat("bands-sum.png", total)))
    dropped = [(part.name, part.without) for part in one.parts]
    dropped.append(("the attention", one.no_attention))
    changes = []
    for number, (name, outcome) in enumerate(dropped, 1):
        changed = _mark_changes(one.result, outcome)
        pictures[f"without-{number}.png"] = changed
        changes.append((f"without {name} ({percent(outcome.changed)} changed)", changed))
    sections = [
        Section(
            "Attention",
            _attention_text(one),
            rounds,
            ["class", *(f"{name}: weight" for name, _ in rounds), "share of the positions"],
            _class_rows(one),
        ),
        Section("Frequencies of the block's input", _band_text(one), bands),
        Section(
            "What changes when a band is dropped",
            [
                "Each band is taken out of the input of the attention block, so both the residual "
                "and the attention lose it; the last row leaves the attention out. Pixels that get "
                "another class show its colour, the others are grey."
            ],
            changes,
            ["without", "class", "probability", "logit", "change", "pixels changed"],
            [
                [
                    name,
                    outcome.class_at_pixel,
                    percent(outcome.probability),
                    f"{outcome.logit:z.2f}",
                    f"{outcome.logit - one.outcome.logit:+z.2f}",
                    percent(outcome.changed),
                ]
                for name, outcome in [("nothing", one.outcome), *dropped]
            ],
        ),
    ]
    if one.gradients is not None:
        picture = heat("gradients.png", one.gradients.map, quantile=0.999)
        sections.append(
            Section("Integrated gradients", _gradient_text(one), [("for and against", picture)])
        )
    summary = {"image": source, "model": model_summary(model), **one.as_dict()}
    for file, drawn in pictures.items():
        write_whole(out / file, partial(drawn.save, format="PNG"))
    layer = one.layer
    height, width = one.result.mask.shape
    page = Report(
        title=f"Why pixel {at[0]},{at[1]} is {one.outcome.class_at_pixel}",
        lead=[
            f"What the network looks at to call this pixel of {source or 'the image'} "
            f"“{one.outcome.class_at_pixel}”."
        ],
        figures=[
            (one.outcome.class_at_pixel, "class"),
            (percent(one.outcome.probability), "probability"),
            (f"{one.outcome.logit:z.2f}", "logit"),
        ],
        classes=[],
        sections=[
            Section(
                "The pixel",
                pictures=[("pixel", pixel), ("prediction", pictures["overlay.png"])],
                legend=_legend(one.result, [outcome.mask for _, outcome in dropped]),
            ),
            *sections,
        ],
        settings={
            "image": f"{source}, {width} x {height} pixels",
            "layer": f"{one.layer_name}: {type(layer).__name__}({layer.extra_repr()})",
            "position on the grid": f"row {one.position[0]}, column {one.position[1]} of "
            f"{one.rows.shape[1]} x {one.rows.shape[2]}",
            "network": f"{type(model).__name__}, {summary['model']['fingerprint']}",
        },
        environment=environment(next(model.parameters()).device),
    )
    report = write_report(page, out / "report.html")
    write_json(out / "explanation.json", {**summary, "files": sorted(pictures)})
    return report


def _mark_changes(result: Segmentation, outcome: Outcome) -> Image.Image:
    """The image in grey, with the new class where it is another."""
    assert result.image is not None
    grey = result.image.float().mean(0).to(torch.uint8).expand(3, -1, -1)
    unchanged = torch.full_like(outcome.mask, 255)
    mask = torch.where(outcome.mask == result.mask, unchanged, outcome.mask)
    marked = Segmentation(mask, result.classes, result.palette, grey)
    return marked.overlay(alpha=0.8, legend=False)


def _legend(result: Segmentation, others: Sequence[Tensor]) -> list[tuple[str, Any]]:
    """Names and colours of the classes in a result, and in other masks of the image."""
    present = torch.stack([result.mask, *others]).unique().tolist()
    return [(result.classes[index], result.palette[index]) for index in present]


def _attention_text(one: Explanation) -> list[str]:
    layer, values = one.layer, f"{one.rows.min():.3g} to {one.rows.max():.3g}"
    count = one.rows[0].numel()
    text = [
        f"The row of the {count} x {count} matrix that belongs to this pixel, computed from "
        f"coefficients without the matrix. Weights go from {values}."
    ]
    if layer.similarity == "dot":
        text.append("Dot-product weights may be negative: red adds a value, blue subtracts it.")
    else:
        text.append(
            f"Attending to all positions alike would give each {one.uniform:.3g}; red positions "
            "get more, blue ones less."
        )
    if len(one.rows) > 1:
        text.append("Each round looks at the output of the round before, with the same weights.")
    return text


def _class_rows(one: Explanation) -> list[list[str]]:
    rounds = [one.attended_classes(row) for row in one.rows]
    ordered = sorted(rounds[-1], key=lambda name: -rounds[-1][name][0])
    return [
        [name, *(percent(found[name][0]) for found in rounds), percent(rounds[0][name][1])]
        for name in ordered
    ]


def _band_text(one: Explanation) -> list[str]:
    band = getattr(one.layer, "band", None)
    text = [
        "The input of the block, cut into bands of frequency: “4:8” holds what is below 8 on both "
        f"axes and not below 4, “{one.parts[-1].name}” the rest. Each map is the band's projection "
        "on the direction of the input at the pixel (red: along it, blue: against it), so the maps "
        f"add up to the last one (largest relative difference {one.split_error:.1e})."
    ]
    if band is not None:
        text.append(f"The attention sees frequencies {band}; all others pass by it.")
    text.append(
        "At the pixel itself: "
        + ", ".join(f"{part.name} ({100 * part.at_pixel:.1f} %)" for part in one.parts)
        + "."
    )
    return text


def _gradient_text(one: Explanation) -> list[str]:
    found = one.gradients
    assert found is not None
    return [
        f"How much each pixel adds to the logit (red) or takes from it (blue), compared with an "
        f"image of the mean colour; {found.steps} steps.",
        f"Completeness: the attributions add up to {found.total:.3f}; the logit differs by "
        f"{found.difference:.3f}. Error {100 * found.error:.2g} %"
        + ("." if found.error < 0.05 else "; more --steps bring it down."),
    ]
