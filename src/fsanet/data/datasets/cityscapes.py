"""Cityscapes in its published layout, fine and coarse, with the 19 classes that are evaluated.

Own listing rather than torchvision's `Cityscapes`: that one unpacks archives it finds without
being asked, wants labels of the test split, keeps the file system's order, and notices a missing
label file only when it is read. A test compares the two.

Source of the label ids: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene
Understanding", CVPR 2016, and the definition of labels on the data set's site.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fsanet.data.datasets.class_names import CITYSCAPES
from fsanet.data.datasets.downloads import missing
from fsanet.data.datasets.pairs import IGNORE, IdTable, Listing, Pair, PairedImages, pair_up
from fsanet.errors import InputError

__all__ = ["COUNTS", "LABEL_IDS", "LABEL_ID_TABLE", "Cityscapes", "list_split"]

#: Label id of each of the 19 classes, in the order of their train ids.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

#: The 34 label ids to train ids; what is not evaluated becomes 255.
LABEL_ID_TABLE = IdTable(
    "Cityscapes",
    {**dict.fromkeys(range(34), IGNORE), **{value: i for i, value in enumerate(LABEL_IDS)}},
)

#: Published numbers of images.
COUNTS = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}

_SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "fine": {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")},
    "coarse": {"train": ("train",), "val": ("val",), "train_extra": ("train_extra",)},
}


class Cityscapes(PairedImages):
    """Cityscapes: ``root/leftImg8bit`` with ``root/gtFine`` or ``root/gtCoarse``.

    Images are 2048 wide and 1024 high. Label ids 0..33 are mapped to the 19 train ids, all
    others to 255. The labels of ``"test"`` are not published: its masks are 255 throughout.

    Args:
        root: folder with ``leftImg8bit``.
        split: ``"train"`` (2975 images), ``"val"`` (500), ``"test"`` (1525) or ``"trainval"``;
            with coarse labels ``"train"``, ``"val"`` or ``"train_extra"`` (19998).
        labels: ``"fine"`` or ``"coarse"``.
        transform: called as ``transform(image, mask)``.

    Raises:
        InputError: as `PairedImages`; for a split that is not there the line says what to
            download.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        labels: Literal["fine", "coarse"] = "fine",
        transform: Callable[..., Any] | None = None,
    ) -> None:
        if labels not in _SPLITS:
            raise InputError(f"labels={labels!r}: Cityscapes has fine and coarse ones")
        if split not in _SPLITS[labels]:
            raise InputError(
                f"split={split!r}: Cityscapes with {labels} labels has {', '.join(_SPLITS[labels])}"
            )
        root = Path(root)
        listings = [list_split(root, part, labels) for part in _SPLITS[labels][split]]
        listing = Listing(
            [pair for part in listings for pair in part.pairs],
            [problem for part in listings for problem in part.problems],
        )
        super().__init__(
            root, listing, label_set=CITYSCAPES, ids=LABEL_ID_TABLE, transform=transform
        )
        self.split = split


def list_split(root: Path, split: str, labels: str = "fine") -> Listing:
    """The pairs of train, val, test or train_extra, named as ``aachen_000000_000019``.

    Raises:
        MissingData: its images or labels are not there.
    """
    kind = "gtFine" if labels == "fine" else "gtCoarse"
    extra = split == "train_extra"
    image_archive = f"leftImg8bit_{'trainextra' if extra else 'trainvaltest'}.zip"
    label_archive = "gtFine_trainvaltest.zip" if labels == "fine" else "gtCoarse.zip"
    folder, archives = root / "leftImg8bit" / split, (image_archive, label_archive)
    images = _by_name(folder, "_leftImg8bit.png")
    if not images:
        raise missing(root, "cityscapes", folder, archives)
    if split == "test":
        return Listing([Pair(name, path) for name, path in images.items()], [])
    folder = root / kind / split
    masks = _by_name(folder, f"_{kind}_labelIds.png")
    if not masks:
        raise missing(root, "cityscapes", folder, archives[1:])
    return pair_up(images, masks)


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Files of all cities, by name without the ending; names start with the city."""
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*/*{ending}"))}
