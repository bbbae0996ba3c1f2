"""Peak memory and time of `fsanet predict` by image size and window, each in its own process.

    python benchmarks/predict_memory.py --megapixels 24 100 --window 512
    python benchmarks/predict_memory.py --megapixels 4 --classes 150 --window none 512

prints a table of resident memory at its highest, interpreter and network included, and of seconds
from start to end. The network has random weights; the image is made here, so that nothing is
downloaded. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fsanet import FsaNet

# The peak of a process, VmHWM, starts at zero with each program; that of getrusage does not.
_CHILD = """
import atexit, runpy
from pathlib import Path
def print_peak():
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
atexit.register(print_peak)
runpy.run_module("fsanet", run_name="__main__")
"""


def write_photo(file: Path, side: int) -> None:
    """A square photo-like image: smooth colours with a little noise."""
    Image.MAX_IMAGE_PIXELS = None
    ramp = np.linspace(0, 200, side, dtype=np.float32)
    noise = np.random.default_rng(0).integers(0, 24, (64, side, 3), dtype=np.uint8)
    pixels = np.empty((side, side, 3), dtype=np.uint8)
    for top in range(0, side, 64):
        rows = pixels[top : top + 64]
        rows[..., 0] = ramp
        rows[..., 1] = ramp[top : top + 64, None]
        rows[..., 2] = 200 - ramp
        rows += noise[: len(rows)]
    Image.fromarray(pixels).save(file)


def run(arguments: list[str]) -> tuple[float, float]:
    """MiB of resident memory that the command takes at most, and its seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, "predict", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    return int(done.stdout.splitlines()[-1]) / 1024, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[24, 100])
    parser.add_argument("--formats", nargs="+", default=["jpg", "png"])
    parser.add_argument("--window", nargs="+", default=["512"], help="none: the image as a whole")
    parser.add_argument("--encoder", default="resnet10t")
    parser.add_argument("--classes", type=int, default=19)
    given, options = parser.parse_known_args()  # what is left goes to fsanet predict
    torch.manual_seed(0)
    network = FsaNet(
        given.encoder, num_classes=given.classes, output_stride=16, head_channels=64, aux_channels=0
    )
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        network.save_pretrained(model)
        del network
        print(f"{given.encoder}, {given.classes} classes", *options)
        print("| image | window | peak memory | seconds |\n|---|---|---:|---:|")
        for size, suffix in itertools.product(given.megapixels, given.formats):
            photo = Path(folder, f"photo.{suffix}")
            side = round((size * 1e6) ** 0.5)
            write_photo(photo, side)
            where = [str(photo), "--model", str(model), "--out", f"{folder}/out", "--device", "cpu"]
            for window in given.window:
                windows = [] if window == "none" else ["--window", window]
                mib, seconds = run([*where, *windows, *options])
                name = f"{side} x {side} {suffix.upper()}"
                print(f"| {name} | {window} | {mib:,.0f} MiB | {seconds:.1f} |", flush=True)
            photo.unlink()


if __name__ == "__main__":
    main()
