import random

import numpy as np
import pytest
import torch

from fsanet.data.sampling import AugmentedDataset, EvalSampler, SampleKey, TrainSampler
from fsanet.errors import InputError


def epoch_keys(epoch: int = 0, **options) -> list[SampleKey]:
    sampler = TrainSampler(**{"length": 10, "batch_size": 2, "steps_per_epoch": 3, **options})
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler)
    return keys


def stream(epochs: int, **options) -> list[int]:
    return [key.item for epoch in range(epochs) for key in epoch_keys(epoch, **options)]


@pytest.mark.parametrize("steps", [1, 3, 5, 17])
def test_stream_is_whole_permutations_across_epochs_of_any_length(steps):
    items = stream(40, steps_per_epoch=steps)
    rounds = [items[i : i + 10] for i in range(0, len(items) - 9, 10)]
    assert len(rounds) >= 8
    assert all(sorted(r) == list(range(10)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == len(rounds)


def test_order_depends_on_the_seed_alone():
    assert epoch_keys(4) == epoch_keys(4)
    assert stream(5) != stream(5, seed=1)
    torch.manual_seed(5)
    before = epoch_keys(2)
    torch.manual_seed(6)
    assert epoch_keys(2) == before


def test_iterating_twice_without_a_new_epoch_repeats_it():
    sampler = TrainSampler(10, batch_size=2, steps_per_epoch=3)
    assert list(sampler) == list(sampler)


def steps_of(world: int, batch_size: int, accumulate: int, epoch: int) -> list[set[SampleKey]]:
    """Keys of each optimiser step over all processes."""
    steps: list[set[SampleKey]] = [set() for _ in range(4)]
    for rank in range(world):
        keys = epoch_keys(
            epoch,
            batch_size=batch_size,
            accumulate=accumulate,
            steps_per_epoch=4,
            rank=rank,
            world=world,
        )
        size = batch_size * accumulate
        for step in range(4):
            mine = set(keys[step * size : (step + 1) * size])
            assert len(mine) == size
            assert not steps[step] & mine  # no process sees what another does
            steps[step] |= mine
    return steps


@pytest.mark.parametrize(
    ("world", "batch_size", "accumulate"), [(2, 6, 1), (4, 3, 1), (1, 4, 3), (2, 3, 2), (3, 1, 4)]
)
@pytest.mark.parametrize("epoch", [0, 3])
def test_processes_and_accumulation_see_the_same_global_batches(
    world, batch_size, accumulate, epoch
):
    reference = steps_of(1, 12, 1, epoch)
    assert steps_of(world, batch_size, accumulate, epoch) == reference
    # As positions are part of the key, augmentations agree as well.
    assert all(len(step) == 12 for step in reference)


def test_each_batch_of_two_processes_is_that_of_one_with_twice_the_size():
    whole = epoch_keys(1, batch_size=4)
    parts = [epoch_keys(1, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    for batch in range(3):
        mine = slice(2 * batch, 2 * batch + 2)
        assert parts[0][mine] + parts[1][mine] == whole[4 * batch : 4 * batch + 4]


@pytest.mark.parametrize(("length", "world"), [(10, 1), (10, 3), (7, 2), (2, 4)])
def test_evaluation_takes_every_item_once(length, world):
    samplers = [EvalSampler(length, rank=rank, world=world) for rank in range(world)]
    items = [list(s) for s in samplers]
    assert [len(i) for i in items] == [len(s) for s in samplers]
    assert sorted(i for part in items for i in part) == list(range(length))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "empty"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        epoch_keys(**options)


# ---- augmentation


def draws(image, mask):
    """What a transform may draw from."""
    return torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002


def flat(item) -> list[float]:
    return [*item[0].tolist(), *item[1].tolist(), item[2]]


def test_augmentation_is_a_function_of_seed_and_key():
    items = [(0, 0)] * 10
    data = AugmentedDataset(items, draws, seed=1)
    assert len(data) == 10
    key = SampleKey(epoch=2, position=5, item=3)
    first = flat(data[key])
    torch.rand(7), np.random.rand(), random.random()  # noqa: NPY002
    assert flat(data[key]) == first
    # The same image at another time, or under another seed, is drawn anew.
    others = [
        data[key._replace(epoch=3)],
        data[key._replace(position=6)],
        AugmentedDataset(items, draws, seed=2)[key],
    ]
    for other in map(flat, others):
        assert not set(other) & set(first)
    assert flat(data[key._replace(item=4)]) == first


def test_random_states_are_put_back_even_after_an_error():
    def states():
        return torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002

    def fails(image, mask):
        draws(image, mask)
        raise RuntimeError

    before = states()
    with pytest.raises(RuntimeError):
        AugmentedDataset([(0, 0)], fails, seed=0)[SampleKey(0, 0, 0)]
    after = states()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
