import json

import pytest
import torch
from support.published_networks import THIN, ccnet_shapes, mmseg_shapes, random_state

from fsanet import FsaNet
from fsanet.cli.convert import run
from fsanet.cli.main import main
from fsanet.errors import InputError

SIZES = {**THIN, "blocks": (3, 4, 6, 3)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    state = random_state(ccnet_shapes(**SIZES, stem=4), dtype=torch.float32)
    torch.save({f"module.{name}": value for name, value in state.items()}, folder / "ccnet.pth")
    shapes = mmseg_shapes(**SIZES, stem=8, own=True, biases=True, classes=3)
    content = {"state_dict": random_state(shapes, dtype=torch.float32)}
    meta = {"CLASSES": ("a", "b", "c"), "PALETTE": [[9, 8, 7], [1, 2, 3], [4, 5, 6]], "iter": 8}
    torch.save(content | {"meta": meta}, folder / "nonlocal.pth")
    torch.save(content, folder / "anonymous.pth")
    return folder


def test_ccnet_with_the_papers_defaults(files, tmp_path, capsys):
    out = tmp_path / "network"
    assert run(["--from", "ccnet", str(files / "ccnet.pth"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "CCNet-lineage FsaNet, resnet50s" in printed
    assert "assumed, as the file does not say: similarity=dot, recurrence=2" in printed
    config = json.loads((out / "config.json").read_text())
    assert (config["k"], config["recurrence"], config["similarity"]) == (8, 2, "dot")
    assert config["block"] == "ccnet"
    assert config["ceil_pool"]
    assert not config["contract_dilation"]
    assert config["bgr"]
    model = FsaNet.from_pretrained(out).eval()
    assert model.classes[0] == "road"
    assert model(torch.zeros(1, 3, 40, 56)).shape == (1, 19, 40, 56)
    with pytest.raises(InputError, match=r"holds a network.*--overwrite"):
        run(["--from", "ccnet", str(files / "ccnet.pth"), "--out", str(out)])


def test_every_option(files, tmp_path, capsys):
    out = tmp_path / "network"
    names = tmp_path / "names.txt"
    names.write_text("x\ny\n\nz\n")
    source = ["--from=mmseg", str(files / "nonlocal.pth"), "--out", str(out)]
    run(source)
    assert "attention: spatial, similarity=softmax, recurrence=1, with biases" in (
        capsys.readouterr().out
    )
    model = FsaNet.from_pretrained(out)
    assert model.classes == ("a", "b", "c")
    assert model.palette == ((9, 8, 7), (1, 2, 3), (4, 5, 6))
    options = ["--overwrite", "--drop-biases", "--k", "0:4,0:6", "--recurrence", "3"]
    options += ["--align-corners"]
    options += ["--similarity", "linear", "--classes", str(names), "--leave-out", "auxiliary_head*"]
    run(source + options)
    printed = capsys.readouterr().out
    assert "left out: decode_head.nl_block.theta.conv.bias" in printed
    assert "left out: auxiliary_head.convs.0.conv.weight" in printed
    assert "no auxiliary head" in printed
    assert "assumed" not in printed
    model = FsaNet.from_pretrained(out)
    attention = model.head.attention
    assert tuple(attention.band) == (0, 4, 0, 6)
    assert (attention.recurrence, attention.similarity) == (3, "linear")
    assert not attention.qkv_bias
    assert model.align_corners
    assert model.auxiliary is None
    assert model.classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonlocal", ["--k", "8x8"], "k=8x8: give a number"),
        ("nonlocal", ["--k", "1,2,3"], "k=1,2,3: give a number"),
        ("nonlocal", ["--k", "0"], "k=0: at least 1 row frequency"),
        ("nonlocal", ["--recurrence", "0"], "recurrence=0"),
        ("nonlocal", ["--similarity", "cosine"], "Given value: cosine"),
        (
            "nonlocal",
            ["--classes", "coco"],
            "--classes coco: neither cityscapes, ade20k, voc nor a file",
        ),
        ("nonlocal", ["--classes", "voc"], "has 3 classes, but voc has 21"),
        ("anonymous", [], "does not name its 3 classes; give --classes"),
        ("nonlocal", ["--from", "other"], "Got value: other"),
    ],
)
def test_bad_options_are_one_line(files, tmp_path, name, options, message):
    file = str(files / f"{name}.pth")
    with pytest.raises(InputError) as raised:
        run(["--from", "mmseg", file, "--out", str(tmp_path / "out"), *options])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(files, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        run(["--from", "ccnet", str(files / "ccnet.pth"), "--out", str(tmp_path / "out")])


def test_help_states_the_assumptions(capsys):
    assert main(["convert", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "fsanet convert FILE --from NAME --out OUT" in printed
    assert "mmseg, the paper's FSA head: dot, k=5, recurrence 2" in printed
