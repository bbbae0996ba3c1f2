import numpy as np
import pytest
from PIL import Image
from support.miniature import ADE20K, write_ade20k

from fsanet.data import Ade20k
from fsanet.data.datasets.ade20k import CLASSES, check_object_info
from fsanet.errors import InputError


def test_items_have_ids_reduced_by_one_and_zero_ignored(tmp_path):
    root = write_ade20k(tmp_path)
    data = Ade20k(root, "train")
    assert data.names == list(ADE20K["training"])
    assert data.num_classes == 150
    seen = set()
    for index, name in enumerate(data.names):
        path = root / "ADEChallengeData2016/annotations/training" / f"{name}.png"
        values = np.asarray(Image.open(path)).astype(int)
        expected = np.where(values == 0, 255, values - 1)
        image, mask = data[index]
        assert np.array_equal(mask.numpy(), expected)
        assert image.shape[1:] == mask.shape
        seen |= set(values.ravel().tolist())
    assert {0, 150} <= seen  # the miniature has both ends of the range


def test_root_may_be_the_folder_itself(tmp_path):
    root = write_ade20k(tmp_path)
    assert len(Ade20k(root / "ADEChallengeData2016", "val")) == len(ADE20K["validation"])


def test_missing_download_and_unknown_split(tmp_path):
    with pytest.raises(InputError, match=r"ADEChallengeData2016.zip from http://sceneparsing"):
        Ade20k(tmp_path)
    with pytest.raises(InputError, match=r"split='test': ADE20K has train, val"):
        Ade20k(tmp_path, "test")


def info(rows):
    return "Idx\tRatio\tTrain\tVal\tName\n" + "".join(
        f"{i} \t0.1\t10\t2\t{name} \n" for i, name in rows
    )


def test_object_info_is_compared_with_the_classes(tmp_path):
    root = write_ade20k(tmp_path)
    assert check_object_info(root) == []
    file = root / "ADEChallengeData2016" / "objectInfo150.txt"
    file.unlink()
    assert check_object_info(root) == []  # nothing to compare
    rows = [(i, f"synonym of {name}, {name}") for i, name in enumerate(CLASSES, 1)]
    file.write_text(info(rows))
    assert check_object_info(root) == []
    rows[4], rows[5] = (5, rows[5][1]), (6, rows[4][1])
    file.write_text(info(rows))
    (problem,) = check_object_info(root)
    assert "class 5 is 'synonym of ceiling, ceiling', expected 'tree'" in problem.message
    file.write_text(info(rows[:4]))
    assert "class 5 is 'nothing', expected 'tree'" in check_object_info(root)[0].message
