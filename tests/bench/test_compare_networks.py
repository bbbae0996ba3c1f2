"""Whole networks: one set of weights, of which only the attention is exchanged."""

import pytest
import torch

from fsanet import FrequencySelfAttention, FsaNet, SpatialSelfAttention
from fsanet.bench.compare_networks import (
    MarkedPass,
    NetworkSettings,
    attention_layer,
    build_network,
    compare_networks,
)
from fsanet.bench.tables import network_grid, network_markdown
from fsanet.cost import Clock
from fsanet.errors import InputError

CPU = torch.device("cpu")


def tiny(tmp_path):
    model = FsaNet(
        "test_resnet",
        num_classes=3,
        head_channels=16,
        aux_channels=8,
        k=3,
        similarity="linear_softmax",
        recurrence=2,
        block="ccnet",
        decoder="multiscale",
        decoder_channels=8,
    )
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_variants_are_configured_like_the_attention_of_the_network(tmp_path):
    settings = NetworkSettings(source=tiny(tmp_path), size=(32, 32))
    model = build_network(settings)
    frequency = attention_layer(model, "frequency", settings)
    assert isinstance(frequency, FrequencySelfAttention)
    assert (frequency.similarity, frequency.recurrence) == ("linear_softmax", 2)
    assert (frequency.block, frequency.band.h1) == ("ccnet", 3)
    regular = attention_layer(model, "regular", settings)
    assert isinstance(regular, SpatialSelfAttention)
    assert (regular.similarity, regular.block) == ("softmax", "ccnet")
    assert isinstance(attention_layer(model, "none", settings), torch.nn.Identity)
    other = NetworkSettings(source=settings.source, similarity="dot", recurrence=1, k=2)
    changed = attention_layer(model, "frequency", other)
    assert (changed.similarity, changed.recurrence, changed.band.h1) == ("dot", 1, 2)


def test_shares_are_times_between_entering_and_leaving(tmp_path):
    model = build_network(NetworkSettings(source=tiny(tmp_path)))

    class Ticks(Clock):
        """Every mark is one second after the last one."""

        now = 0.0

        def mark(self):
            self.now += 1.0
            return self.now

    marked = MarkedPass(model, torch.nn.Identity(), torch.zeros(1, 3, 32, 32), Ticks(CPU))
    for _ in range(3):
        marked.prepare()
        marked.run()
    assert marked.seconds == {"whole": [5.0] * 3, "head": [3.0] * 3, "attention": [1.0] * 3}
    assert marked.share("head").median == pytest.approx(0.6)
    assert marked.share("attention").count == 2  # the first, cold one left out
    assert not model.head._forward_hooks


@pytest.mark.usefixtures("in_process")
def test_report_of_a_network(tmp_path):
    settings = NetworkSettings(
        source=tiny(tmp_path),
        size=(33, 40),
        batch=2,
        rounds=2,
        seconds=300,
        threads=1,
    )
    report = compare_networks(settings)
    none, regular, frequency = report.rows
    assert [row.variant for row in report.rows] == ["none", "regular", "frequency"]
    for row in report.rows:
        assert row.findings.problem is None
        assert row.images_per_second(2) == pytest.approx(2 / row.latency.seconds.median)
        assert 0 < row.head.median < 1
        assert row.findings.peak > 0
    assert none.attention is None
    assert none.over_none.median == 1
    assert 0 < regular.attention.median < regular.head.median
    # two projections to 2, one to 16 channels, a bias of 16 and a gate
    attention = 16 * (2 + 2 + 16) + 16 + 1
    assert regular.findings.parameters - none.findings.parameters == attention
    assert frequency.findings.parameters == regular.findings.parameters
    grid = network_grid(report)
    assert [row[0] for row in grid.rows] == ["none", "regular", "frequency"]
    text = network_markdown(report, command="fsanet bench --model x")
    assert "linear_softmax" in text
    assert "attention's share" in text
    assert report.as_dict()["rows"][2]["images_per_second"] > 0


def test_sources_that_cannot_be_used():
    with pytest.raises(InputError, match="runs/none"):
        build_network(NetworkSettings(source="runs/none/none"))
    with pytest.raises(InputError, match="resnet9000"):
        build_network(NetworkSettings(source="resnet9000"))
