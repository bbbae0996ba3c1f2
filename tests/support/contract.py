"""What every network of the library keeps: tests that each model's test file runs on its own."""

import copy

import torch


def forward_backward(model, channels=3, size=(64, 96)):
    """Logits at the size of the image, and a finite gradient for every parameter."""
    model = copy.deepcopy(model).train()
    images = torch.randn(2, channels, *size)
    logits, auxiliary = model.forward_with_auxiliary(images)
    assert logits.shape == (2, model.num_classes, *size)
    loss = logits.square().mean()
    if auxiliary is not None:
        assert auxiliary.shape == logits.shape
        loss = loss + auxiliary.square().mean()
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def any_size(model, channels=3):
    """Odd, small and not square images; eval mode treats images of a batch one by one."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for size in ((65, 97), (33, 129), (40, 31)):
            images = torch.randn(2, channels, *size)
            logits = model(images)
            assert logits.shape == (2, model.num_classes, *size)
            torch.testing.assert_close(model(images[1:]), logits[1:], rtol=1e-3, atol=1e-4)


def state_round_trip(model, tmp_path, channels=3):
    """Saved and loaded offline: the same logits, names, palette and normalisation."""
    model = copy.deepcopy(model).eval()
    for p in model.state_dict().values():
        if p.is_floating_point():
            p.add_(torch.rand_like(p) * 0.01)
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").eval()
    images = torch.randn(1, channels, 64, 64)
    assert torch.equal(again(images), model(images))
    for name in ("classes", "palette", "mean", "std", "bgr", "num_classes"):
        assert getattr(again, name) == getattr(model, name), name


def exports(model, channels=3):
    """torch.export with dynamic image size gives eager's logits at another size."""
    model = copy.deepcopy(model).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    height = torch.export.Dim("h", min=8, max=64)
    width = torch.export.Dim("w", min=8, max=64)
    exported = torch.export.export(
        model,
        (torch.randn(2, channels, 96, 128),),
        dynamic_shapes=({0: batch, 2: 8 * height, 3: 8 * width},),
    )
    images = torch.randn(3, channels, 128, 80)
    torch.testing.assert_close(
        exported.module()(images), model(images).detach(), rtol=1e-3, atol=1e-4
    )
