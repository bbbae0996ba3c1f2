"""The files of an explanation: JSON, pictures and a page that agree."""

import json

import pytest
import torch
from PIL import Image
from support.tiny import draw_weights, small_fsanet

from fsanet.data.datasets.scenes import ProceduralScenes
from fsanet.report.explain import explain
from fsanet.report.explanation import write_explanation

AT = (100, 30)  # x, y


def test_files(tmp_path):
    image = ProceduralScenes(1, split="test", size=(56, 136))[0][0].as_subclass(torch.Tensor)
    options = {"similarity": "linear_softmax", "recurrence": 2, "zero_init": False}
    net = small_fsanet(num_classes=4, head_channels=16, k=3, **options)
    draw_weights(net, 0)
    found = explain(net, image, AT, steps=20)
    report = write_explanation(found, tmp_path / "why", source="a photo.jpg", model=net)
    files = {path.name for path in report.parent.iterdir()}
    content = json.loads((report.parent / "explanation.json").read_text())
    assert files == {*content["files"], "explanation.json", "report.html"}
    assert {"attention-1.png", "attention-2.png", "band-4.png", "gradients.png"} <= files
    assert content["class"] == found.outcome.class_at_pixel
    assert content["pixel"] == list(AT)
    rows = torch.tensor([one["weights"] for one in content["attention"]])
    torch.testing.assert_close(rows.double(), found.rows.double(), rtol=1e-5, atol=1e-9)
    assert content["attention"][1]["sum"] == pytest.approx(1)
    shares = content["attention"][0]["classes"].values()
    assert sum(one["weight"] for one in shares) == pytest.approx(1)
    assert sum(one["area"] for one in shares) == pytest.approx(1)
    assert content["integrated_gradients"]["completeness_error"] == found.gradients.error
    page = report.read_text()
    assert f"Why pixel 100,30 is {found.outcome.class_at_pixel}" in page
    present = {one for part in found.parts for one in part.without.mask.unique().tolist()}
    present |= {*found.result.mask.unique().tolist(), *found.no_attention.mask.unique().tolist()}
    legend = page.partition('<ul class="legend">')[2].partition("</ul>")[0]
    assert legend.count("<li>") == len(present)
    assert all(f"</i>{found.result.classes[index]}</li>" in legend for index in present)
    assert "-0.00</td>" not in page
    assert "What changes when a band is dropped" in page
    assert page.count("<img") == page.count('src="data:image/png;base64,')
    with Image.open(report.parent / "attention-1.png") as picture:
        assert picture.width == 4 * 136  # enlarged by whole numbers
