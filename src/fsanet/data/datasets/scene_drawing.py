"""Drawing of the built-in scenes: rectangles and discs in arrays, all from one random generator."""

# H, W picture height and width; u length unit, H / 96 pixels; x, y column and row

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SKY, GROUND, LIGHT, OPEN_SHOP, CLOSED_SHOP, MOVING_CAR, STOPPED_CAR = range(7)

#: Smallest horizontal distance of a sign to anything it decides, as a fraction of the width.
REACH = 0.4

_WALLS = np.array(
    [(196, 178, 150), (176, 138, 116), (158, 160, 168), (205, 190, 178), (150, 124, 104)]
)
_CARS = np.array([(226, 226, 230), (70, 96, 150), (58, 60, 68), (168, 172, 180), (118, 140, 176)])

Picture = NDArray[np.float32]  # (H, W, 3)
Labels = NDArray[np.uint8]  # (H, W)


@dataclass
class _Canvas:
    """A scene being drawn; ``kerb`` is the row where the road begins."""

    rng: np.random.Generator
    picture: Picture
    labels: Labels
    kerb: int
    u: float

    @property
    def width(self) -> int:
        return self.labels.shape[1]

    def fill(
        self, top: float, left: float, height: float, width: float, colour: Any, label: Any = None
    ) -> None:
        """Fill a rectangle, clipped to the picture; ``label=None`` leaves the labels alone."""
        rows = slice(max(0, round(top)), max(0, round(top + height)))
        cols = slice(max(0, round(left)), max(0, round(left + width)))
        self.picture[rows, cols] = colour
        if label is not None:
            self.labels[rows, cols] = label

    def window(self, x: float, y: float, radius: float) -> tuple[Any, Any]:
        """Slices around a point, and the distance of each of their pixels from it."""
        top, left = max(0, math.floor(y - radius)), max(0, math.floor(x - radius))
        bottom = max(top, min(self.picture.shape[0], math.ceil(y + radius) + 1))
        right = max(left, min(self.picture.shape[1], math.ceil(x + radius) + 1))
        rows = np.arange(top, bottom, dtype=np.float32)[:, None]
        cols = np.arange(left, right, dtype=np.float32)
        return np.s_[top:bottom, left:right], np.hypot(rows - y, cols - x)

    def disc(self, x: float, y: float, radius: float, colour: Any, label: Any = None) -> None:
        where, distance = self.window(x, y, radius)
        inside = distance <= radius
        self.picture[where][inside] = colour
        if label is not None:
            self.labels[where][inside] = label

    def glow(self, x: float, y: float, radius: float, colour: Any) -> None:
        """Draw faint light around a disc, leaving the labels alone."""
        where, distance = self.window(x, y, 1.6 * radius)
        strength = np.clip(1.6 - distance / radius, 0, 0.5)[..., None] * np.float32(0.6)
        self.picture[where] += (np.asarray(colour, np.float32) - self.picture[where]) * strength


def render_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], Labels]:
    """Draw a scene: picture uint8 (3, H, W) and class ids uint8 (H, W)."""
    height, width = size
    u = height / 96
    picture = np.empty((height, width, 3), np.float32)
    labels = np.empty((height, width), np.uint8)
    kerb = round(rng.uniform(62, 66) * u)

    canvas = _Canvas(rng, picture, labels, kerb, u)
    _draw_backdrop(canvas)
    sign_x = _sign_position(rng, width)
    day = bool(rng.integers(2))
    _draw_shops(canvas, sign_x, OPEN_SHOP if day else CLOSED_SHOP)
    _draw_sky_sign(canvas, sign_x, day)
    sign_x = _sign_position(rng, width)
    go = bool(rng.integers(2))
    _draw_traffic_light(canvas, sign_x, go)
    _draw_cars(canvas, sign_x, MOVING_CAR if go else STOPPED_CAR)

    # Channels first, which torch wants, and which is faster to add one plane of grain to.
    planes = np.multiply(picture.transpose(2, 0, 1), rng.uniform(0.9, 1.08), order="C")  # (3, H, W)
    grain = rng.standard_normal((height, width), dtype=np.float32)
    planes += np.multiply(grain, 5, out=grain)
    return np.clip(planes, 0, 255, out=planes).astype(np.uint8), labels


def _sign_position(rng: np.random.Generator, width: int) -> float:
    """Draw the column of a sign's middle: near the left or the right end."""
    inset = rng.uniform(0.07, 0.13) * width
    return inset if rng.integers(2) else width - inset


def _free_span(width: int, sign_x: float) -> tuple[float, float]:
    """The range of columns that are far enough from the sign."""
    reach = REACH * width
    return (sign_x + reach, width) if sign_x < width / 2 else (0.0, sign_x - reach)


def _draw_backdrop(canvas: _Canvas) -> None:
    """Dusk sky with clouds, hills, trees, pavement and road."""
    rng, kerb, u = canvas.rng, canvas.kerb, canvas.u
    width = canvas.width
    fade = np.linspace(0, 1, kerb, dtype=np.float32)[:, None, None]
    zenith = np.array((74, 92, 142), np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)
    canvas.picture[:kerb] = zenith * (1 - fade) + np.array((214, 164, 150), np.float32) * fade
    canvas.labels[:kerb] = SKY

    for _ in range(rng.integers(2, 5)):
        x, y = rng.uniform(0, width), rng.uniform(4, 34) * u
        colour = np.array((160, 152, 172)) + rng.uniform(-14, 14)
        for _ in range(3):
            canvas.fill(
                y + rng.uniform(-3, 3) * u,
                x + rng.uniform(-12, 12) * u,
                rng.uniform(2, 5) * u,
                rng.uniform(14, 34) * u,
                colour,
            )

    cols = np.arange(width, dtype=np.float32) / (96 * u)
    waves = rng.uniform(0, 2 * math.pi, 2)
    skyline = kerb - (
        13 + 5 * np.sin(2.3 * cols + waves[0]) + 3 * np.sin(5.9 * cols + waves[1])
    ) * np.float32(u)
    band = slice(max(0, math.floor(skyline.min())), kerb)
    hills = np.arange(band.start, kerb, dtype=np.float32)[:, None] >= skyline  # (rows, W)
    canvas.picture[band][hills] = np.array((96, 116, 92)) + rng.uniform(-10, 10)
    canvas.labels[band][hills] = GROUND

    for _ in range(rng.integers(4, 9)):
        x, radius = rng.uniform(0, width), rng.uniform(4, 8) * u
        trunk = rng.uniform(7, 11) * u
        canvas.fill(kerb - trunk, x - u, trunk, 2 * u, (84, 66, 52), GROUND)
        leaves = np.array((58, 92, 62)) + rng.uniform(-12, 12)
        canvas.disc(x, kerb - trunk - radius / 2, radius, leaves, GROUND)

    canvas.picture[kerb:] = np.array((92, 92, 98)) + rng.uniform(-8, 8)
    canvas.labels[kerb:] = GROUND
    canvas.fill(kerb, 0, 3 * u, width, (150, 146, 142))
    start = rng.uniform(0, 24) * u
    for left in np.arange(start - 24 * u, width, 24 * u):
        canvas.fill(kerb + 17 * u, left, 1.6 * u, 12 * u, (196, 196, 190))


def _draw_shops(canvas: _Canvas, sign_x: float, label: int) -> None:
    rng, kerb, u = canvas.rng, canvas.kerb, canvas.u
    first, last = _free_span(canvas.width, sign_x)
    x = first + rng.uniform(0, 14) * u
    while True:
        wide, high = rng.uniform(20, 32) * u, rng.uniform(20, 32) * u
        if x + wide > last:
            return
        wall = _WALLS[rng.integers(len(_WALLS))] + rng.uniform(-10, 10, 3)
        top = kerb - high
        canvas.fill(top, x, high, wide, wall, label)
        canvas.fill(top, x, 4 * u, wide, wall * 0.55)
        for row in (7, 14) if high > 25 * u else (8,):
            for left in np.arange(x + 3 * u, x + wide - 6 * u, 8 * u):
                canvas.fill(top + row * u, left, 4 * u, 5 * u, (88, 98, 122))
        door = x + wide * rng.uniform(0.25, 0.65)
        canvas.fill(kerb - 8 * u, door, 8 * u, 5 * u, (72, 56, 50))
        x += wide + rng.uniform(3, 22) * u


def _draw_sky_sign(canvas: _Canvas, x: float, day: bool) -> None:
    """The sun, a yellow disc, or the moon, a pale crescent; both with a faint glow."""
    rng, u = canvas.rng, canvas.u
    y, radius = rng.uniform(11, 18) * u, 8.5 * u
    colour = np.array((255, 214, 40) if day else (226, 244, 255), np.float32)
    canvas.glow(x, y, radius, colour)
    where, distance = canvas.window(x, y, radius)
    inside = distance <= radius
    if not day:
        rows, cols = np.indices(distance.shape)
        bite = np.hypot(
            rows + where[0].start - (y - 0.25 * radius), cols + where[1].start - (x + 0.5 * radius)
        )
        inside &= bite > 0.8 * radius
    canvas.picture[where][inside] = colour
    canvas.labels[where][inside] = LIGHT


def _draw_traffic_light(canvas: _Canvas, x: float, go: bool) -> None:
    """A black box on a pole: the upper lamp glows red, or the lower one green."""
    rng, kerb, u = canvas.rng, canvas.kerb, canvas.u
    top = kerb - rng.uniform(30, 38) * u
    canvas.fill(top, x - u, kerb + 4 * u - top, 2 * u, (52, 52, 56), GROUND)
    canvas.fill(top, x - 8 * u, 29 * u, 16 * u, (26, 26, 30), LIGHT)
    upper, lower = (x - 0.5, top + 7.5 * u), (x - 0.5, top + 21.5 * u)
    dark, lit = ((86, 30, 30), (40, 250, 90)) if go else ((24, 70, 40), (255, 42, 36))
    canvas.disc(*(upper if go else lower), 6 * u, dark)
    canvas.glow(*(lower if go else upper), 6 * u, lit)
    canvas.disc(*(lower if go else upper), 6 * u, lit)


def _draw_cars(canvas: _Canvas, sign_x: float, label: int) -> None:
    rng, kerb, u = canvas.rng, canvas.kerb, canvas.u
    first, last = _free_span(canvas.width, sign_x)
    for lane in (14, 29):
        x = first + rng.uniform(0, 18) * u
        while x + 28 * u <= last:
            wide, bottom = rng.uniform(23, 28) * u, kerb + lane * u
            paint = _CARS[rng.integers(len(_CARS))] + rng.uniform(-10, 10, 3)
            cabin = x + wide * rng.uniform(0.16, 0.32)
            canvas.fill(bottom - 13 * u, cabin, 6 * u, wide * 0.52, paint * 0.8, label)
            glass = (54, 66, 84)
            canvas.fill(bottom - 12 * u, cabin + 2 * u, 4 * u, wide * 0.52 - 4 * u, glass)
            canvas.fill(bottom - 8 * u, x, 7 * u, wide, paint, label)
            for wheel in (0.22, 0.78):
                canvas.disc(x + wide * wheel, bottom - u, 2.6 * u, (24, 24, 26), label)
            x += wide + rng.uniform(4, 26) * u
