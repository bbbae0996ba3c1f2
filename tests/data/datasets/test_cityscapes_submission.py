import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fsanet.data.datasets.cityscapes import CLASSES, PALETTE, check_submission, write_submission
from fsanet.errors import InputError
from fsanet.predict.folder import predict_folder, remove_results

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


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two cities; each image holds all 19 classes."""
    root = tmp_path_factory.mktemp("cityscapes") / "leftImg8bit" / "test"
    rng = np.random.default_rng(0)
    truth = {}
    for name in ("berlin_000000_000019", "bad-honnef_000001_000019", "berlin_000001_000019"):
        ids = rng.permutation(np.arange(24) % 19).reshape(4, 6).repeat(3, 0).repeat(3, 1)
        folder = root / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.stack([ids * 10] * 3, -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}_leftImg8bit.png")
        truth[name] = ids
    return root, truth


@pytest.fixture(scope="module")
def predicted(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    predict_folder(Reader(), images[0], out, progress=False)
    return out


def test_round_trip(images, predicted, tmp_path):
    _, truth = images
    names = [name.strip() for name in LABELS.split(",")]
    file = tmp_path / "out" / "all.zip"
    assert len(write_submission(predicted, file)) == 3  # all too small for the server
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [f"{n}_gtFine_labelIds.png" for n in sorted(truth)]
        for name, ids in truth.items():
            with Image.open(io.BytesIO(archive.read(f"{name}_gtFine_labelIds.png"))) as mask:
                assert mask.mode == "L"
                found = [[names[value] for value in row] for row in np.asarray(mask).tolist()]
            assert found == [[CLASSES[value] for value in row] for row in ids.tolist()]
    write_submission(predicted, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()


def test_read_back_by_the_reader_of_the_data_set(images, predicted, tmp_path):
    """The zip file, unpacked as ground truth, is read as the train ids that were predicted."""
    from fsanet.data.datasets.cityscapes import Cityscapes

    folder, truth = images
    write_submission(predicted, tmp_path / "all.zip")
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


def test_an_incomplete_folder_leaves_no_zip(images, tmp_path):
    source = tmp_path / "images"
    shutil.copytree(images[0], source)
    (source / "berlin" / "berlin_000009_000019_leftImg8bit.png").write_bytes(b"\x89PNG no more")
    predict_folder(Reader(), source, tmp_path / "out", progress=False)
    (tmp_path / "all.zip").write_bytes(b"before")
    with pytest.raises(InputError, match=r"berlin_000009.*1 not read.*--resume"):
        write_submission(tmp_path / "out", tmp_path / "all.zip")
    (source / "berlin" / "berlin_000009_000019_leftImg8bit.png").unlink()
    predict_folder(Reader(), source / "berlin", tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="masks of 3 images, 2 of them from the last run"):
        write_submission(tmp_path / "out", tmp_path / "all.zip")
    assert (tmp_path / "all.zip").read_bytes() == b"before"
    assert not list(tmp_path.glob(".*partial"))


def test_removing_predictions_leaves_the_files_of_others(predicted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(predicted, out)
    (out / "berlin" / "mine.txt").touch()
    remove_results(out)
    assert [path.name for path in out.rglob("*")] == ["berlin", "mine.txt"]
    (out / "berlin" / "mine.txt").unlink()
    remove_results(out)
    assert not out.exists()


def test_names_and_classes_are_checked_before_the_work():
    first = Path("berlin/berlin_000000_000019_leftImg8bit.png")
    classes = CLASSES
    file = Path("all.zip")
    swapped = [*classes[:3], classes[4], classes[3], *classes[5:]]
    check_submission(file, [str(i) for i in range(19)], [first])
    check_submission(file, [name.replace(" ", "_").title() for name in classes], [first])
    for bad_file, bad_classes, paths, line in [
        (file, classes, [first, Path("copy", first.name)], "the same image as"),
        (file, classes, [first, Path("photo.png")], r"photo\.png: not named like an image"),
        (Path("all.tar"), classes, [first], r"all\.tar: .*\.zip"),
        (file, "abc", [first], "has 3 classes"),
        (file, swapped, [first], "class 3 of the model is 'fence'"),
    ]:
        with pytest.raises(InputError, match=line):
            check_submission(bad_file, bad_classes, paths)
