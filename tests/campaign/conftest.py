from __future__ import annotations

import os
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Campaign:
    """How large the campaign is, and from which seed; set by environment variables.

    Attributes:
        seed: CAMPAIGN_SEED; other seeds make other inputs.
        inputs: CAMPAIGN_INPUTS, in all.
        only: CAMPAIGN_ONLY, one input as area:number, whose folder is kept.
        report: CAMPAIGN_REPORT, a file to write the table and the failures to.
        sample: inputs of each area in the suite's own run.
    """

    seed: int
    inputs: int
    only: str
    report: str
    sample: int


@pytest.fixture(scope="session")
def campaign() -> Campaign:
    value = os.environ.get
    return Campaign(
        int(value("CAMPAIGN_SEED", "1")),
        int(value("CAMPAIGN_INPUTS", "1600")),
        value("CAMPAIGN_ONLY", ""),
        value("CAMPAIGN_REPORT", ""),
        int(value("CAMPAIGN_SAMPLE", "1")),
    )
