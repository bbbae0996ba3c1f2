"""The moving picture of the README: test scenes of the demo, with and without attention.

fsanet demo --out runs/demo
python experiments/scenes_picture.py runs/demo --out docs/images/scenes.gif
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from fsanet.convert import load_model
from fsanet.files import write_whole
from fsanet.predict.draw import font
from fsanet.predict.predictor import Predictor
from fsanet.report.demo import FOLDERS, predict_examples
from fsanet.report.demo_recipe import demo_data
from fsanet.report.page import Example

SCALE, GAP, LINE = 2, 8, 22  # enlargement; pixels between pictures; height of a line of text


def draw_frame(example: Example) -> Image.Image:
    """The four pictures of an example, two by two, each with its name above it."""
    width, height = (SCALE * side for side in example.pictures[0][1].size)
    cell = (width + GAP, height + LINE + GAP)
    frame = Image.new("RGB", (2 * cell[0] + GAP, 2 * cell[1] + GAP), "white")
    canvas = ImageDraw.Draw(frame)
    for index, (name, picture) in enumerate(example.pictures):
        x, y = GAP + index % 2 * cell[0], GAP + index // 2 * cell[1]
        canvas.text((x, y + LINE // 2), name, fill=(43, 49, 56), font=font(14), anchor="lm")
        large = picture.resize((width, height), Image.Resampling.NEAREST)
        frame.paste(large, (x, y + LINE))
    return frame


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of fsanet demo")
    parser.add_argument("--out", type=Path, required=True, help="GIF file to write")
    parser.add_argument("--seconds", type=float, default=1.6, help="of each scene")
    options = parser.parse_args(arguments)
    metrics = json.loads((options.demo / "metrics.json").read_text(encoding="utf-8"))
    predictors = {
        name: Predictor(load_model(options.demo / folder)) for name, folder in FOLDERS.items()
    }
    data = demo_data(int(metrics["settings"]["seed"]), 1)
    with tempfile.TemporaryDirectory() as folder:
        frames = [draw_frame(one) for one in predict_examples(predictors, data, Path(folder))]
    # One palette for all frames, so that colours do not flicker.
    sheet = Image.new("RGB", (frames[0].width, frames[0].height * len(frames)))
    for index, frame in enumerate(frames):
        sheet.paste(frame, (0, index * frame.height))
    palette = sheet.quantize(128)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    duration = round(1000 * options.seconds)
    write_whole(
        options.out,
        lambda stream: first.save(
            stream, "GIF", save_all=True, append_images=others, duration=duration, loop=0
        ),
    )
    print(f"{options.out}: {len(frames)} scenes, {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
