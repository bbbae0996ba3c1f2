"""`fsanet data check`: table, JSON, exit code and the one line."""

import json
from typing import get_args

import pytest
from PIL import Image
from support.miniature import write_camvid, write_cityscapes

from fsanet.cli import data as command
from fsanet.cli import main as cli
from fsanet.data.check import LAYOUTS
from fsanet.report import contact_sheet


@pytest.fixture
def coco_file():
    """Writes a folder of one image with a shape of each category."""
    pytest.importorskip("faster_coco_eval")

    def write(folder, names):
        Image.new("RGB", (30, 20)).save(folder / "a.png")
        image = {"id": 1, "file_name": "a.png", "height": 20, "width": 30}
        boxes = [[4 * i, 2, 4 * i + 3, 2, 4 * i + 3, 9] for i in range(len(names))]
        shapes = [
            {"id": i, "image_id": 1, "category_id": i, "segmentation": [box]}
            for i, box in enumerate(boxes, 1)
        ]
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        content = {"images": [image], "annotations": shapes, "categories": categories}
        (folder / "a.json").write_text(json.dumps(content))
        return folder

    return write


def run(capsys, *arguments):
    code = cli.main(["data", "check", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_clean_tree(tmp_path, capsys):
    root = write_cityscapes(tmp_path)
    code, out, err = run(capsys, root, "--subset", "--workers", "0", "--json", tmp_path / "r.json")
    assert (code, err) == (0, "")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") > 3}
    assert [cell.strip() for cell in rows["train"].split("│")[1:4]] == ["train", "3", "2975"]
    assert "not there" in rows["train (coarse)"]
    assert "nothing wrong" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["ok"] is True
    assert report["layout"] == "cityscapes"
    assert report["read"] == 6
    assert report["splits"][1]["images"] == 2


def test_problems_end_with_exit_code_2_and_one_line(tmp_path, capsys):
    root = write_camvid(tmp_path / "camvid")
    for name in ("train_0", "train_2"):
        (root / "train/masks" / f"{name}.png").write_bytes(b"")
    Image.new("L", (3, 4)).save(root / "val/masks/val_0.png")
    json_file = tmp_path / "r.json"
    arguments = (root, "--subset", "--workers", "0", "--json", json_file, "--show", "1")
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("fsanet: error: 3 problems, the first: ")
    assert err.count("\n") == 1
    assert f"{root / 'train/masks/train_0.png'}" in err
    assert "3 problems in all: unreadable 2, size 1" in out
    assert "train_2" not in out  # --show 1
    problems = json.loads(json_file.read_text())["problems"]
    assert [p["kind"] for p in problems] == ["unreadable", "unreadable", "size"]


def test_quick_reads_no_file(tmp_path, capsys):
    root = write_camvid(tmp_path / "camvid")
    (root / "train/masks/train_0.png").write_bytes(b"")
    code, out, _ = run(capsys, root, "--subset", "--quick")
    assert code == 0
    assert "names only" in out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_download_prints_what_to_get_where_and_how_to_check(tmp_path, capsys, layout):
    code, out, err = run(capsys, tmp_path / "none", "--layout", layout)
    assert code == 2
    assert err.count("\n") == 1
    for archive in LAYOUTS[layout].archives:
        assert archive in out
    assert LAYOUTS[layout].site in out
    assert f"{tmp_path / 'none'}/" in out
    if layout != "folder":
        assert f"fsanet data check {tmp_path / 'none'} --layout {layout}" in out
        assert "download" in err
    assert not (tmp_path / "none").exists()


def test_layouts_of_the_option_are_the_known_ones():
    assert tuple(LAYOUTS) == get_args(command.Layout)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--layout", "kitti"], "kitti"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        ([], "no known layout in it"),
    ],
)
def test_bad_options(tmp_path, capsys, arguments, line):
    code, _, err = run(capsys, tmp_path, *arguments)
    assert code == 2
    assert line in err


def test_statistics_of_class_names_that_hold_anything(tmp_path, capsys, coco_file):
    """Names of an annotation file are not printed as they are, and are no matter of memory."""
    names = ("a\x1b[31m\n", "b" * 100_000)
    root = coco_file(tmp_path, names)
    arguments = [str(root), "--data.annotations", "a.json", "--workers", "1"]
    code = cli.main(["data", "stats", *arguments, "--sheet", str(tmp_path / "sheet.png")])
    out, _ = capsys.readouterr()
    assert code == 0
    assert "a\\x1b[31m\\n" in out
    assert "\x1b" not in out
    assert "b" * 101 not in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width < 3000


def test_the_contact_sheet_is_evenly_spaced(tmp_path, monkeypatch):
    """Of 9 images, 6 are drawn from the whole folder; the letters of the legend fit its names."""
    for index in range(9):
        Image.new("RGB", (24, 16)).save(tmp_path / f"{index}.jpg")
        Image.new("L", (24, 16)).save(tmp_path / f"{index}_mask.png")
    drawn, write = [], contact_sheet.draw_contact_sheet

    def draw(items, *arguments):
        items = list(items)
        drawn.extend(name for name, _, _ in items)
        return write(items, *arguments)

    monkeypatch.setattr(contact_sheet, "draw_contact_sheet", draw)
    masks = ["--data.images", "*.jpg", "--data.masks", "{stem}_mask.png", "--workers", "0"]
    sheet = tmp_path / "sheet.png"
    arguments = ["data", "stats", str(tmp_path), *masks, "--sheet", str(sheet)]
    assert cli.main([*arguments, "--sheet-images", "6"]) == 0
    assert drawn == ["0", "1", "3", "4", "6", "7"]
    with Image.open(sheet) as picture:
        assert picture.height - (6 + 2 * (180 + 18 + 6)) < 60  # one line of the legend


@pytest.mark.parametrize("workers", ["-1", "100000000"])
def test_statistics_with_so_many_workers(tmp_path, capsys, coco_file, workers):
    root = coco_file(tmp_path, ["a"])
    arguments = ["data", "stats", str(root), "--data.annotations", "a.json", "--workers", workers]
    assert cli.main(arguments) == 2
    assert f"workers={workers}: must be" in capsys.readouterr().err
