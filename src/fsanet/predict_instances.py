"""Instances on images and folders of images, with a trained detector."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsanet.data.images import ImageSource, locate_images, read_image
from fsanet.errors import InputError
from fsanet.files import write_json
from fsanet.instance_result import Instances
from fsanet.predict_folder import _bar, _stems
from fsanet.provenance import environment
from fsanet.tasks.instance_training import load_instance_model
from fsanet.tasks.instances import detect

__all__ = ["InstancePredictor", "predict_instances_to_folder"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class InstancePredictor:
    """Finds instances on images of any size.

    Args:
        model: a network, a run folder, a folder of ``save_pretrained``, or a hub id.
        device: where to run; by default where the model is.

    Raises:
        InputError: the folder holds no model.

    >>> from fsanet.models.mask_rcnn import MaskRcnnFsa
    >>> model = MaskRcnnFsa("resnet10t", num_classes=2, positions=("p4",), fpn_channels=16,
    ...                     box_channels=16, mask_channels=16, min_size=64, max_size=64)
    >>> found = InstancePredictor(model)(torch.zeros(3, 48, 64, dtype=torch.uint8))
    >>> tuple(found.image.shape)
    (3, 48, 64)
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
    ) -> None:
        self.model: Any = load_instance_model(model)
        if device is not None:
            self.model.to(device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def __call__(self, image: ImageSource) -> Instances:
        """Instances on one image, given as whatever `fsanet.data.images.read_image` takes."""
        pixels = read_image(image)
        was_training = self.model.training
        self.model.eval()
        try:
            found = detect(self.model, [pixels.to(self.device)])[0]
        finally:
            self.model.train(was_training)
        return Instances(
            boxes=found["boxes"].cpu(),
            masks=found["masks"].cpu(),
            labels=found["labels"].cpu(),
            scores=found["scores"].cpu(),
            classes=self.model.classes,
            category_ids=self.model.category_ids,
            image=pixels,
            source=Path(image) if isinstance(image, str | os.PathLike) else None,
        )


def predict_instances_to_folder(
    model: nn.Module | str | os.PathLike[str],
    paths: Paths,
    out: str | os.PathLike[str],
    *,
    score: float = 0.5,
    device: torch.device | str | None = None,
    recursive: bool = True,
    alpha: float = 0.5,
    names: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Find instances on files and folders, and write what is found, image by image.

    For each image ``STEM_overlay.png``, ``STEM_instances.png`` (pixel values are numbers of
    instances) and ``STEM.json``; for all of them ``results.json``, in COCO's format of results
    (image ids are the places in ``summary.json``'s list of images, from 1), and ``summary.json``.

    Args:
        model: as in `InstancePredictor`.
        paths: images and folders of images.
        out: folder to write to.
        score: instances below it are left out, of all files.
        device: where to run.
        recursive: search sub-folders.
        alpha, names: as in `Instances.overlay`.
        progress: show a progress bar.

    Returns:
        what ``summary.json`` holds; images that could not be read are under "failed".

    Raises:
        InputError: no model, no image, or a folder that cannot be written to.
    """
    for name, value in (("score", score), ("alpha", alpha)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; give a number of 0 to 1")
    out = Path(out)
    predictor = InstancePredictor(model, device=device)
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    target = out.resolve()
    if any(Path(path).is_dir() and Path(path).resolve() == target for path in paths):
        raise InputError(f"{out}: is an input folder as well; write to another one")
    located = [
        (file, relative)
        for file, relative in locate_images(paths, recursive=recursive)
        if target not in file.resolve().parents  # results of an earlier run are no input
    ]
    if not located:
        raise InputError(f"{out}: all images given lie in the output folder; write to another one")
    # Written first, to notice a folder that cannot be written to before the work, not after it.
    write_json(out / "summary.json", {"images": 0, "state": "running"})
    # The file of all results has its name first: no image's own file takes it.
    stems = _stems([Path("results.json"), *(relative for _, relative in located)])[1:]
    results: list[dict[str, Any]] = []
    files: list[str] = []
    failed: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    start = time.perf_counter()
    with _bar(len(located), shown=progress) as (advance, say):
        for done, ((file, _), stem) in enumerate(zip(located, stems, strict=True), start=1):
            try:
                found = predictor(file).above(score)
            except InputError as error:
                failed.append({"image": str(file), "error": str(error)})
                say(str(error))
                continue
            files.append(str(file))
            results += found.results(len(files))
            counts.update(found.name(index) for index in range(len(found)))
            found.save(out / stem.parent, stem.name, alpha=alpha, names=names)
            advance(done)
    seconds = time.perf_counter() - start
    write_json(out / "results.json", results)
    summary = {
        "images": len(files),
        "files": [{"id": index, "image": name} for index, name in enumerate(files, start=1)],
        "failed": failed,
        "instances": len(results),
        "classes": [
            {"category_id": number, "name": name, "instances": counts[name]}
            for number, name in zip(
                predictor.model.category_ids, predictor.model.classes, strict=True
            )
        ],
        "score": score,
        "seconds": round(seconds, 3),
        "model": {
            "name": type(predictor.model).__name__,
            "parameters": sum(p.numel() for p in predictor.model.parameters()),
        },
        "versions": environment(predictor.device),
    }
    write_json(out / "summary.json", summary)
    return summary
