"""What folding batch norms into convolutions gains in prediction.

    python benchmarks/folding.py --encoder mobilenetv2_100 --image 720x960 --threads 1

prints the time of a network with random weights on one image without and with folding: the minimum
of rounds in which the two take turns, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch

from fsanet import FsaNet, Predictor
from fsanet.files import environment
from fsanet.models.segmenter import Segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="mobilenetv2_100")
    parser.add_argument("--decoder", choices=["multiscale"])
    parser.add_argument("--head-channels", type=int, default=128)
    parser.add_argument("--output-stride", type=int, default=16)
    parser.add_argument("--image", default="720x960", help="height x width")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    network = FsaNet(
        given.encoder,
        num_classes=11,
        output_stride=given.output_stride,
        decoder=given.decoder,
        head_channels=given.head_channels,
        aux_channels=0,
    )
    height, width = map(int, given.image.split("x"))
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    # A `Segmenter` is a `Predictor` that does not fold.
    both = {
        "as it is": Segmenter(network, device=given.device),
        "folded": Predictor(network, device=given.device),
    }
    x = network.normalise(image.to(given.device))
    seconds = defaultdict(list)
    for _ in range(given.rounds + 1):  # the first is slower, and so never the minimum
        for name, segmenter in both.items():
            with segmenter.running() as run:
                start = time.perf_counter()
                run(x).cpu()
                seconds[name].append(time.perf_counter() - start)
    least = {name: 1000 * min(taken) for name, taken in seconds.items()}
    print(", ".join(f"{name} {value}" for name, value in environment(given.device).items()))
    print(vars(given))
    for name, value in least.items():
        print(f"{name}: {value:.1f} ms")
    print(f"gain: {100 * (least['as it is'] / least['folded'] - 1):.1f} %")


if __name__ == "__main__":
    main()
