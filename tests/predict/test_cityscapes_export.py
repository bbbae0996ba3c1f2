import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fsanet.data.datasets.cityscapes import CLASSES, PALETTE
from fsanet.errors import InputError
from fsanet.predict.cityscapes_export import check_cityscapes_classes, export_cityscapes

# The order and ids of the published label definitions, typed here on purpose: an independent copy.
LABELS = """
unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road,
sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole,
polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck,
bus, caravan, trailer, train, motorcycle, bicycle
"""


class Reader(nn.Module):
    """Says the class that the red channel of a pixel names, so that the result is known."""

    classes = CLASSES
    palette = PALETTE
    num_classes = 19

    def normalise(self, images):
        return images.float()

    def forward(self, images):
        ids = torch.arange(19.0)[:, None, None]
        return -(images[:, :1] / 10 - ids).abs()  # (B, 19, H, W)


@pytest.fixture
def images(tmp_path):
    """Two cities; each image holds all 19 classes."""
    rng = np.random.default_rng(0)
    truth = {}
    for name in ("berlin_000000_000019", "bad-honnef_000001_000019", "berlin_000001_000019"):
        ids = rng.permutation(np.arange(24) % 19).reshape(4, 6).repeat(3, 0).repeat(3, 1)
        folder = tmp_path / "leftImg8bit" / "test" / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.stack([ids * 10] * 3, -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}_leftImg8bit.png")
        truth[name] = ids
    return tmp_path / "leftImg8bit" / "test", truth


def test_round_trip(images, tmp_path):
    folder, truth = images
    names = [name.strip() for name in LABELS.split(",")]
    done = export_cityscapes(Reader(), folder, tmp_path / "out" / "all.zip", progress=False)
    assert (done.images, done.other_sizes) == (3, 3)
    with zipfile.ZipFile(done.file) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [f"{n}_gtFine_labelIds.png" for n in sorted(truth)]
        for name, ids in truth.items():
            with Image.open(io.BytesIO(archive.read(f"{name}_gtFine_labelIds.png"))) as mask:
                assert mask.mode == "L"
                found = [[names[value] for value in row] for row in np.asarray(mask).tolist()]
            assert found == [[CLASSES[value] for value in row] for row in ids.tolist()]


def test_read_back_by_the_reader_of_the_data_set(images, tmp_path):
    """The zip, unpacked as ground truth, is read as the train ids that were predicted."""
    from fsanet.data.datasets.cityscapes import Cityscapes

    folder, truth = images
    export_cityscapes(Reader(), folder, tmp_path / "all.zip", progress=False)
    root = tmp_path / "tree"
    (root / "leftImg8bit").mkdir(parents=True)
    (root / "leftImg8bit" / "val").symlink_to(folder)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        for name in archive.namelist():
            archive.extract(name, root / "gtFine" / "val" / name.split("_")[0])
    dataset = Cityscapes(root, "val")
    assert len(dataset) == 3
    masks = {dataset[i][1].numpy().tobytes() for i in range(3)}
    assert masks == {ids.astype(np.int64).tobytes() for ids in truth.values()}


def test_same_predictions_make_the_same_file(images, tmp_path):
    folder, _ = images
    for name in ("a.zip", "b.zip"):
        export_cityscapes(Reader(), folder, tmp_path / name, progress=False)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_unreadable_image_leaves_no_zip(images, tmp_path):
    folder, _ = images
    (folder / "berlin" / "berlin_000009_000019_leftImg8bit.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "all.zip").write_bytes(b"before")
    with pytest.raises(InputError, match="berlin_000009"):
        export_cityscapes(Reader(), folder, tmp_path / "all.zip", progress=False)
    assert (tmp_path / "all.zip").read_bytes() == b"before"
    assert not list(tmp_path.glob(".*partial"))


def test_resumed_export_is_that_of_an_undisturbed_one(images, tmp_path):
    folder, _ = images
    whole = export_cityscapes(Reader(), folder, tmp_path / "whole.zip", progress=False).file
    bad = folder / "berlin" / "berlin_000001_000019_leftImg8bit.png"
    good = bad.read_bytes()
    bad.write_bytes(b"\x89PNG no more")
    file = tmp_path / "all.zip"
    with pytest.raises(InputError, match=r"berlin_000001.*1 not read.*--resume"):
        export_cityscapes(Reader(), folder, file, progress=False)
    parts = tmp_path / "all.zip.parts"
    made = {path: path.stat().st_mtime_ns for path in parts.rglob("*_labelIds.png")}
    assert len(made) == 2
    bad.write_bytes(good)
    with pytest.raises(InputError, match="with flip false, not true"):
        export_cityscapes(Reader(), folder, file, resume=True, flip=True, progress=False)
    calls = []
    reader = Reader()
    reader.register_forward_hook(lambda *_: calls.append(1))
    export_cityscapes(reader, folder, file, resume=True, progress=False)
    assert len(calls) == 1
    assert file.read_bytes() == whole.read_bytes()
    assert not parts.exists()
    # Files of others in that folder stay.
    parts.mkdir()
    (parts / "mine.txt").touch()
    export_cityscapes(reader, folder, file, progress=False)
    assert [path.name for path in parts.rglob("*")] == ["mine.txt"]


def test_names_are_checked_before_the_work(images, tmp_path):
    folder, _ = images
    first = folder / "berlin" / "berlin_000000_000019_leftImg8bit.png"
    (folder / "copy").mkdir()
    copy = folder / "copy" / first.name
    copy.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match="the same image as"):
        export_cityscapes(Reader(), folder, tmp_path / "all.zip", progress=False)
    copy.rename(folder / "copy" / "photo.png")
    with pytest.raises(InputError, match=r"photo\.png: not named like an image of Cityscapes"):
        export_cityscapes(Reader(), folder, tmp_path / "all.zip", progress=False)
    with pytest.raises(InputError, match=r"all\.tar: .*\.zip"):
        export_cityscapes(Reader(), first, tmp_path / "all.tar", progress=False)


def test_classes_of_other_data_sets():
    check_cityscapes_classes([str(i) for i in range(19)])
    check_cityscapes_classes([name.replace(" ", "_").title() for name in CLASSES])
    with pytest.raises(InputError, match="has 3 classes"):
        check_cityscapes_classes("abc")
    swapped = list(CLASSES)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    with pytest.raises(InputError, match="class 3 of the model is 'fence'"):
        check_cityscapes_classes(swapped)
