"""mIoU of a trained network with regular attention against k, with no retraining.

The images are resized as MMSegmentation's test configurations do it (a longest and a shortest
side, ratio kept); logits go back to the size of the labels before they are compared.

    python experiments/no_retraining.py MODEL DATA --resize 2048 512 --k all 8
    python experiments/no_retraining.py MODEL DATA --resize 2049 1025 --window 769 --stride 513

MODEL is a folder for FsaNet.from_pretrained, DATA one of `SegmentationFolder`. See
docs/checkpoints.md.
"""

from __future__ import annotations

import argparse

import torch
from torchmetrics.classification import MulticlassJaccardIndex

from fsanet import FsaNet
from fsanet.commands.parsing import available_device
from fsanet.data import SegmentationFolder
from fsanet.predict import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--resize", type=int, nargs=2, metavar=("LONG", "SHORT"))
    parser.add_argument("--window", type=int)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--k", nargs="+", default=["all", "8"], help='numbers, or "all"')
    parser.add_argument("--similarity", help="instead of the saved one")
    parser.add_argument("--device")
    options = parser.parse_args()
    device = available_device(options.device)
    print("k     mIoU %")
    for k in options.k:
        # "all" is attention over all positions: what the network was trained with.
        overrides = {"attention": "spatial"} if k == "all" else {"attention": "frequency"}
        overrides |= {} if k == "all" else {"k": int(k)}
        overrides |= {"similarity": options.similarity} if options.similarity else {}
        model = FsaNet.from_pretrained(options.model, **overrides).to(device).eval()
        print(f"{k:5} {100 * miou(model, options):.2f}", flush=True)


def miou(model: FsaNet, options: argparse.Namespace) -> float:
    data = SegmentationFolder(options.data, split=options.split, num_classes=model.num_classes)
    index = MulticlassJaccardIndex(model.num_classes, ignore_index=255)
    for image, mask in data:
        sides = sorted(image.shape[-2:])
        scale = 1.0
        if options.resize is not None:
            scale = min(max(options.resize) / sides[1], min(options.resize) / sides[0])
        predict = Predictor(model, window=options.window, stride=options.stride, scales=(scale,))
        index.update(predict(image).mask.long()[None], torch.as_tensor(mask)[None])
    return index.compute().item()


if __name__ == "__main__":
    main()
