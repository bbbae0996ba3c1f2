"""Encoders without their first stages, compared with the whole ones."""

import pytest
import torch

from fsanet.errors import InputError
from fsanet.models import FsaNet, SegformerFsa
from fsanet.models.stages import freeze_stages
from fsanet.models.tail import EncoderTail


def network(encoder="test_resnet", **options):
    torch.manual_seed(0)
    options = {"head_channels": 8, "aux_channels": 8, "output_stride": 16} | options
    return FsaNet(encoder, num_classes=3, **options)


@pytest.mark.parametrize("encoder", ["test_resnet", "mobilenetv3_small_050", "convnext_atto"])
def test_a_tail_continues_as_the_encoder_does(encoder):
    model = network(encoder).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        whole = model.encoder_features(images)
        for stages in range(1, len(whole) + 1):
            tail = EncoderTail(model, stages)
            found = tail(model, {index: whole[index] for index in tail.kept})
            assert len(found) == len(whole)
            for index, feature in enumerate(whole):
                if index >= stages or index in tail.kept:
                    torch.testing.assert_close(found[index], feature)


def test_kept_are_the_features_that_heads_and_tail_need():
    assert EncoderTail(network(aux_channels=0), "encoder").kept == [4]
    assert EncoderTail(network(), "encoder").kept == [3, 4]
    assert EncoderTail(network(), 2).kept == [1]
    both = EncoderTail(network(decoder="multiscale"), 3)
    assert (both.kept, both.strides) == ([1, 2], [4, 8])
    assert EncoderTail(network(decoder="multiscale"), "encoder").kept == [1, 2, 3, 4]


def test_gradients_are_those_of_the_whole_network():
    """In training mode: the tail's batch norms use batch statistics, and update their own."""
    one, other = network(dropout=0.0), network(dropout=0.0)
    images = torch.rand(2, 3, 64, 96)
    for model in (one, other):
        model.train()
        for module in freeze_stages(model, 3):
            module.eval()
    tail = EncoderTail(other, 3)
    with torch.no_grad():
        given = other.encoder_features(images)
    other.load_state_dict(one.state_dict())  # the statistics of that pass are not to count
    features = tail(other, {index: given[index] for index in tail.kept})
    for result in (
        one.forward_with_auxiliary(images),
        other.forward_with_auxiliary(torch.empty(2, 1, 64, 96), features),
    ):
        sum(logits.square().mean() for logits in result).backward()
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None), name
        if first.grad is not None:
            torch.testing.assert_close(first.grad, second.grad, msg=name)
    for (name, first), second in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(first, second, msg=name)


def test_vectors_are_taken_apart_into_features():
    tail = EncoderTail(network(), "encoder")
    features = [torch.rand(2, channels, 3, 5) for channels in tail.channels]
    vectors = torch.cat([feature.permute(0, 2, 3, 1).flatten(1) for feature in features], 1)
    found = tail.unpack(vectors, 41, 80)  # 3 x 5 positions at stride 16, rounded up
    for index, feature in zip(tail.kept, features, strict=True):
        assert torch.equal(found[index], feature)


def test_encoders_that_cannot_be_cut_are_refused():
    pytest.importorskip("transformers")
    model = SegformerFsa(num_classes=3)
    with pytest.raises(InputError, match="cannot be cut after 2 of its 4 stages"):
        EncoderTail(model, 2)
    assert EncoderTail(model, "encoder").kept == [0, 1, 2, 3]
