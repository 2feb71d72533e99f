"""Several processes together read the same batches as a single one, every image once."""

from functools import partial

import pytest
import torch

from data.loader import Loader, Shard
from data.splits import Split

raw_loader = partial(Loader, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # normalised pixels are the pixels


def split_of(num_images):
    generator = torch.Generator().manual_seed(num_images)
    images = torch.randint(256, (num_images, 3, 10, 10), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(num_images))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_equal_those_of_tensor_split(count):
    for num_items in range(20):
        items = torch.arange(num_items)
        parts = [items[Shard(rank, count).part(num_items)].tolist() for rank in range(count)]
        assert parts == [part.tolist() for part in items.tensor_split(count)]


@pytest.mark.parametrize(("rank", "count"), [(1, 1), (-1, 2), (0, 0), (5, 3)])
def test_a_rank_beyond_the_count_is_refused(rank, count):
    with pytest.raises(
        ValueError, match=f"rank is {rank}, but must be 0 or more and below {count}, the number of processes"
    ):
        Shard(rank, count)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 4), (2, 1), (23, 4), (24, 8), (25, 8), (13, 5), (7, 100)])
@pytest.mark.parametrize("way", ["training", "trial", "evaluation"])
def test_parts_put_together_are_the_batches_of_one_process(count, num_images, batch_size, way):
    split = split_of(num_images)
    limit = 2 if way == "trial" else None
    make = partial(raw_loader, batch_size=batch_size, seed=4, augment=True, limit=limit)
    loaders = [make(split, shard=Shard(rank, count)) for rank in range(count)]
    alone = make(split)
    assert {(loader.num_images, len(loader)) for loader in loaders} == {(alone.num_images, len(alone))}

    batches = [list(loader if way == "evaluation" else loader.epoch(2)) for loader in [alone, *loaders]]
    assert {len(each) for each in batches} == {len(alone)}  # all take the same number of steps
    for whole, *parts in zip(*batches, strict=True):
        assert {part.size for part in parts} == {whole.size} == {len(whole.labels)}
        sizes = [len(part.labels) for part in parts]
        assert sizes == [len(part) for part in whole.labels.tensor_split(count)]
        assert [len(part.images) for part in parts] == sizes
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    seen = sorted(label for batch in batches[0] for label in batch.labels.tolist())
    assert len(set(seen)) == len(seen) == alone.num_images
    assert way == "trial" or seen == list(range(num_images))
