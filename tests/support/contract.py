"""What every network guarantees, as tests that the test class of each network inherits."""

import copy
import json

import pytest
import torch

from fsanet import load_model


class NetworkContract:
    """Base of the contracts; a test class provides the fixture `model`.

    Attributes:
        attributes: names of what a network keeps besides its weights.
    """

    attributes = ("num_classes", "classes", "palette")

    @pytest.fixture
    def model(self):
        """The network under test; tests change only copies of it."""
        raise NotImplementedError

    def loss(self, model, images):
        """A scalar that depends on every trained parameter."""
        raise NotImplementedError

    def outputs(self, model, images):
        """For each of the images a dict of tensors; "map" has the size of the image."""
        raise NotImplementedError

    def test_forward_and_backward(self, model):
        model = copy.deepcopy(model).train()
        self.loss(model, torch.rand(2, 3, 64, 96)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    @pytest.mark.parametrize("size", [(65, 97), (33, 129), (40, 31)])
    def test_any_image_size(self, model, size):
        model = copy.deepcopy(model).eval()
        with torch.no_grad():
            outputs = self.outputs(model, torch.rand(2, 3, *size))
        assert len(outputs) == 2
        for output in outputs:
            assert output["map"].shape[-2:] == size
            assert all(value.isfinite().all() for value in output.values())

    def test_saved_and_loaded(self, model, tmp_path):
        model = copy.deepcopy(model).eval()
        generator = torch.Generator().manual_seed(3)
        for value in model.state_dict().values():  # none of them as the constructor leaves it
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator) * 0.01)
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["network"] == type(model).__name__
        again = load_model(tmp_path).eval()
        assert type(again) is type(model)
        for name in self.attributes:
            assert getattr(again, name) == getattr(model, name), name
        assert again.state_dict().keys() == model.state_dict().keys()
        images = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            (expected,), (found,) = self.outputs(model, images), self.outputs(again, images)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert value.numel() > 0
            assert torch.equal(found[name], value), name


class SegmentationContract(NetworkContract):
    """Contract of networks that map images to logits."""

    attributes = (*NetworkContract.attributes, "mean", "std", "bgr", "align_corners")

    def loss(self, model, images):
        logits, auxiliary = model.forward_with_auxiliary(images)
        assert logits.shape == (len(images), model.num_classes, *images.shape[-2:])
        loss = logits.square().mean()
        if auxiliary is not None:
            assert auxiliary.shape == logits.shape
            loss = loss + auxiliary.square().mean()
        return loss

    def outputs(self, model, images):
        return [{"map": logits} for logits in model(images)]

    def test_images_of_a_batch_are_independent(self, model):
        model = copy.deepcopy(model).eval()
        images = torch.rand(2, 3, 40, 65)
        with torch.no_grad():
            together, alone = model(images)[1:], model(images[1:])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def assert_exports(model):
    """`torch.export` with dynamic batch and image size gives eager's logits at another size."""
    model = copy.deepcopy(model).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    height, width = (torch.export.Dim(name, min=2, max=16) for name in ("h32", "w32"))
    images = torch.randn(3, 3, 128, 64)
    with torch.no_grad():  # tracing takes a third less without autograd
        exported = torch.export.export(
            model,
            (torch.randn(2, 3, 64, 96),),
            dynamic_shapes=({0: batch, 2: 32 * height, 3: 32 * width},),
        )
        torch.testing.assert_close(exported.module()(images), model(images), rtol=1e-3, atol=1e-4)
