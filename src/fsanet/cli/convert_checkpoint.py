"""`fsanet convert --from`: a published checkpoint into a folder for FsaNet.from_pretrained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fsanet.attention.dct import Band
from fsanet.cli.parsing import Parser, band_of
from fsanet.errors import InputError

_EPILOG = """\
What the weights cannot tell is assumed as in the paper's recipes unless it is given:

                                  similarity  k     recurrence  align corners
  ccnet                           dot         8     2           Cityscapes only
  mmseg, the paper's FSA head     dot         5     2           Cityscapes only
  mmseg, its own non-local nets   softmax     none  1           Cityscapes only

none: regular attention over all positions; --k makes it frequency attention, no retraining.
The images a converted network takes are those its own normalise() makes.
"""


def run(given: list[str]) -> int:
    options = _parser().parse_args(given)
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    if (out / "model.safetensors").exists() and not options.overwrite:
        raise InputError(f"--out {out}: holds a network; give another folder, or --overwrite")
    band = None if options.k is None else Band.of(band_of(options.k))
    classes = None if options.classes is None else _classes(options.classes)

    from fsanet.convert.checkpoints import convert_checkpoint

    network = convert_checkpoint(
        options.file,
        options.source,
        similarity=options.similarity,
        k=band,
        recurrence=options.recurrence,
        align_corners=options.align_corners,
        classes=classes,
        drop_biases=options.drop_biases,
        leave_out=options.leave_out,
    )
    network.build().save_pretrained(out)
    arguments = network.arguments
    print(f"{options.file}: {network.kind}, {arguments['encoder']}, {len(network.weights)} weights")
    print(f"attention: {_described(arguments)}")
    if network.assumed:
        values = ", ".join(f"{name}={value}" for name, value in network.assumed.items())
        print(f"assumed, as the file does not say: {values}")
    for name in network.left_out:
        print(f"left out: {name}")
    if not arguments["aux_channels"]:
        print("no auxiliary head in the file (it takes part in training only)")
    print(f"saved in {out}; load with FsaNet.from_pretrained({str(out)!r})")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="fsanet convert",
        description="Turn a published checkpoint into a folder for FsaNet.from_pretrained.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="checkpoint, .pth or .safetensors")
    add(
        "--from",
        dest="source",
        required=True,
        choices=["ccnet", "mmseg"],
        help="ccnet: the paper's CCNet-lineage network; mmseg: the paper's MMSegmentation head, or "
        "a nonlocal_r50/r101-d8 checkpoint of MMSegmentation (told apart by their weights)",
    )
    add("--out", required=True, metavar="DIR", help="folder for config.json, model.safetensors")
    add("--similarity", choices=["dot", "linear_softmax", "linear", "softmax"])
    add("--k", metavar="K", help="band: a side (8), two sides (8,6), or ranges (0:8,0:6)")
    add("--recurrence", type=int, metavar="R", help="rounds of attention")
    add(
        "--align-corners",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="of the upsampling: true in 769x769 and 849x849 recipes, false in the others "
        "(512x1024 Cityscapes ones, too: give --no-align-corners)",
    )
    add(
        "--classes",
        metavar="NAME|FILE",
        help="cityscapes, ade20k, voc, or a text file with a name a line (default: what the file "
        "says; cityscapes for ccnet)",
    )
    add(
        "--drop-biases",
        action="store_true",
        help="leave out the biases of a non-local network's queries, keys and values, as the "
        "paper's no-retraining configurations do",
    )
    add(
        "--leave-out",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out weights of this published name (* and ? match); may be repeated",
    )
    add("--overwrite", action="store_true", help="replace the network in DIR")
    return parser


def _classes(text: str) -> str | list[str]:
    from fsanet.data.datasets import LABEL_SETS

    if text in LABEL_SETS:
        return text
    if not Path(text).is_file():
        raise InputError(
            f"--classes {text}: neither {', '.join(LABEL_SETS)} nor a file of class names"
        )
    try:
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes {text}: cannot be read as text") from error
    return [line.strip() for line in lines if line.strip()]


def _described(arguments: dict[str, Any]) -> str:
    band = f", k={arguments['k']}" if arguments["attention"] == "frequency" else ""
    biases = ", with biases" if arguments["qkv_bias"] else ""
    return (
        f"{arguments['attention']}, similarity={arguments['similarity']}{band}, "
        f"recurrence={arguments['recurrence']}{biases}; "
        f"align_corners={arguments['align_corners']}; {arguments['num_classes']} classes"
    )
