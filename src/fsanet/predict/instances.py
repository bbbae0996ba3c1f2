"""Instances on images and folders of images, with a trained detector."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsanet.convert import load_model
from fsanet.data.images import ImageSource, read_image
from fsanet.errors import InputError
from fsanet.files import model_summary, write_json
from fsanet.predict.bulk import predict_all
from fsanet.predict.bulk_state import Item
from fsanet.predict.instance_result import Instances
from fsanet.predict.processes import start_processes

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
        self.model: Any = load_model(model, task="instances")
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
            found = self.model.detect([pixels.to(self.device)])[0]
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
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    progress: bool = False,
) -> dict[str, Any]:
    """Find instances on files and folders, and write what is found, image by image.

    For each image ``STEM_overlay.png``, ``STEM_instances.png`` (pixel values are numbers of
    instances) and ``STEM.json``; for all of them ``results.json``, in COCO's format of results
    (image ids are the places in ``summary.json``'s list of images, from 1), and ``summary.json``.
    With several processes each image is predicted by one of them.

    Args:
        model: as in `InstancePredictor`.
        paths: images and folders of images.
        out: folder to write to.
        score: instances below it are left out, of all files.
        device: where a single process runs; by default where the model is.
        recursive: search sub-folders.
        alpha, names: as in `Instances.overlay`.
        resume: keep what an earlier run has finished, with the same model and settings.
        accelerator, devices, num_nodes, strategy: processes that share the work; see
            `fsanet.predict.processes.start_processes`.
        progress: how far all processes are: a bar on a terminal, else a line each half minute.

    Returns:
        what ``summary.json`` holds; images that could not be read are under "failed".

    Raises:
        InputError: no model, no image, a folder that cannot be written to, a process that failed,
            results of another model or other settings with ``resume``.
    """
    for name, value in (("score", score), ("alpha", alpha)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; give a number of 0 to 1")
    processes = start_processes(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        device=device,
    )
    return predict_all(
        lambda: _InstanceWriter(
            InstancePredictor(model, device=processes.device),
            score=score,
            alpha=alpha,
            names=names,
        ),
        paths,
        Path(out),
        processes=processes,
        recursive=recursive,
        resume=resume,
        progress=progress,
    )


class _InstanceWriter:
    """Instances, and COCO's file of results; see `fsanet.predict.bulk_state.Writer`."""

    batch_size = 1
    reserved = ("results",)  # results.json is of all images

    def __init__(
        self, predictor: InstancePredictor, *, score: float, alpha: float, names: bool
    ) -> None:
        self.predictor = predictor
        self.score, self.alpha, self.names = score, alpha, names
        self.settings: dict[str, Any] = {"score": score, "alpha": alpha, "names": names}
        self.model = model_summary(predictor.model)

    @property
    def device(self) -> torch.device:
        return self.predictor.device

    def predict(
        self, files: Sequence[Path], on_error: Callable[[Path, InputError], object]
    ) -> Iterator[Instances]:
        for file in files:
            try:
                found = self.predictor(file)
            except InputError as error:
                on_error(file, error)
                continue
            yield found.above(self.score)

    def save(
        self, result: Instances, folder: Path, stem: str, extra: dict[str, Any]
    ) -> list[dict[str, Any]]:
        # Ids are known at the end, when it is known which images could be read.
        entries = [
            {name: value for name, value in entry.items() if name != "image_id"}
            for entry in result.results(0)
        ]
        extra = extra | {"results": entries}
        result.save(folder, stem, alpha=self.alpha, names=self.names, extra=extra)
        return entries

    def digest(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Entries of COCO's file, without the id of the image."""
        entries: list[dict[str, Any]] = record["results"]
        return entries

    def summary(
        self, out: Path, digests: Sequence[tuple[Item, list[dict[str, Any]]]]
    ) -> dict[str, Any]:
        network = self.predictor.model
        results = [
            {"image_id": number} | entry
            for number, (_, entries) in enumerate(digests, start=1)
            for entry in entries
        ]
        write_json(out / "results.json", results)
        counts = Counter(entry["category_id"] for entry in results)
        return {
            "files": [
                {"id": number, "image": str(item.file)}
                for number, (item, _) in enumerate(digests, start=1)
            ],
            "instances": len(results),
            "classes": [
                {"category_id": category, "name": name, "instances": counts[category]}
                for category, name in zip(network.category_ids, network.classes, strict=True)
            ],
            "score": self.score,
        }
