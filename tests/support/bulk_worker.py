"""Predicts a folder in as many processes as it is told, with a network that can get into trouble.

A script of its own: Lightning starts it again for each further process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.errors import InputError
from fsanet.predict import result as segmentation
from fsanet.predict.folder import predict_to_folder


class TinyNet(nn.Module):
    """Three classes from neighbourhoods of pixels."""

    classes = ("sky", "road", "tree")
    palette = ((0, 0, 255), (255, 0, 0), (0, 255, 0))

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def normalise(self, images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


def rank() -> int:
    return int(os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0")))


def arrange(trouble: dict[str, Any]) -> None:
    """The process of a rank dies, or fails, as it is about to write its n-th JSON file."""
    if trouble["rank"] != rank():
        return
    left = trouble["after"]
    write_json = segmentation.write_json

    def write(path: Any, value: Any) -> Path:
        nonlocal left
        if left == 0 and trouble["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0:
            raise {"error": ZeroDivisionError, "full": InputError}[trouble["how"]]("no more room")
        left -= 1
        return write_json(path, value)

    segmentation.write_json = write  # type: ignore[assignment]


def watch() -> list[str]:
    """Names of the JSON files of images that this process writes."""
    written: list[str] = []
    write_json = segmentation.write_json

    def write(path: Any, value: Any) -> Path:
        written.append(Path(path).name)
        return write_json(path, value)

    segmentation.write_json = write  # type: ignore[assignment]
    return written


def main(order: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if "trouble" in order:
        arrange(order["trouble"])
    written = watch()
    summary = predict_to_folder(TinyNet(), order["images"], order["out"], **order["options"])
    if "log" in order:
        Path(order["log"], f"{rank()}.json").write_text(json.dumps(written))
    if rank() == 0:
        print(json.dumps({"summary": summary, "lightning": "lightning" in sys.modules}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
