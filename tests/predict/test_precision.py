"""The choice between float32 and bfloat16."""

import torch
from torch import nn

from fsanet.predict.precision import choose_dtype


class Slow(nn.Module):
    """Takes a second in float32 and two in bfloat16, which loses the second class."""

    classes = ("a", "b")
    palette = ((0, 0, 0), (255, 255, 255))

    def __init__(self, sleep):
        super().__init__()
        self.sleep, self.seen = sleep, []
        self.weight = nn.Parameter(torch.ones(2, 3, 1, 1))

    def normalise(self, images):
        return images.float()

    def forward(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        y = nn.functional.conv2d(x, self.weight)  # in half precision under autocast
        self.sleep(1.0 if y.dtype is torch.float32 else 2.0)
        y[:, 1] += (y.dtype is torch.float32) * (x[:, 0] > 0)
        return y


def test_centre_of_the_image_in_both_types(clock):
    import time

    model = Slow(time.sleep)
    image = torch.zeros(3, 1030, 6, dtype=torch.uint8)
    image[0, 3:259] = 200  # a quarter of the 1024 rows in the middle
    choice = choose_dtype(model, image)
    assert choice == ((1024, 6), 1.0, 2.0, 0.75)
    assert choice.dtype is None
    assert model.seen == [(1024, 6)] * 4
    assert choose_dtype(model, image, window=(4, 2)).size == (4, 2)
