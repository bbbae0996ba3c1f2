"""Generated inputs through the real commands: done, or one line that says what is wrong.

pytest -m campaign -n 0                    1,600 inputs and the kills
CAMPAIGN_SEED=7 pytest -m campaign -n 0    other inputs
CAMPAIGN_ONLY=models:41 pytest -m campaign -n 0    one again, its folder kept
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import pytest

from campaign import inputs, material
from campaign.case import Case
from campaign.pool import PROCESSES, Outcome, run_cases

AREAS = {make.__name__: make for make in inputs.AREAS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from fsanet.cli.main import main

    folder = tmp_path_factory.mktemp("valid")
    material.write_all(folder)
    common = ["--device", "cpu", "--no-progress"]
    model, images = str(folder / "net"), str(folder / "images")
    assert (
        main(["predict", images, "--model", model, "--out", str(folder / "old/predict"), *common])
        == 0
    )
    on_data = [str(folder / "blocks") if text == "blocks" else text for text in material.ON_DATA]
    assert main(["sweep", model, *on_data, "--k", "1", "--out", str(folder / "old/sweep")]) == 0
    return folder


def make_case(area: str, number: int, seed: int, root: Path, folder: Path) -> Case:
    rng = Random(f"{seed} {area} {number}")
    case = AREAS[area](rng, root, folder)
    case.area, case.number = area, number
    return case


def describe(outcome: Outcome, seed: int) -> str:
    case = outcome.case
    return (
        f"CAMPAIGN_SEED={seed} CAMPAIGN_ONLY={case.area}:{case.number}\n    {case.what}\n"
        f"    fsanet {' '.join(case.command)[:300]}\n    {outcome.kind}: {outcome.reason[:600]}"
    )


def run_all(
    wanted: list[tuple[str, int]], seed: int, root: Path, work: Path, processes: int = PROCESSES
) -> list[Outcome]:
    makers = [partial(make_case, area, number, seed, root) for area, number in wanted]
    return list(run_cases(makers, work, count=processes))


def report(outcomes: list[Outcome], seed: int, seconds: float) -> str:
    """A table of classes by area, and the exact input of each failure."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    order = [*("accepted", "refused"), *(k for k, _ in kinds.most_common())]
    columns = list(dict.fromkeys(kind for kind in order if kind in kinds))
    lines = [
        f"{len(outcomes)} inputs, seed {seed}, {seconds:.0f} s",
        "",
        f"| area | {' | '.join(columns)} |",
        "| --- |" + " ---: |" * len(columns),
    ]
    areas = dict.fromkeys(outcome.case.area for outcome in outcomes)
    for area in areas:
        of_area = Counter(o.kind for o in outcomes if o.case.area == area)
        lines.append(f"| {area} | {' | '.join(str(of_area[kind]) for kind in columns)} |")
    lines.append(f"| all | {' | '.join(str(kinds[kind]) for kind in columns)} |")
    return "\n".join(lines)


@pytest.mark.campaign
@pytest.mark.timeout(3000)
def test_inputs(root, campaign, tmp_path_factory, capsys):
    work = tmp_path_factory.mktemp("campaign")
    if campaign.only:
        area, number = campaign.only.split(":")
        wanted = [(area, int(number))]
    else:
        wanted = [
            (make.__name__, number)
            for make, share in inputs.AREAS.items()
            for number in range(round(share * campaign.inputs))
        ]
    began = time.monotonic()
    outcomes = run_all(wanted, campaign.seed, root, work)
    text = report(outcomes, campaign.seed, time.monotonic() - began)
    bad = [outcome for outcome in outcomes if not outcome.good]
    failures = "\n".join(describe(outcome, campaign.seed) for outcome in bad)
    if campaign.report:
        Path(campaign.report).write_bytes(f"{text}\n\n{failures}\n".encode("utf-8", "replace"))
    with capsys.disabled():
        print(f"\n{text}\n")
    assert not bad, f"{len(bad)} of {len(outcomes)} inputs:\n{failures}"


def test_sample_of_inputs(root, campaign, tmp_path):
    """A few of each area in every run of the suite; the campaign proper is `-m campaign`."""
    wanted = [(area, number) for area in AREAS for number in range(campaign.sample)]
    outcomes = run_all(wanted, campaign.seed, root, tmp_path, processes=1)
    bad = [describe(outcome, campaign.seed) for outcome in outcomes if not outcome.good]
    assert not bad, "\n".join(bad)
