from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from fsanet.data.datasets.labelled_folder import SegmentationFolder
from fsanet.errors import InputError


def load(root: Path, **options):
    return SegmentationFolder(root, **{"num_classes": 3, **options})


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# ---- layouts


def test_flat_set_pairs_by_stem_in_sorted_order(write):
    write.pairs("", ["b", "a"], suffix="jpg")
    write.mask("masks/without_image.png")
    write.image("images/.hidden.png")
    data = load(write.root)
    assert data.names == ["a", "b"]
    assert [p.name for p in data.image_paths] == ["a.jpg", "b.jpg"]
    assert [p.name for p in data.mask_paths] == ["a.png", "b.png"]
    assert len(data) == 2


def test_splits_as_sub_folders(write):
    write.pairs("train", ["a", "b"])
    write.pairs("val", ["c"])
    assert load(write.root, split="train").names == ["a", "b"]
    assert load(write.root, split="val").names == ["c"]


def test_splits_as_list_files_keep_their_order_and_know_extensions(write):
    write.pairs("", ["a", "b.left", "c", "d"])
    (write.root / "train.txt").write_text("# order of mine\nc\n\nb.left\n  a.png \n")
    (write.root / "val.txt").write_text("\ufeffd\n", encoding="utf-8")
    assert load(write.root, split="train").names == ["c", "b.left", "a"]
    assert load(write.root, split="val").names == ["d"]


def test_list_file_asks_for_masks_of_its_own_names_only(write):
    write.pairs("", ["a"])
    write.image("images/unlabelled.png")
    (write.root / "train.txt").write_text("a\n")
    assert load(write.root, split="train").names == ["a"]


# ---- items


def test_item_types_and_values(write):
    path = write.image("images/a.png", size=(5, 7))
    ids = np.array([[0, 1, 2, 255, 0, 1, 2]] * 5)
    write.mask("masks/a.png", ids)
    image, mask = load(write.root)[0]
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype is torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype is torch.int64
    assert np.array_equal(mask.numpy(), ids)


def test_ignore_index_is_free(write):
    write.image("images/a.png")
    write.mask("masks/a.png", np.full((12, 16), 9))
    assert int(load(write.root, ignore_index=9)[0][1].max()) == 9
    with pytest.raises(InputError, match="id 9 out of range"):
        load(write.root)[0]


# ---- bad input at construction


def test_missing_root(tmp_path):
    with pytest.raises(InputError) as error:
        load(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: no such folder" in one_line(error)


@pytest.mark.parametrize("present", ["images", "masks"])
def test_missing_sub_folder(write, present):
    (write.root / present).mkdir(parents=True)
    absent = {"images": "masks", "masks": "images"}[present]
    with pytest.raises(InputError) as error:
        load(write.root)
    assert f"{write.root}: no folder {absent}/" in one_line(error)


def test_flat_use_of_a_set_with_splits_names_them(write):
    write.pairs("train", ["a"])
    write.pairs("val", ["b"])
    with pytest.raises(InputError, match=r"no folder images/.*splits found: train, val"):
        load(write.root)


def test_unknown_split_names_the_known_ones(write):
    write.pairs("", ["a"])
    (write.root / "training.txt").write_text("a\n")
    with pytest.raises(InputError) as error:
        load(write.root, split="train")
    assert "no split 'train'" in one_line(error)
    assert "splits found: training" in one_line(error)


def test_empty_image_folder(write):
    write.mask("masks/a.png")
    (write.root / "images").mkdir()
    (write.root / "images" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"set/images: folder holds no image"):
        load(write.root)


def test_empty_mask_folder_and_jpeg_masks(write):
    write.image("images/a.png")
    (write.root / "masks").mkdir()
    with pytest.raises(InputError, match=r"set/masks: folder holds no mask; save"):
        load(write.root)
    write.mask("masks/a.jpg")
    with pytest.raises(InputError, match="JPEG changes class ids"):
        load(write.root)


def test_image_with_no_mask_names_both_files(write):
    write.pairs("", ["a", "b", "c"])
    (write.root / "masks/b.png").unlink()
    with pytest.raises(InputError) as error:
        load(write.root)
    message = one_line(error)
    assert f"{write.root}/images/b.png: image has no labels in" in message
    assert f"{write.root}/masks" in message
    assert "more" not in message
    (write.root / "masks/c.png").unlink()
    with pytest.raises(InputError, match="and 1 more like it"):
        load(write.root)


def test_two_images_of_one_name(write):
    write.pairs("", ["a"])
    write.image("images/a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg and a\.png share a name"):
        load(write.root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nx\n", r"train\.txt, line 2: no image named 'x'"),
        ("a\nb\na.png\n", r"line 3: 'a\.png' is already on line 1"),
        ("# nothing\n", "names no image"),
    ],
)
def test_bad_list_files(write, text, message):
    write.pairs("", ["a", "b"])
    (write.root / "train.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        load(write.root, split="train")


def test_binary_list_file(write):
    write.pairs("", ["a"])
    (write.root / "train.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"train\.txt: list file is not UTF-8 text"):
        load(write.root, split="train")


def test_set_of_0_255_masks_is_refused(write):
    for i in range(20):
        write.image(f"images/{i}.png")
        write.mask(f"masks/{i}.png", write.rng.integers(0, 2, (12, 16)) * 255)
    with pytest.raises(InputError, match=r"set/masks: .*0/255 masks: divide them by 255"):
        load(write.root, num_classes=2)
    # One true 1 anywhere shows that 255 is meant as ignore.
    write.mask("masks/7.png", np.eye(12, 16))
    assert len(load(write.root, num_classes=2)) == 20


# ---- bad input at reading


def test_size_mismatch_names_files_and_sizes(write):
    image = write.image("images/a.png", size=(12, 16))
    mask = write.mask("masks/a.png", np.zeros((10, 16)))
    with pytest.raises(InputError) as error:
        load(write.root)[0]
    assert f"{mask}: labels are 16x10 pixels, but their image {image} is 16x12" in one_line(error)


def test_turned_image_gets_a_hint_at_exif(write):
    exif = Image.Exif()
    exif[0x0112] = 6
    write.image("images/a.jpg", size=(12, 16), exif=exif)
    write.mask("masks/a.png", np.zeros((12, 16)))
    with pytest.raises(InputError, match="EXIF orientation"):
        load(write.root)[0]


def test_bad_ignore_index(tmp_path):
    with pytest.raises(InputError, match="ignore_index=300"):
        load(tmp_path, ignore_index=300)
