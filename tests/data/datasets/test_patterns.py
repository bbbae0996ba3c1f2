"""Images and masks by patterns of names, random splits, and what is guessed from a folder."""

import itertools

import numpy as np
import pytest
from PIL import Image

from fsanet.data.datasets.labelled_folder import LabelledFolder, SegmentationFolder
from fsanet.data.datasets.patterns import guess_patterns, random_split
from fsanet.errors import InputError

FLAT = {"images": "*.jpg", "masks": "{stem}_mask.png"}


@pytest.fixture
def flat(write):
    """Ten photographs in one folder with their masks."""
    for index in range(10):
        write.image(f"p{index}.jpg")
        write.mask(f"p{index}_mask.png")
    return write


def names(root, split, **options):
    folder = LabelledFolder(root, **options)
    return SegmentationFolder(folder, split=split, num_classes=3).names


def test_flat_folder(flat):
    assert names(flat.root, None, **FLAT) == [f"p{index}" for index in range(10)]


def test_images_and_masks_of_one_ending(write):
    for name in ("a", "b"):
        write.image(f"{name}.png")
        write.mask(f"{name}_mask.png")
    assert names(write.root, None, images="*.png", masks="{stem}_mask.png") == ["a", "b"]


def test_folders_in_patterns(write):
    write.image("town/img/a.jpg")
    write.image("wood/img/a.jpg")
    write.mask("gt/town/img/a.jpg.png")
    write.mask("gt/wood/img/a.jpg.png")
    found = names(write.root, None, images="*/img/*.jpg", masks="gt/{folder}/{name}.png")
    assert found == ["town/img/a", "wood/img/a"]


def test_folders_that_repeat_beside_the_root(write):
    for day in ("one", "two"):
        write.image(f"img/{day}/a.jpg")
        write.mask(f"gt/{day}/a.png")
    options = {"images": "**/*.jpg", "masks": "../gt/{folder}/{stem}.png"}  # of docs/own_data.md
    assert names(write.root / "img", None, **options) == ["one/a", "two/a"]


def test_split_in_the_pattern(write):
    for split, name in (("train", "a"), ("val", "b")):
        write.image(f"{split}/{name}.jpg")
        write.mask(f"{split}/{name}.png")
    options = {"images": "{split}/*.jpg", "masks": "{stem}.png"}
    assert names(write.root, "val", **options) == ["val/b"]
    assert LabelledFolder(write.root, **options).splits() == ["train", "val"]
    with pytest.raises(InputError, match=r"no image is named test/\*\.jpg"):
        names(write.root, "test", **options)


def test_lists_of_names(flat):
    (flat.root / "train.txt").write_text("p3.jpg\np1\n")
    assert names(flat.root, "train", **FLAT) == ["p3", "p1"]
    with pytest.raises(InputError, match=r"no split 'val'; draw one with val_fraction=0\.2"):
        names(flat.root, "val", **FLAT)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"images": "*.jpg"}, "give images and masks"),
        (FLAT | {"masks": "mask.png"}, "{stem} (the image's name"),
        (FLAT | {"masks": "{stem.real}.png"}, "{stem} (the image's name"),
        (FLAT | {"images": "*.tif"}, r"no image is named *.tif; the folder has 10 *.jpg, 10 *.png"),
        (FLAT | {"masks": "{stem}.png"}, "none of 10 images has a mask: that of p0.jpg would be"),
        (FLAT | {"images": "/*.jpg"}, "not a pattern of names below"),
        (FLAT | {"images": "/{split}/*.jpg"}, "not a pattern of names below"),
        (FLAT | {"images": "."}, "not a pattern of names below"),
        (FLAT | {"test_fraction": 0.2}, "test_fraction needs val_fraction"),
        (FLAT | {"val_fraction": 1.5}, "val_fraction=1.5: must be at most 0.99"),
        (FLAT | {"masks_of": "instances", "colours": "auto"}, "leave out colours"),
    ],
)
def test_wrong_options(flat, options, line):
    with pytest.raises(InputError) as error:
        names(flat.root, LabelledFolder(flat.root, **options).splits()[0], **options)
    assert line in str(error.value)


def test_an_image_without_a_mask_is_named(flat):
    (flat.root / "p7_mask.png").unlink()
    with pytest.raises(InputError, match=r"p7\.jpg: image has no labels"):
        names(flat.root, None, **FLAT)


# ---- random splits


def test_splits_are_disjoint_whole_and_seeded(flat):
    options = FLAT | {"val_fraction": 0.2, "test_fraction": 0.3}
    found = {split: names(flat.root, split, **options) for split in ("train", "val", "test")}
    assert [len(found[split]) for split in ("train", "val", "test")] == [5, 2, 3]
    assert sorted(itertools.chain(*found.values())) == [f"p{index}" for index in range(10)]
    assert found["val"] == names(flat.root, "val", **options)
    others = {tuple(names(flat.root, "val", **options, split_seed=seed)) for seed in range(5)}
    assert len(others) > 1


def test_without_a_test_fraction_validation_images_test(flat):
    options = FLAT | {"val_fraction": 0.2}
    assert names(flat.root, "test", **options) == names(flat.root, "val", **options)


def test_a_split_of_images_and_masks_folders(write):
    write.pairs("", ["a", "b", "c", "d"])
    assert len(names(write.root, "train", val_fraction=0.25)) == 3


def test_most_names_stay_when_images_are_added():
    before = [f"img{index}" for index in range(100)]
    val = {*random_split(before, {"val": 0.2}, 0)["val"]}
    after = {*random_split([*before, "new1", "new2"], {"val": 0.2}, 0)["val"]}
    assert len(val & after) >= 18


def test_too_few_images():
    with pytest.raises(InputError, match=r"1 images are too few .* beside 0\.2 for val"):
        random_split(["a"], {"val": 0.2}, 0)


# ---- values


def test_instances_are_one_class(write):
    write.image("a.jpg")
    Image.fromarray(np.array([[0, 1], [700, 0]], np.uint16).repeat(6, 0).repeat(8, 1)).save(
        write.root / "a_mask.png"
    )
    data = SegmentationFolder(LabelledFolder(write.root, **FLAT, masks_of="instances"))
    assert data.classes == ("background", "object")
    assert data[0][1][::6, ::8].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("colours", ["auto", "colours.txt"])
def test_colours(write, colours):
    write.image("a.jpg")
    (write.root / "colours.txt").write_text("red 255 0 0\nblack 0 0 0\n")
    ids = np.arange(12 * 16).reshape(12, 16) % 2
    Image.fromarray(np.array([(0, 0, 0), (255, 0, 0)], np.uint8)[ids]).save(
        write.root / "a_mask.png"
    )
    data = SegmentationFolder(LabelledFolder(write.root, **FLAT, colours=colours))
    assert data.classes == (("#000000", "#ff0000") if colours == "auto" else ("red", "black"))
    assert np.array_equal(data[0][1].numpy(), ids if colours == "auto" else 1 - ids)


# ---- guesses


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["1.jpg", "10.jpg", "1_mask.png", "10_mask.png"], ("*.jpg", "{stem}_mask.png")),
        (["a.png", "b.png", "mask_a.png", "mask_b.png"], ("*.png", "mask_{stem}.png")),
        (["img/a.jpg", "img/b.jpg", "gt/a.png", "gt/b.png"], ("img/*.jpg", "gt/{stem}.png")),
        (["x/a.png", "x/b.png", "labels/a.png", "labels/b.png"], ("x/*.png", "labels/{stem}.png")),
        (["a.jpg", "b.jpg"], None),
        (["a.jpg", "b.png"], None),
    ],
)
def test_guesses(write, files, found):
    for file in files:
        write.image(file)
    assert guess_patterns(write.root) == found


def test_numbered_images_are_paired(tmp_path):
    """Their names are parts of one another in hundreds of ways; trying all would take minutes."""
    for number in range(6000):
        (tmp_path / f"{number}.jpg").touch()
        (tmp_path / f"{number}_mask.png").touch()
    assert guess_patterns(tmp_path) == ("*.jpg", "{stem}_mask.png")
