"""The dialect of the command line, on a command made for the purpose."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fsanet.cli.parsing import call, read_band
from fsanet.errors import InputError


def segment(
    images: list[str],
    *,
    model: str,
    batch_size: int = 1,
    flip: bool = False,
    window: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    bands: list[str] | None = None,
    k: int | Sequence[int] | Sequence[Sequence[int | None]] | None = 8,
) -> int:
    """Segment images.

    Args:
        images: files and folders.
        model: a saved network.
        batch_size: images at once.
        flip: average with the mirrored image.
        window: side of the sliding window, or height and width.
        scales: factors to resize by.
        bands: names of bands.
        k: frequencies that are kept.
    """
    options = dict(locals())
    segment.options = {key: value for key, value in options.items() if key != "images"}
    segment.images = images
    return 0


def options_of(*arguments):
    assert call(segment, ["a.png", "--model", "here", *arguments]) == 0
    assert segment.images == ["a.png"]
    default = dict.fromkeys(("window", "bands"))
    default |= {"batch_size": 1, "flip": False, "scales": (1.0,), "k": 8, "model": "here"}
    return {k: v for k, v in segment.options.items() if v != default[k]}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("", {}),
        ("--batch-size 4", {"batch_size": 4}),
        ("--batch_size=4", {"batch_size": 4}),
        ("--flip", {"flip": True}),
        ("--flip --batch-size 2", {"flip": True, "batch_size": 2}),
        ("--flip true", {"flip": True}),
        ("--flip=false", {}),
        ("--flip --no-flip", {}),
        ("--window 512", {"window": 512}),
        ("--window 512 1024", {"window": (512, 1024)}),
        ("--window [512,1024]", {"window": (512, 1024)}),
        ("--scales 2", {"scales": [2.0]}),
        ("--scales 0.5 1 1.5", {"scales": [0.5, 1.0, 1.5]}),
        ("--scales=[0.5,1.5]", {"scales": [0.5, 1.5]}),
        ("--bands low high", {"bands": ["low", "high"]}),
        ("--k 4", {"k": 4}),
        ("--k 4,6", {"k": [4, 6]}),
        ("--k 4:8", {"k": [[4, 8], [4, 8]]}),
        ("--k 0:8,2:", {"k": [[0, 8], [2, None]]}),
        ("--k [[0,3],[1,null]]", {"k": [[0, 3], [1, None]]}),
        ("--k all", {"k": None}),
    ],
)
def test_one_dialect(arguments, found):
    assert options_of(*arguments.split()) == found


def test_positional_arguments_stand_anywhere():
    call(segment, ["--scales", "0.5", "1", "--model", "here", "a", "--flip", "b", "c"])
    assert segment.images == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["net --k 4", "--model net --k 4", "--k 4 --model=net"])
def test_a_positional_argument_may_be_named(text):
    def show(model: str, *, k: int = 8) -> int:
        assert (model, k) == ("net", 4)
        return 0

    assert call(show, text.split()) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("a --model here --bath-size 3", "did you mean --batch-size"),
        ("a --model here --batch-size many", "batch_size.*int.*many"),
        ("a --model here --window x", "window"),
        ("a --model here --k x", "k=x: give a number"),
        ("a --model", "model"),
        ("a", "model"),
        ("", "images"),
    ],
)
def test_mistakes_are_one_line(arguments, line):
    with pytest.raises(InputError, match=line) as caught:
        call(segment, arguments.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "8,", "1,2,3", "8:", "a", "1:2:3"])
def test_what_is_no_band(text):
    if text == "8:":  # from 8 up is one
        assert read_band(text) == [[8, None], [8, None]]
        return
    with pytest.raises(InputError, match="k="):
        read_band(text)
