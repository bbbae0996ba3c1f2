"""Class names and colours of public data sets, in the order of their ids.

Sources: cityscapesScripts' labels with a train id; the 150 categories of the MIT Scene Parsing
benchmark (ADE20K); the VOC 2012 development kit.
"""

from __future__ import annotations

from typing import NamedTuple

from fsanet.data.palette import Colour, class_palette

__all__ = ["ADE20K", "CITYSCAPES", "LABEL_SETS", "VOC", "LabelSet"]


class LabelSet(NamedTuple):
    """Names of the classes, and an (r, g, b) of 0..255 for each."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]


def _voc_colour(label: int) -> Colour:
    """The development kit's colour map: the bits of an id, dealt to r, g, b from the top down.

    >>> [_voc_colour(i) for i in (0, 1, 15, 20)]
    [(0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128)]
    """
    r = g = b = 0
    for shift in range(7, -1, -1):
        r |= (label & 1) << shift
        g |= (label >> 1 & 1) << shift
        b |= (label >> 2 & 1) << shift
        label >>= 3
    return r, g, b


_CITYSCAPES: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

_VOC = """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog,
horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
"""

_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track,
apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket,
waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot,
animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light,
tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
clock, flag
"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


#: 19 classes, the train ids.
CITYSCAPES = LabelSet(tuple(_CITYSCAPES), tuple(_CITYSCAPES.values()))
#: 150 classes, without the background (id 0 in the files, so theirs are one higher).
ADE20K = LabelSet(_names(_ADE20K), class_palette(None, 150))
#: 20 classes and the background.
VOC = LabelSet(_names(_VOC), tuple(_voc_colour(i) for i in range(21)))

LABEL_SETS: dict[str, LabelSet] = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "voc": VOC}
