"""Each fault in turn, planted in a miniature of each layout, is found and named."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from support.miniature import (
    write_ade20k,
    write_camvid,
    write_cityscapes,
    write_coco,
    write_voc,
)

pytest.importorskip("scipy", reason="the miniature's .mat files are written with SciPy")
pytest.importorskip("faster_coco_eval")

from fsanet.data.check import check_data, guess_layout
from fsanet.data.datasets import cityscapes
from fsanet.errors import InputError

WRITE = {
    "cityscapes": write_cityscapes,
    "ade20k": write_ade20k,
    "voc": write_voc,
    "coco": write_coco,
    "camvid": write_camvid,
}
# Of each layout: an image of the miniature, its labels, a value that means nothing.
FILES = {
    "cityscapes": (
        "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png",
        "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
        34,
    ),
    "ade20k": (
        "ADEChallengeData2016/images/training/ADE_train_00000002.jpg",
        "ADEChallengeData2016/annotations/training/ADE_train_00000002.png",
        151,
    ),
    "voc": (
        "VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg",
        "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png",
        21,
    ),
    "camvid": ("val/images/val_1.jpg", "val/masks/val_1.png", 11),
}
MASKS = sorted(FILES)


def check(root, layout, **options):
    return check_data(root, layout, **{"subset": True, "workers": 0, **options})


def only_problem(report):
    """The one problem, found once although train_aug of VOC shares its pair with train."""
    assert len(report.problems) == 1, report.problems
    assert not report.ok
    assert "\n" not in report.problems[0].message
    return report.problems[0]


@pytest.mark.parametrize("layout", WRITE)
def test_clean_miniature_has_no_problem(tmp_path, layout):
    root = WRITE[layout](tmp_path / layout)
    assert guess_layout(root) == layout
    seen = []
    report = check(root, None, progress=lambda *step: seen.append(step))
    assert report.ok
    assert report.problems == []
    assert report.layout == layout
    # Distinct pairs: VOC has 2 + 2, and 3 more of SBD alone.
    expected = {"cityscapes": 6, "ade20k": 5, "voc": 7, "coco": 6, "camvid": 7}[layout]
    assert report.read == expected
    assert seen == [(i, expected) for i in range(1, expected + 1)]


@pytest.mark.parametrize("layout", WRITE)
def test_numbers_are_compared_with_the_published_ones(tmp_path, layout):
    root = WRITE[layout](tmp_path / layout)
    report = check(root, layout, subset=False, quick=True)
    published = {
        "cityscapes": {"train": (3, 2975), "val": (2, 500), "test": (1, 1525)},
        "ade20k": {"training": (3, 20210), "validation": (2, 2000)},
        "voc": {"train": (2, 1464), "val": (2, 1449), "train_aug": (5, 10582)},
        "coco": {"train2017": (4, 118287), "val2017": (2, 5000)},
        "camvid": {"train": (3, 367), "val": (2, 101), "test": (2, 233)},
    }[layout]
    assert {p.kind for p in report.problems} == {"count"}
    assert [p.message for p in report.problems] == [
        f"{root}: {found} images in {name}, published are {count}"
        for name, (found, count) in published.items()
    ]
    assert report.read == 0


def touch(folder, ending, names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}{ending}").touch()


def test_data_of_the_published_numbers_passes(tmp_path, monkeypatch):
    counts = {"train": 5, "val": 3, "test": 4, "train_extra": 9}
    monkeypatch.setattr(cityscapes, "_COUNTS", counts)
    for split in ("train", "val", "test"):
        names = [f"city_{number:06d}_000019" for number in range(counts[split])]
        touch(tmp_path / "leftImg8bit" / split / "city", "_leftImg8bit.png", names)
        if split != "test":
            touch(tmp_path / "gtFine" / split / "city", "_gtFine_labelIds.png", names)
    report = check_data(tmp_path, quick=True)
    assert report.ok, report.problems
    (tmp_path / "leftImg8bit/test/city/city_000003_000019_leftImg8bit.png").unlink()
    (problem,) = check_data(tmp_path, quick=True).problems
    assert problem.message == f"{tmp_path}: 3 images in test, published are 4"


def test_order_of_ade20ks_classes_is_compared(tmp_path):
    root = write_ade20k(tmp_path)
    file = root / "ADEChallengeData2016/objectInfo150.txt"
    file.write_text(file.read_text().replace("\tsky,", "\tfloor,"))
    problem = only_problem(check(root, None))
    assert (problem.kind, problem.path) == ("classes", str(file))


def test_every_layout_reads_with_worker_processes_too(tmp_path):
    root = write_cityscapes(tmp_path, coarse=True)
    (root / FILES["cityscapes"][1]).write_bytes(b"no image")
    alone, helped = (check(root, None, workers=workers) for workers in (0, 2))
    assert helped.problems == alone.problems
    assert helped.splits == alone.splits
    assert [s.name for s in helped.splits if s.found] == [
        *("train", "val", "test"),
        *("train (coarse)", "val (coarse)", "train_extra (coarse)"),
    ]


@pytest.mark.parametrize("layout", MASKS)
def test_values_of_the_labels_are_listed(tmp_path, layout):
    root = WRITE[layout](tmp_path / layout)
    values = np.asarray(Image.open(root / FILES[layout][1]))
    report = check(root, layout)
    split = {"cityscapes": "val", "ade20k": "training", "voc": "train", "camvid": "val"}[layout]
    (summary,) = [s for s in report.splits if s.name == split]
    listed = set()
    for part in summary.ids.split(", "):
        first, _, last = part.partition("..")
        listed |= set(range(int(first), int(last or first) + 1))
    assert set(np.unique(values).tolist()) <= listed


@pytest.mark.parametrize("layout", MASKS)
def test_id_out_of_range(tmp_path, layout):
    root = WRITE[layout](tmp_path / layout)
    _, labels, value = FILES[layout]
    ids = np.array(Image.open(root / labels))
    ids[3, 5] = value
    Image.fromarray(ids).save(root / labels)
    problem = only_problem(check(root, layout))
    assert problem.kind == "ids"
    assert problem.path == str(root / labels)
    assert f"{root / labels}: id {value} is out of range" in problem.message


@pytest.mark.parametrize("layout", MASKS)
def test_labels_of_another_size(tmp_path, layout):
    root = WRITE[layout](tmp_path / layout)
    image, labels, _ = FILES[layout]
    ids = np.array(Image.open(root / labels))
    Image.fromarray(ids[:-1, :-2]).save(root / labels)
    problem = only_problem(check(root, layout))
    h, w = ids.shape
    assert problem.kind == "size"
    assert f"{root / labels}: labels are {w - 2}x{h - 1} pixels" in problem.message
    assert f"{root / image} is {w}x{h}" in problem.message


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("layout", MASKS)
def test_truncated_file(tmp_path, layout, part):
    root = WRITE[layout](tmp_path / layout)
    path = root / FILES[layout][part]
    path.write_bytes(path.read_bytes()[:-60])
    problem = only_problem(check(root, layout))
    assert (problem.kind, problem.path) == ("unreadable", str(path))
    assert check(root, layout, quick=True).ok  # names alone do not show it


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("layout", MASKS)
def test_partner_missing(tmp_path, layout, part):
    root = WRITE[layout](tmp_path / layout)
    (root / FILES[layout][part]).unlink()
    report = check(root, layout, quick=True)
    alone = root / FILES[layout][1 - part]
    # VOC's lists name the image; it is in train and in train_aug.
    assert len(report.problems) == (2 if layout == "voc" else 1)
    problem = report.problems[0]
    assert problem.kind == ("no labels" if part else "no image")
    assert problem.path == str(root / FILES[layout][0] if layout == "voc" else alone)


@pytest.mark.parametrize(("layout", "part"), [("cityscapes", "gtFine/val"), ("camvid", "val")])
def test_split_missing(tmp_path, layout, part):
    root = WRITE[layout](tmp_path / layout)
    shutil.rmtree(root / part)
    assert check(root, layout).ok  # of a subset nothing more is asked
    missing = [p for p in check(root, layout, subset=False).problems if p.kind == "missing"]
    (problem,) = missing
    assert part in problem.message
    assert "download" in problem.message


def test_masks_where_nothing_is_scored_are_noted(tmp_path):
    root = write_camvid(tmp_path / "camvid")
    Image.fromarray(np.full((36, 48), 255, np.uint8)).save(root / FILES["camvid"][1])
    report = check(root, None)
    assert report.ok
    assert report.notes == ["val: 1 label files hold no pixel that is scored"]


def test_sbd_faults(tmp_path):
    root = write_voc(tmp_path)
    dataset = root / "benchmark_RELEASE/dataset"
    (dataset / "cls/2008_000002.mat").write_bytes(b"MATLAB 5.0")
    problem = only_problem(check(root, None))
    assert (problem.kind, problem.path) == ("unreadable", str(dataset / "cls/2008_000002.mat"))
    (dataset / "train.txt").unlink()
    assert "train.txt: no such list file" in only_problem(check(root, None)).message
    shutil.rmtree(dataset)
    report = check(root, None)
    assert report.ok
    assert [s.found for s in report.splits] == [True, True, False]


# ---- COCO


def edit(root, change):
    file = root / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        (lambda c: c["annotations"][1].update(category_id=12), "annotation", "category_id 12"),
        (lambda c: c["annotations"][1].update(image_id=9), "annotation", "image_id 9"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 5, 0]), "annotation", "no area"),
        (lambda c: c["images"][0].update(height=63), "size", "80x64 pixels, .* say 80x63"),
        (lambda c: c["categories"].pop(), "count", "79 categories, published are 80"),
        (lambda c: c["images"].pop(), "no labels", "do not list this image"),
        (lambda c: c.pop("images"), "list", "no list 'images'"),
    ],
)
def test_faults_of_the_annotations(tmp_path, change, kind, line):
    root = write_coco(tmp_path)
    edit(root, change)
    report = check_data(root, workers=0)
    (problem,) = [p for p in report.problems if " images in " not in p.message]
    assert problem.kind == kind
    assert re.search(line, problem.message)


def test_faulty_annotations_are_all_named(tmp_path):
    root = write_coco(tmp_path)
    edit(root, lambda c: [a.update(category_id=12) for a in c["annotations"]])
    assert len(check(root, None).problems) == 2


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_coco_image(tmp_path, damage):
    root = write_coco(tmp_path)
    path = root / "train2017/000000000003.jpg"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:400])
    else:
        path.unlink()
    problem = only_problem(check(root, None))
    assert problem.kind == {"cut": "unreadable", "gone": "no image"}[damage]
    assert problem.path == str(path)


# ---- folders of one's own, guessing, options


def test_folder_layouts(tmp_path):
    root = write_camvid(tmp_path / "mine")
    assert guess_layout(root) == "folder"
    report = check_data(root, workers=0)
    assert report.ok
    assert report.notes == ["number of classes not given: ids are listed, but not checked"]
    assert sorted((s.name, s.images) for s in report.splits) == [
        *(("test", 2), ("train", 3)),
        ("val", 2),
    ]
    assert check_data(root, num_classes=11, workers=0).ok
    problems = check_data(root, num_classes=10, workers=0).problems
    assert {p.kind for p in problems} == {"ids"}
    assert "class id 10 out of range for 10 classes (0..9" in problems[0].message
    flat = root / "train"
    assert [(s.name, s.images) for s in check_data(flat, workers=0).splits] == [("all", 3)]
    (flat / "half.txt").write_text("train_1\n")
    assert [(s.name, s.images) for s in check_data(flat, workers=0).splits] == [("half", 1)]
    (flat / "half.txt").write_text("train_9\n")
    assert "line 1: no image named 'train_9'" in check_data(flat, workers=0).problems[0].message


def test_what_cannot_be_guessed(tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder"):
        check_data(tmp_path / "none")
    with pytest.raises(InputError, match=r"by --data\.images and .* give --layout \(cityscapes"):
        check_data(tmp_path)


@pytest.mark.parametrize("layout", [*WRITE, "folder"])
def test_nothing_there(tmp_path, layout):
    with pytest.raises(InputError, match=r"download|no such folder"):
        check_data(tmp_path / "none", layout)


@pytest.mark.parametrize("options", [{"workers": -1}, {"num_classes": 0}, {"num_classes": 300}])
def test_options_that_make_no_sense(tmp_path, options):
    with pytest.raises(InputError, match=next(iter(options))):
        check_data(write_camvid(tmp_path), "folder", **options)


@pytest.mark.parametrize(
    ("layout", "module", "line"),
    [
        ("voc", "scipy.io", "pip install scipy"),
        ("coco", "faster_coco_eval.core", "pip install faster-coco-eval"),
    ],
)
def test_missing_package_is_one_error_and_no_fault_of_the_files(
    tmp_path, monkeypatch, layout, module, line
):
    root = WRITE[layout](tmp_path / layout)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=line):
        check(root, layout)
