import torch
from torchvision import tv_tensors

from fsanet.data.labelled import DecodedDataset


def make(sizes):
    return [
        (
            tv_tensors.Image(torch.randint(256, (3, *size), dtype=torch.uint8)),
            tv_tensors.Mask(torch.randint(256, size)),
        )
        for size in sizes
    ]


def test_gives_the_same_items_of_any_size():
    source = make([(4, 6), (1, 9), (7, 3)])
    cached = DecodedDataset(source)
    assert len(cached) == 3
    for i in (0, 1, 2):
        image, mask = cached[i]
        assert type(image) is tv_tensors.Image
        assert type(mask) is tv_tensors.Mask
        assert mask.dtype is torch.int64
        assert torch.equal(image, source[i][0])
        assert torch.equal(mask, source[i][1])


def test_writing_into_an_item_leaves_the_cache_alone():
    source = make([(4, 6)])
    cached = DecodedDataset(source)
    image, mask = cached[0]
    image.zero_()
    mask.zero_()
    assert torch.equal(cached[0][0], source[0][0])
    assert torch.equal(cached[0][1], source[0][1])


def test_reads_each_item_once():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    cached = DecodedDataset(Counting(make([(2, 2), (2, 2)])))
    for _ in range(3):
        cached[0], cached[1]
    assert Counting.reads == 2
