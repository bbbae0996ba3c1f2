"""A layer that misbehaves as asked, in a module of its own: a fresh process imports it by name."""

import os
import time
from dataclasses import dataclass

import torch
from torch import nn

from fsanet.bench.probe import Subject
from fsanet.errors import InputError


class Behaving(nn.Module):
    """Does as its name says."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x):
        if self.what == "huge":
            torch.empty(2**42)
        elif self.what == "slow" or (self.what == "slow to train" and self.training):
            time.sleep(600)
        elif self.what == "dies":
            os._exit(3)
        elif self.what == "wrong":
            raise InputError("k=0: give more")
        elif self.what == "closed to gradients" and self.training:
            raise RuntimeError("no gradient\nsecond line")
        return x * self.weight.sum()


@dataclass(frozen=True)
class BehavingJob:
    what: str
    device: str = "cpu"
    backward: bool = True

    def prepare(self):
        module = Behaving(self.what)
        return Subject(module, module, torch.ones(1, 2, 3, 4), flops_by_hand=7)
