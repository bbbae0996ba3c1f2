"""`fsanet data`: whether a data set on disk is complete and readable, and what it consists of."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fsanet.cli.help import Section
from fsanet.errors import InputError, check_range, printable

if TYPE_CHECKING:
    from fsanet.data.check import Report
    from fsanet.data.stats import SplitStats

HELP = [
    Section(
        "fsanet.cli.data:data",
        skip={"module"},
        note="--data CLASS --data.NAME VALUE ...: read ROOT with these options of fsanet train, as "
        "in --data.images '*.jpg' --data.masks '{stem}_mask.png' (--data.help FolderData lists "
        "them); --plugin FILE adds classes of your own",
    )
]

Layout = Literal["cityscapes", "ade20k", "voc", "coco", "camvid", "folder"]
# The data module of a layout, for `fsanet data stats`.
_MODULES = {
    "cityscapes": "CityscapesData",
    "ade20k": "Ade20kData",
    "voc": "VocAugData",
    "coco": "CocoData",
    "camvid": "CamVidData",
    "folder": "FolderData",
}


def run(arguments: list[str]) -> int:
    named = any(text.startswith(("--data", "--plugin")) for text in arguments)
    if not named and "stats" not in arguments:
        from fsanet.cli.parsing import call

        return call(data, arguments, skip={"module"})
    from fsanet.cli.recipe import call_with_module

    return call_with_module(data, arguments, _described)


def _described(own: dict[str, Any], given: dict[str, str]) -> dict[str, str]:
    """Options of the data module: those given, else its class, the patterns and the classes."""
    from fsanet.data.check import guess_layout
    from fsanet.data.datasets.labelled_folder import guess_note, guess_options

    found = {"class_path": "FolderData", **given}
    if not given:
        root = Path(own["root"])
        try:
            found["class_path"] = _MODULES[own["layout"] or guess_layout(root)]
        except InputError:
            guessed = guess_options(root)
            if guessed is None:
                raise
            found |= guessed
            print(guess_note(guessed))
    known = {"classes", "num_classes", "colours", "annotations"} & found.keys()
    if own["num_classes"] is not None:
        found["num_classes"] = str(own["num_classes"])
    elif (
        found["class_path"].rpartition(".")[2] == "FolderData"
        and not known
        and found.get("masks_of") != "instances"
    ):
        found["num_classes"] = "255"  # whatever id there is
    return found


def data(
    action: Literal["check", "stats"],
    root: str,
    *,
    layout: Layout | None = None,
    quick: bool = False,
    subset: bool = False,
    sbd: str | None = None,
    num_classes: int | None = None,
    workers: int | None = None,
    show: int = 10,
    json: str | None = None,
    sheet: str | None = None,
    sheet_images: int = 16,
    module: Any = None,
) -> int:
    """Check a data set on disk, or show what it consists of.

    check: counts, pairs, sizes, label ids, unreadable files. Published data sets are compared with
    what was published; where one is missing, the command says what to download, but never downloads
    it. The exit code is 0 if nothing is wrong, else 2.

    stats: sizes of the images, the share of each class in the pixels, the images in which it
    occurs, and a contact sheet of labelled images (--sheet).

    Args:
        action: check or stats.
        root: folder of the data set.
        layout: kind of data set; by default recognised from the folder.
        quick: compare names and numbers only, without reading an image.
        subset: accept a part of the published data.
        sbd: with --layout voc, the folder of SBD if it is not below ROOT.
        num_classes: with --layout folder, number of classes; ids 0 to N-1 and 255 are valid.
        workers: processes that read; by default one per core, up to 8.
        show: number of problems to print.
        json: file to write all findings to.
        sheet: for stats, PNG file to draw labelled images to.
        sheet_images: number of images in it.
        module: the data module of the --data options.
    """
    if action == "stats":
        return _stats(module, json, sheet, sheet_images, 2 if workers is None else workers)
    from fsanet.data.check import check_data
    from fsanet.data.datasets.base import MissingData
    from fsanet.files import check_writable_file, write_json

    if json is not None:
        check_writable_file(json)
    if module is not None and num_classes is None and module.num_classes < 255:
        num_classes = module.num_classes
    try:
        with _bar() as progress:
            report = check_data(
                Path(root),
                layout,
                quick=quick,
                subset=subset,
                sbd=sbd,
                num_classes=num_classes,
                module=module,
                workers=workers,
                progress=progress,
            )
    except MissingData as error:
        if error.guide:
            print(error.guide)
        raise
    if json is not None:
        write_json(json, report.as_json())
    _print(report, show)
    if not report.ok:
        count = len(report.problems)
        problems = "1 problem" if count == 1 else f"{count} problems, the first"
        raise InputError(f"{problems}: {report.problems[0].message}")
    return 0


def _stats(module: Any, json: str | None, sheet: str | None, count: int, workers: int) -> int:
    """Count what is in the splits of a data module, print it, and draw the contact sheet."""
    from fsanet.data.batches import InstanceData
    from fsanet.data.datasets.base import MissingData
    from fsanet.data.masks import class_palette
    from fsanet.data.stats import count_classes
    from fsanet.files import check_writable_file, write_json, write_whole

    check_range("sheet_images", count, 1, 1000)
    for file in filter(None, (json, sheet)):
        check_writable_file(file)
    datasets: dict[str, Any] = {}
    missing: list[MissingData] = []
    for stage in ("train", "val", "test"):
        try:
            datasets[stage] = module.dataset(stage)
        except MissingData as error:
            missing.append(error)
    if not datasets:
        folder = getattr(module, "folder", None)
        if folder is None or folder.splits() != [None]:
            raise missing[0]
        datasets["all"] = module.dataset("all")
    shared = "val" in datasets and "test" in datasets and _same(datasets["val"], datasets["test"])
    if shared:  # testing takes the validation images
        del datasets["test"]
    with _bar() as progress:
        found = [
            count_classes(name, dataset, workers=workers, progress=progress)
            for name, dataset in datasets.items()
        ]
    instances = isinstance(module, InstanceData)
    classes = (*(["background"] if instances else []), *module.classes)
    ignore = module.ignore_index
    palette = class_palette(None, len(classes)) if instances else module.palette
    if json is not None:
        write_json(json, {"splits": [stats.as_json(classes, ignore) for stats in found]})
    shares = _print_stats(found, classes, ignore)
    if sheet is not None:
        from fsanet.data.stats import labelled_item
        from fsanet.report.contact_sheet import draw_contact_sheet

        flat = [(dataset, i) for dataset in datasets.values() for i in range(len(dataset))]
        count = min(count, len(flat))
        chosen = [flat[i * len(flat) // count] for i in range(count)]  # evenly spaced
        items = (
            (dataset.names[i] if hasattr(dataset, "names") else str(i), *labelled_item(dataset, i))
            for dataset, i in chosen
        )
        entries = [(classes[i], palette[i], share) for i, share in shares]
        picture = draw_contact_sheet(items, palette, entries)
        write_whole(sheet, picture.write_png)
        print(f"{count} labelled images in {sheet}")
    return 0


def _same(one: Any, other: Any) -> bool:
    names = getattr(one, "image_paths", None)
    return names is not None and names == getattr(other, "image_paths", None)


def _print_stats(
    found: Sequence[SplitStats], classes: Sequence[str], ignore: int | None
) -> list[tuple[int, float]]:
    """Print the tables; the ids that occur with their shares of all scored pixels."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for stats in found:
        sizes = stats.sizes.most_common(3)
        shown = ", ".join(f"{w}x{h} ({count})" for (h, w), count in sizes)
        more = f" and {len(stats.sizes) - 3} other sizes" if len(stats.sizes) > 3 else ""
        console.print(f"{stats.name}: {stats.images} images of {shown}{more} pixels")
    total = [sum(stats.pixels[i] for stats in found) for i in range(256)]
    scored = [max(1, stats.scored(ignore)) for stats in found]
    table = Table(title="share of the labelled pixels (images with it)", title_justify="left")
    table.add_column("id", justify="right")
    table.add_column("class")
    for stats in found:
        table.add_column(stats.name, justify="right")
    occurring = [i for i in range(len(classes)) if total[i] or len(classes) < 255]
    for i in occurring:
        row = [
            f"{100 * stats.pixels[i] / own:.2f} % ({stats.images_with[i]})"
            for stats, own in zip(found, scored, strict=True)
        ]
        table.add_row(str(i), printable(classes[i]), *row)
    console.print(table)
    if ignore is not None and total[ignore]:
        share = 100 * total[ignore] / sum(total)
        console.print(f"{share:.2f} % of all pixels have no label ({ignore})")
    for stats in found:
        absent = [printable(classes[i]) for i in occurring if total[i] and not stats.pixels[i]]
        if absent:
            console.print(f"note: {stats.name} has no pixel of {', '.join(absent)}")
    all_scored = max(1, sum(stats.scored(ignore) for stats in found))
    return [(i, total[i] / all_scored) for i in occurring if total[i]]


def _print(report: Report, show: int) -> None:
    from rich.console import Console
    from rich.table import Table

    what = "names only" if report.quick else f"{report.read} pairs read"
    table = Table(title=f"{report.root}: {report.layout}, {what}", title_justify="left")
    for name in ("split", "images", "published", "label values", "problems"):
        table.add_column(name, justify="left" if name in ("split", "label values") else "right")
    for split in report.splits:
        table.add_row(
            split.name,
            str(split.images) if split.found else "not there",
            "" if split.expected is None else str(split.expected),
            split.ids,
            str(split.problems),
        )
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(table)
    for problem in report.problems[: max(show, 0)]:
        console.print(f"  {problem.kind}: {problem.message}")
    if len(report.problems) > show >= 0:
        kinds = Counter(problem.kind for problem in report.problems)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        console.print(f"  {len(report.problems)} problems in all: {counts}")
    for note in report.notes[:show]:
        console.print(f"  note: {note}")
    console.print(f"{report.seconds:.1f} s: {'nothing wrong' if report.ok else 'problems found'}")


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal with rate and time left; gives ``progress(done, total)``."""
    from fsanet.progress import ConsoleProgress

    with ConsoleProgress() as bar:
        task = bar.add_task("check", total=None, current="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
