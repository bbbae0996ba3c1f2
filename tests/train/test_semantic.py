import lightning
import pytest
import torch
from support.tiny import CLASSES, TinyData, TinyNet
from torch import nn
from torch.nn import functional

from fsanet.errors import InputError
from fsanet.train import SemanticSegmentation


class Recorder(lightning.Callback):
    def __init__(self):
        self.lr, self.modes = [], []

    def on_train_batch_start(self, trainer, module, *args):
        self.lr.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.modes.append({name: part.training for name, part in module.model.named_modules()})


def fit(task, data=None, **options):
    recorder = Recorder()
    options = {"max_epochs": 2} | options
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[recorder],
        **options,
    )
    trainer.fit(task, datamodule=data or TinyData())
    return recorder


def task_of(model=None, **options):
    torch.manual_seed(0)
    return SemanticSegmentation(model or TinyNet(), classes=CLASSES, **options)


def test_training_step_is_cross_entropy_plus_auxiliary():
    task = task_of(TinyNet(dropout=0.0), auxiliary_weight=0.3)
    images, labels = next(iter(torch.utils.data.DataLoader(TinyData().train_set, 4)))
    seen = []
    task.log = lambda name, value, **kwargs: seen.append((name, float(value)))
    task.optimizers = lambda: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    loss = task.training_step((images, labels), 0)
    main, auxiliary = task.model.forward_with_auxiliary(task.model.normalise(images))
    expected = functional.cross_entropy(main, labels, ignore_index=255)
    expected = expected + 0.3 * functional.cross_entropy(auxiliary, labels, ignore_index=255)
    torch.testing.assert_close(loss, expected)
    assert dict(seen) == {"train/loss": pytest.approx(expected.item()), "train/lr": 0.5}


def test_network_without_auxiliary_head_trains():
    task = task_of(TinyNet(auxiliary=False))
    before = task.model.head[1].weight.clone()
    fit(task)
    assert not torch.equal(before, task.model.head[1].weight)


def test_rate_steps_with_the_optimiser_not_with_batches():
    data = TinyData(batch_size=2, accumulate=2, steps_per_epoch=3)
    task = task_of(lr=0.1, power=1.0, head_lr_multiplier=10.0)
    recorder = fit(task, data, accumulate_grad_batches=2)
    rates = [0.1 * (1 - step / 6) for step in range(6) for _ in range(2)]
    assert [lr[0] for lr in recorder.lr] == pytest.approx(rates)
    assert [lr[1] for lr in recorder.lr] == pytest.approx([10 * rate for rate in rates])


@pytest.mark.parametrize(("frozen", "count"), [("none", 0), ("encoder", 1), ("all", 2)])
def test_frozen_batch_norms(frozen, count):
    model = TinyNet()
    model.head = nn.Sequential(nn.BatchNorm2d(6), *model.head)
    task = task_of(model, freeze_batchnorm=frozen)
    norms = {"encoder.1": model.encoder[1], "head.0": model.head[0]}
    weights = {name: norm.weight.clone() for name, norm in norms.items()}
    recorder = fit(task, max_epochs=2)
    for order, (name, norm) in enumerate(norms.items()):
        kept = order < count
        # in every step, those after a validation among them
        assert {modes[name] for modes in recorder.modes} == {not kept}
        assert torch.equal(norm.running_mean, torch.zeros(6)) == kept
        assert not torch.equal(norm.weight, weights[name])  # weights learn all the same
    assert all(modes["head.1"] for modes in recorder.modes)  # dropout is on


def test_frozen_encoder():
    """Neither weights nor statistics change, nothing is computed for its gradients."""
    task = task_of(freeze="encoder", ema=0.9, weight_decay=0.1)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    recorder = fit(task, max_epochs=2)
    for modes in recorder.modes:  # in every step, those after a validation among them
        assert not modes["encoder.1"]
        assert modes["head.0"]  # dropout is on
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name
        if name.startswith("encoder."):
            assert torch.equal(value, task.network.state_dict()[name])
    assert task.model.encoder(torch.rand(1, 3, 8, 8)).grad_fn is None
    assert not any(parameter.requires_grad for parameter in task.average.parameters())


def test_classes_balanced_by_their_frequency_in_the_training_masks():
    data = TinyData()
    task = task_of(class_weights="balanced")
    fit(task, data, max_epochs=1)
    share = []
    for number in range(3):
        masks = [labels for _, labels in data.train_set if (labels == number).any()]
        labelled = sum(int((labels != 255).sum()) for labels in masks)
        share.append(sum(int((labels == number).sum()) for labels in masks) / labelled)
    expected = [sorted(share)[1] / one for one in share]
    assert task.loss.class_weights.tolist() == pytest.approx(expected)
    assert task.auxiliary_loss.class_weights.tolist() == pytest.approx(expected)
    assert expected != [1.0, 1.0, 1.0]


def test_ohem_minimum_is_shared_among_partial_batches():
    task = task_of(loss="ohem", ohem_min_kept=101)
    fit(task, TinyData(batch_size=2, accumulate=2), accumulate_grad_batches=2, max_epochs=1)
    assert task.loss.min_kept == 51
    assert task.auxiliary_loss.ohem is False


def test_segment_replaces_the_whole_image():
    task = task_of()
    task.segment = lambda images: torch.ones(images.shape[0], *images.shape[2:], dtype=torch.uint8)
    images, labels = next(iter(torch.utils.data.DataLoader(TinyData().val_set, 5)))
    task.validation_step((images, labels), 0)
    counts = task.confusion.compute()
    assert counts[:, 1].sum() == (labels != 255).sum() == counts.sum()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": 0.1, "min_lr": 0.2}, "min_lr=0.2"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"optimizer": "adam"}, "give one of sgd, adamw"),
        ({"loss": "dice"}, "give one of cross_entropy, ohem"),
        ({"freeze_batchnorm": "some"}, "give one of none, encoder, all"),
        ({"class_weights": [1.0]}, "1 numbers for 3 classes"),
        ({"class_weights": "even"}, "give one of balanced"),
        ({"freeze": 2}, "the encoder has 1 stages; give 0 to 1, or 'encoder'"),
        ({"freeze": "head"}, "give 0 to 1, or 'encoder'"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"encoder_lr_multiplier": 0.0}, "encoder_lr_multiplier"),
        ({"head_lr_multiplier": 0.0}, "head_lr_multiplier"),
        ({"ohem_threshold": 2.0}, "give a probability"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(InputError, match=match):
        task_of(**options)


def test_freezing_an_encoder_that_is_not_there():
    with pytest.raises(InputError, match="no attribute 'encoder'"):
        task_of(nn.Conv2d(3, 3, 1), freeze_batchnorm="encoder")
