"""Scores of a trained network whose attention is removed, without retraining.

    python experiments/removed.py runs/camvid --split test --json removed.json

Takes the options of `fsanet eval`, and tests as it does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fsanet.cli.main import silence_libraries, user_errors


def score(model: str, *, test: Any, json: str) -> int:
    """Remove the attention of a saved network, and write its scores to a JSON file."""
    from fsanet import load_model
    from fsanet.convert.variants import Variant, make_variant
    from fsanet.files import environment, write_json

    removed = Variant("attention removed", "removed")
    scores = test.evaluate(make_variant(load_model(model), removed))
    about = {"model": model, "attention": "removed", "split": test.options["split"]}
    write_json(json, about | scores.as_dict() | {"versions": environment()})
    return 0


if __name__ == "__main__":
    silence_libraries()
    with user_errors(Path(__file__).name):
        from fsanet.cli.recipe import call_with_data

        sys.exit(call_with_data(score, sys.argv[1:], tested_as_recipe=True))
