"""The data modules from the command line's options, as recipes name them."""

import pytest
from support.miniature import write_ade20k, write_cityscapes, write_voc

from fsanet import data as package
from fsanet.cli.recipe import Recipe

pytest.importorskip("scipy", reason="the miniature's .mat files are written with SciPy")


@pytest.mark.parametrize(
    ("name", "write", "classes", "options"),
    [
        ("CityscapesData", write_cityscapes, 19, {"train_split": "trainval"}),
        ("Ade20kData", write_ade20k, 150, {}),
        ("VocAugData", write_voc, 21, {"train_split": "train"}),
    ],
)
def test_class_path_and_options(tmp_path, name, write, classes, options):
    root = write(tmp_path)
    given = {"root": root, "batch_size": 2, "crop": "[16, 20]", "workers": 0, **options}
    arguments = [f"--data.init_args.{key}={value}" for key, value in given.items()]
    data = Recipe(["--steps=1", f"--data=fsanet.data.{name}", *arguments]).data()
    assert type(data) is getattr(package, name)
    assert data.num_classes == classes
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 16, 20)
    assert set(masks.unique().tolist()) <= {*range(classes), 255}
    if "train_split" in options:
        assert len(data.dataset("train")) == {"trainval": 5, "train": 2}[options["train_split"]]
