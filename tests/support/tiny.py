"""A network and a data module as small as they can be, and small ones of the real kind."""

import json
from pathlib import Path

import lightning
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fsanet.data.batches import Loader

CLASSES = ("sky", "road", "tree")


class TinyNet(nn.Module):
    num_classes = len(CLASSES)
    classes = CLASSES
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0))

    def __init__(self, *, norm=True, dropout=0.2, auxiliary=True):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(6, self.num_classes, 1))
        self.auxiliary = nn.Conv2d(6, self.num_classes, 1) if auxiliary else None

    def normalise(self, images):
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return (images - 0.5) / 0.25

    def encoder_features(self, images):
        return [self.encoder(images)]

    def forward(self, images):
        return self.head(self.encoder(images))

    def forward_with_auxiliary(self, images):
        features = self.encoder(images)
        auxiliary = None if self.auxiliary is None else self.auxiliary(features)
        return self.head(features), auxiliary

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"classes": CLASSES}))


class TinyImages(Dataset):
    """Class by brightness of a channel, with an ignored region whose size differs a lot."""

    def __init__(self, length, seed, size=(8, 12)):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(
            0, 256, (length, 3, *size), generator=generator, dtype=torch.uint8
        )
        self.labels = self.images.argmax(1).long()
        for index, labels in enumerate(self.labels):
            labels[: (index * 3) % (size[0] + 1)] = 255

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class EpochSampler(Sampler):
    """Global batches do not depend on the number of processes."""

    def __init__(self, length, batch, batches, rank, world):
        self.length, self.batch, self.batches = length, batch, batches
        self.rank, self.world, self.epoch = rank, world, 0
        self.first_batch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.batch * self.batches

    def __iter__(self):
        generator = torch.Generator().manual_seed(1000 + self.epoch)
        count = self.batches * self.batch * self.world
        order = torch.randint(0, self.length, (count,), generator=generator).tolist()
        for number in range(self.first_batch, self.batches):
            mine = (number * self.world + self.rank) * self.batch
            yield from order[mine : mine + self.batch]


class TinyData(lightning.LightningDataModule):
    num_classes = len(CLASSES)
    classes = CLASSES
    palette = TinyNet.palette
    ignore_index = 255

    def __init__(self, *, batch_size=4, steps_per_epoch=4, accumulate=1, val=5, size=(8, 12)):
        super().__init__()
        self.batch_size = batch_size
        self.steps_per_epoch, self.accumulate = steps_per_epoch, accumulate
        self.train_set = TinyImages(20, seed=1, size=size)
        self.val_set = TinyImages(val, seed=2, size=size)

    def dataset(self, stage):
        return self.train_set if stage == "train" else self.val_set

    def _ranks(self):
        return self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self):
        sampler = EpochSampler(
            len(self.train_set),
            self.batch_size,
            self.steps_per_epoch * self.accumulate,
            *self._ranks(),
        )
        return Loader(self.train_set, self.batch_size, sampler=sampler)

    def val_dataloader(self):
        rank, world = self._ranks()
        indices = range(rank, len(self.val_set), world)
        return DataLoader(self.val_set, batch_size=1, sampler=indices)

    test_dataloader = val_dataloader


def small_fsanet(encoder="test_resnet", **options):
    """An `FsaNet` with random weights, the same ones at each call."""
    from fsanet import FsaNet

    torch.manual_seed(0)
    options = {"num_classes": 3, "head_channels": 8, "aux_channels": 0} | options
    return FsaNet(encoder, **options)


def thin_fsanet(**options):
    """A `small_fsanet` with an encoder of few channels and attention that changes its features."""
    thin = {"channels": [8, 8, 8, 8], "stem_width": 8}
    options = {"output_stride": 16, "k": 2, "zero_init": False} | options
    return small_fsanet("resnet10t", encoder_options=thin, **options)


def draw_weights(module, seed):
    """Give the matrices and kernels of a module random values that keep the size of features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)


def regular_fsanet(**options):
    """A `small_fsanet` to convert: regular attention, whose scores are not all alike."""
    regular = {"attention": "spatial", "similarity": "softmax", "zero_init": False}
    network = small_fsanet(head_channels=16, **regular, **options)
    with torch.no_grad():
        network.head.reduce[0].weight.mul_(1000)
    return network


def train_tiny(out, **options):
    """Eight steps on four images each, whatever the number of processes."""
    from fsanet.train import SemanticSegmentation, train

    torch.manual_seed(3)
    network = TinyNet(norm=False, dropout=0.0)
    task = SemanticSegmentation(network, classes=CLASSES, lr=0.05)
    data = TinyData(batch_size=4 // options.get("devices", 1), val=5)
    options = {"steps": 8, "accelerator": "cpu", "log_every": 1, "progress": False} | options
    return train(task, data, out=out, **options)
