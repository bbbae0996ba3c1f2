"""The model card says what is known, as the hub reads it, and nothing else."""

import math

import pytest
from huggingface_hub import ModelCard
from support.tiny import small_fsanet

from fsanet.models.card import TrainingFacts, model_card

FACTS = TrainingFacts(
    command="fsanet train --config my.yaml --out runs/mine",
    data="CamVidData",
    images=367,
    step=1200,
    metric="val/miou",
    score=0.6369,
)
NAMES = ["road|path", "sky\n# title", "`tree`"]


@pytest.fixture(scope="module")
def network():
    return small_fsanet(classes=NAMES)


def saved_card(network, folder, facts):
    network.training_facts = facts
    network.save_pretrained(folder)
    return ModelCard.load(folder / "README.md")


def test_what_the_hub_reads(network, tmp_path):
    card = saved_card(network, tmp_path, FACTS)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "fsanet"
    assert card.data.pipeline_tag == "image-segmentation"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_iou", 0.6369)
    assert (result.dataset_name, result.dataset_split) == ("CamVidData", "validation")


def test_what_people_read(network, tmp_path):
    text = saved_card(network, tmp_path, FACTS).text
    assert "```sh\nfsanet train --config my.yaml --out runs/mine\n```" in text
    assert "mIoU on the validation split: 63.69 %" in text
    assert "367 training images of `CamVidData`" in text
    assert "## Intended use and limits" in text
    assert "hub id" in text or "id on the hub" in text
    # Names cannot break out of their line.
    assert r"road\|path (0), sky\\n\# title (1), \`tree\` (2)" in text


@pytest.mark.parametrize("facts", [None, FACTS])
def test_nothing_that_is_not_known(network, tmp_path, facts):
    text = (saved_card(network, tmp_path, facts) and tmp_path / "README.md").read_text()
    assert "pushed to the Hub" not in text
    assert ("model-index" in text) == (facts is not None)
    assert ("fsanet train" in text) == (facts is not None)


def test_without_validation_there_is_no_score(network):
    facts = TrainingFacts(None, "FolderData", 3, 10, "val/miou", math.nan)
    text = str(model_card(network, facts))
    assert "model-index" not in text
    assert "validation split" not in text
    assert "after 10 optimiser steps" in text


def test_its_code_runs(network, tmp_path, monkeypatch):
    """The first block of code, in the folder, with a photo there."""
    from PIL import Image

    text = saved_card(network, tmp_path, None).text
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (70, 50), (90, 120, 30)).save("photo.jpg")
    exec(text.split("```python\n")[1].split("```")[0], {})
    assert Image.open("overlay.png").mode == "RGB"


def test_the_licence_can_be_another(network, tmp_path):
    network.save_pretrained(tmp_path, model_card_kwargs={"license": "cc-by-nc-4.0"})
    assert ModelCard.load(tmp_path / "README.md").data.license == "cc-by-nc-4.0"
