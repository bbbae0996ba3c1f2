"""Class ids drawn from the shapes of an annotation file."""

import json

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval")

from fsanet.data.check import check_data
from fsanet.data.datasets.base import MissingData
from fsanet.data.datasets.labelled_folder import LabelledFolder, SegmentationFolder
from fsanet.data.modules import FolderData
from fsanet.errors import InputError


@pytest.fixture
def shapes(write, coco_content):
    """Three photographs in a sub-folder, and their annotations."""
    for name in ("a", "b", "c"):
        write.image(f"photos/{name}.png", size=(20, 30))
    (write.root / "shapes.json").write_text(json.dumps(coco_content))
    return write


def load(root, **options):
    return SegmentationFolder(LabelledFolder(root, annotations="shapes.json", **options))


def test_later_shapes_cover_earlier_ones(shapes):
    data = load(shapes.root)
    assert data.names == ["photos/a", "photos/b", "photos/c"]
    assert data.classes == ("background", "cat", "dog")
    ids = data[0][1].numpy()
    assert set(np.unique(ids)) == {1}  # the crowd of all pixels comes after the dog
    assert set(np.unique(data[1][1])) == {0, 1}
    assert (data[1][1][10:20, 20:25] == 1).all()
    assert (data[2][1] == 0).all()


def test_pixels_outside_are_ignored_where_asked(shapes):
    data = load(shapes.root, outside="ignore")
    assert data.classes == ("cat", "dog")
    assert set(np.unique(data[1][1])) == {0, 255}


def test_images_that_are_not_listed_are_left_out_and_reported(shapes):
    shapes.image("photos/new.png", size=(20, 30))
    (shapes.root / "photos/c.png").unlink()
    data = FolderData(shapes.root, annotations="shapes.json", val_fraction=0.5)
    assert len(data.dataset("train")) + len(data.dataset("val")) == 2
    report = check_data(shapes.root, module=data, workers=0)
    assert [problem.kind for problem in report.problems] == ["no image"]
    assert "image c.png: no such image" in report.problems[0].message
    assert any("does not list 1 images" in note for note in report.notes)


def test_wrong_shapes_stop_a_training_and_are_listed_by_a_check(shapes, coco_content):
    coco_content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    (shapes.root / "shapes.json").write_text(json.dumps(coco_content))
    with pytest.raises(InputError, match=r"annotation 11 \(image a\.png\): a polygon needs three"):
        load(shapes.root)
    data = FolderData(shapes.root, annotations="shapes.json", val_fraction=0.5)
    assert check_data(shapes.root, module=data, workers=0).problems[0].kind == "annotation"


def test_an_image_that_is_listed_twice(shapes, coco_content):
    coco_content["images"].append(coco_content["images"][0] | {"id": 99})
    (shapes.root / "shapes.json").write_text(json.dumps(coco_content))
    with pytest.raises(InputError, match=r"is listed twice; join its shapes, or remove one"):
        load(shapes.root)


def test_a_check_finds_the_annotations(shapes):
    report = check_data(shapes.root, workers=0)
    assert report.ok
    notes = ("read as --data.annotations 'shapes.json'", "no splits: train with", "classes: 0 b")
    assert all(note.startswith(part) for note, part in zip(report.notes, notes, strict=False))
    given = FolderData(shapes.root, annotations="shapes.json", val_fraction=0.5)
    report = check_data(shapes.root, module=given, workers=0)
    assert report.notes[0] == "classes: 0 background, 1 cat, 2 dog"


def test_splits_by_name(shapes, coco_content):
    for split, image in (("train", 3), ("val", 7)):
        part = dict(coco_content)
        part["images"] = [one for one in part["images"] if one["id"] == image]
        part["annotations"] = [one for one in part["annotations"] if one["image_id"] == image]
        (shapes.root / f"{split}.json").write_text(json.dumps(part))
    data = FolderData(shapes.root, annotations="{split}.json")
    assert data.dataset("train").names == ["photos/a"]
    assert data.dataset("val").names == ["photos/b"]
    with pytest.raises(MissingData, match=r"test\.json: no such annotation file"):
        data.dataset("test")
    absolute = FolderData(shapes.root, annotations=str(shapes.root / "{split}.json"))
    assert absolute.folder.splits() == ["train", "val"]
    assert absolute.dataset("val").names == ["photos/b"]


@pytest.mark.parametrize("given", ["photos/a.png", "other/photos/a.png", "a.png", "0f1e2d3c-a.png"])
def test_names_of_images_in_files(shapes, coco_content, given):
    coco_content["images"] = [coco_content["images"][1] | {"file_name": given}]
    coco_content["annotations"] = coco_content["annotations"][:1]
    (shapes.root / "shapes.json").write_text(json.dumps(coco_content))
    assert load(shapes.root).names == ["photos/a"]


def test_two_images_of_one_name(shapes, coco_content):
    shapes.image("more/a.png", size=(20, 30))
    problems = LabelledFolder(shapes.root, annotations="shapes.json").listing(None).problems
    assert "image a.png: 2 images have that name" in problems[0].message
