"""Images and masks found by patterns of names, and splits drawn at random with a seed."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fsanet.data.datasets.base import Listing, MissingData, pair_up
from fsanet.data.images import IMAGE_SUFFIXES
from fsanet.data.masks import MASK_SUFFIXES
from fsanet.errors import InputError

__all__ = ["find_images", "guess_patterns", "list_pattern", "matching", "random_split"]

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def find_images(root: Path, pattern: str) -> dict[str, Path]:
    """Image files below a folder by their path without its ending, in order.

    Args:
        pattern: as in ``Path.glob``: ``*.jpg``, ``photos/*``, ``**/*.png``.

    Raises:
        MissingData: there is no such folder, or no image in it fits.
        InputError: the pattern is none, or two images differ only in their ending.
    """
    if not root.is_dir():
        raise MissingData(f"{root}: no such folder; check the path of the data set")
    images: dict[str, Path] = {}
    for path in matching(root, pattern):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in images:
            raise InputError(
                f"{path.parent}: {images[name].name} and {path.name} share a name; keep one, or "
                "give images= with an ending, such as '*.jpg'"
            )
        images[name] = path
    if not images:
        raise MissingData(f"{root}: no image is named {pattern}{_endings_hint(root)}")
    return images


def matching(root: Path, pattern: str) -> list[Path]:
    """What a pattern of images matches below a folder, sorted.

    Raises:
        InputError: it is no pattern.
    """
    try:
        return sorted(root.glob(pattern))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise InputError(
            f"images={pattern!r}: not a pattern of names below {root}, such as '*.jpg' ({error})"
        ) from error


def list_pattern(root: Path, images: str, masks: str) -> Listing:
    """Pair images with masks whose names follow from theirs.

    Args:
        root: folder that the patterns start from.
        images: pattern of the images, see `find_images`. Files that are masks of others are left
            out, so that ``*.png`` may fit both.
        masks: path of the mask of an image: ``{stem}`` is the image's name without its ending,
            ``{name}`` with it, and ``{folder}`` its folder below ``root``. Without ``{folder}`` or
            a folder of its own, the mask lies beside the image.

    Raises:
        MissingData: there is no such folder, or no image in it fits.
        InputError: a pattern is wrong.
    """
    used = {*_PLACEHOLDER.findall(masks)}
    if used - {"stem", "name", "folder"} or not used & {"stem", "name"}:
        raise InputError(
            f"masks={masks!r}: give the name of an image's mask with {{stem}} (the image's name "
            "without its ending), {name} (with it) or {folder} in it, such as '{stem}_mask.png'"
        )
    found = find_images(root, images)
    labels = {name: _mask_of(root, path, masks) for name, path in found.items()}
    taken = {*labels.values()}
    found = {name: path for name, path in found.items() if path not in taken}
    if not found:
        raise InputError(
            f"{root}: every image named {images} is also a mask by {masks}; give another pattern"
        )
    labels = {name: labels[name] for name in found if labels[name].is_file()}
    if not labels:
        first = next(iter(found.values()))
        raise InputError(
            f"{root}: none of {len(found)} images has a mask: that of {first.name} would be "
            f"{_mask_of(root, first, masks)}"
        )
    return pair_up(found, labels, root / Path(masks).parent)


def _mask_of(root: Path, image: Path, masks: str) -> Path:
    folder = image.parent.relative_to(root).as_posix()
    values = {"stem": image.stem, "name": image.name, "folder": folder}
    path = Path(_PLACEHOLDER.sub(lambda match: values[match[1]], masks))
    return image.parent / path if len(Path(masks).parts) == 1 else root / path


def random_split(
    names: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Names of each split, in the given order: a random choice that the seed decides.

    The same name has the same place whatever the machine, the versions and the order of the files,
    and most names stay in their split when files are added.

    Args:
        names: of the images, distinct.
        fractions: share of all names in 0..1 of each split but "train", which is the rest.
        seed: another seed gives another choice.

    Raises:
        InputError: a split would be empty.

    >>> random_split(["a", "b", "c", "d", "e"], {"val": 0.2}, seed=0)
    {'val': ['c'], 'train': ['a', 'b', 'd', 'e']}
    """
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    splits: dict[str, list[str]] = {}
    start = 0
    for split, fraction in fractions.items():
        count = max(1, round(fraction * len(names)))
        splits[split] = drawn[start : start + count]
        start += count
    splits["train"] = drawn[start:]
    if not splits["train"]:
        raise InputError(
            f"{len(names)} images are too few for a training split beside "
            f"{' and '.join(f'{fraction:g} for {name}' for name, fraction in fractions.items())}"
        )
    order = {name: index for index, name in enumerate(names)}
    return {split: sorted(chosen, key=order.__getitem__) for split, chosen in splits.items()}


def guess_patterns(root: Path) -> tuple[str, str] | None:
    """Patterns of images and masks that fit a folder, for `list_pattern`; None if none does.

    Looked for in the folder and the folders in it: two groups of files with the same ending, one
    with names that contain those of the other.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for path in sorted([*root.glob("*"), *root.glob("*/*")]):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES | MASK_SUFFIXES:
            folder = path.parent.relative_to(root).as_posix()
            groups.setdefault((folder, path.suffix), []).append(path.stem)
    largest = {*sorted(groups, key=lambda group: -len(groups[group]))[:_MOST_GROUPS]}
    groups = {group: stems for group, stems in groups.items() if group in largest}
    best: tuple[int, str, str] | None = None
    for (folder, suffix), stems in groups.items():
        for (other, ending), labels in groups.items():
            if ending.lower() not in MASK_SUFFIXES or (other == "." and folder != "."):
                continue
            known = {*labels}
            for before, after in _affixes(stems, labels):
                if not (before or after) and (folder, suffix) == (other, ending):
                    continue
                images = [stem for stem in stems if f"{before}{stem}{after}" in known]
                masks = f"{before}{{stem}}{after}{ending}"
                # Names that occur in both groups fit either way; folder and affixes break the tie.
                score = 2 * len(images) + bool(_MASK_WORD.search(f"{other}/{before}{after}"))
                score -= 2 * bool(_MASK_WORD.search(folder))
                if images and (best is None or score > best[0]):
                    at = "" if folder == "." else f"{folder}/"
                    to = "" if other == folder else f"{other}/"
                    best = score, f"{at}*{suffix}", f"{to}{masks}"
    return None if best is None else best[1:]


_MOST_GROUPS, _MOST_AFFIXES = 64, 8  # that are looked at, so that time grows with the files alone
_MASK_WORD = re.compile(r"mask|label|annot|seg|gt|truth", re.IGNORECASE)


def _affixes(stems: Sequence[str], labels: Sequence[str]) -> list[tuple[str, str]]:
    """What stands before and after the name of an image in those of masks, by the first images.

    The most frequent and shortest come first, of which a few are enough: a short name such as "1"
    is part of most others.
    """
    found = Counter(
        (before, after)
        for stem in stems[:3]
        for label in labels
        if stem in label
        for before, _, after in [label.partition(stem)]
    )
    return sorted(found, key=lambda affix: (-found[affix], len("".join(affix)), affix))[
        :_MOST_AFFIXES
    ]


def _endings_hint(root: Path) -> str:
    """The endings of the files in a folder, most frequent first, for messages."""
    counts: dict[str, int] = {}
    for path in root.glob("*"):
        if path.is_file():
            counts[path.suffix] = counts.get(path.suffix, 0) + 1
    found = sorted(counts.items(), key=lambda entry: -entry[1])[:3]
    text = ", ".join(f"{count} *{suffix}" for suffix, count in found)
    return f"; the folder has {text}" if text else "; the folder has no files of its own"
