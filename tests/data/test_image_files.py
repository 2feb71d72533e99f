"""Batches of image files equal batches of images in memory, in any number of threads and processes."""

import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transform

from data.crops import random_crop
from data.datasets import DATASETS, load
from data.decode import decode, prepare
from data.epoch_plan import Augmentation, plan_epoch
from data.errors import DataError
from data.images import ImageFiles
from data.loader import Loader, Shard, make_loaders, make_test_loader
from data.splits import Split, split_validation
from tests.support.synthetic_images import bad_files, data_threads, encoded, make_folder, picture, write

raw_loader = partial(Loader, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # normalised pixels are the pixels
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert data_threads() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), {"train": 8, "test": 3}, width=100, height=90)


def of_files(images):
    assert isinstance(images, ImageFiles)
    return images


def files_of(folder, image_size):
    return of_files(load("folder", folder=folder, download=False, image_size=image_size).train)


def prepared_in_memory(files):
    """Return the same images, decoded one by one and held in memory."""
    prepare()
    pixels = torch.stack([next(files.read(torch.tensor([i]), [slice(0, 1)]))[0] for i in range(len(files))])
    return Split(pixels, files.labels)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == other.size
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("image_size", [32, 64])
def test_small_images_equal_images_in_memory_to_the_last_bit(image_size, augment, folder):
    files = files_of(folder, image_size)
    spec = DATASETS["folder"]
    make = partial(Loader, batch_size=7, mean=spec.mean, std=spec.std, seed=3, augment=augment)
    ours, theirs = make(files), make(prepared_in_memory(files))
    assert_same(ours.epoch(2), theirs.epoch(2))
    assert_same(ours, theirs)
    assert next(iter(ours)).images.shape == (7, 3, image_size, image_size)


def test_large_training_images_are_the_planned_crops(folder):
    files = files_of(folder, 72)
    loader = raw_loader(files, batch_size=5, seed=6, augment=True)
    plan = plan_epoch(len(files), seed=6, epoch=3)
    images = torch.cat([batch.images for batch in loader.epoch(3)])
    for image, place, seed in zip(images, plan.order.tolist(), plan.seed.tolist(), strict=True):
        expected = decode(files.paths[place], partial(random_crop, seed=seed), size=72)
        assert np.array_equal(image.round().byte().permute(1, 2, 0).numpy(), expected)
    unplanned = torch.cat([batch.images for batch in raw_loader(files, batch_size=5, seed=6).epoch(3)])
    assert torch.equal(unplanned.round().byte(), prepared_in_memory(files).images[plan.order])


@pytest.mark.parametrize("image_size", [32, 72])
def test_an_epoch_is_the_same_in_any_number_of_threads(image_size, folder, monkeypatch):
    files = files_of(folder, image_size)
    epochs = []
    for threads in (1, 2, 7, 40):
        monkeypatch.setattr("data.images.count_threads", partial(int, threads))
        loader = raw_loader(files, batch_size=5, seed=1, augment=True)
        epochs.append([*loader.epoch(1), *loader])
    for other in epochs[1:]:
        assert_same(epochs[0], other)
    different = [*raw_loader(files, batch_size=5, seed=1, augment=True).epoch(2)]
    assert not torch.equal(different[0].images, epochs[0][0].images)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("image_size", [32, 72])
def test_processes_read_their_parts_of_the_same_batches(count, image_size, folder):
    files = files_of(folder, image_size).take(torch.arange(13))
    make = partial(raw_loader, batch_size=6, seed=1, augment=True)  # the last batch has one image
    alone = make(files)
    loaders = [make(files, shard=Shard(rank, count)) for rank in range(count)]
    for whole, *parts in zip(alone.epoch(1), *(loader.epoch(1) for loader in loaders), strict=True):
        assert {part.size for part in parts} == {len(whole.labels)}
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def noted_files(monkeypatch):
    """Return a list to which the path of each decoded file is added."""
    paths = []

    def note(path, *arguments, **options):
        paths.append(path)
        return decode(path, *arguments, **options)

    monkeypatch.setattr("data.images.decode", note)
    return paths


def test_large_images_are_changed_and_mixed_after_their_crops(folder):
    """A batch of mixed files needs one file more than it has images; parts of two processes are those of one."""
    changes = Augmentation(trivial=True, erasing=0.5, cutout=9, mixup=1.0, cutmix=1.0)
    make = partial(
        raw_loader, files_of(folder, 72), batch_size=5, augment=True, augmentation=changes, num_classes=3, limit=2
    )
    whole, *parts = ([*make(shard=shard).epoch(1)] for shard in (Shard(), Shard(0, 2), Shard(1, 2)))
    for batch, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(batch.images, torch.cat([one.images, other.images]))
        assert torch.equal(batch.labels, torch.cat([one.labels, other.labels]))
        assert batch.images.shape == (5, 3, 72, 72)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(5))
    plain = [*raw_loader(files_of(folder, 72), batch_size=5, augment=True, limit=2).epoch(1)]
    assert not torch.equal(plain[0].images, whole[0].images)


def test_a_limit_decodes_no_more_than_it_gives(folder, monkeypatch):
    decoded = noted_files(monkeypatch)
    batches = list(raw_loader(files_of(folder, 32), batch_size=4, limit=2).epoch(1))
    assert [batch.size for batch in batches] == [4, 4]
    assert len(decoded) == 8


def test_the_loaders_of_a_folder(folder):
    dataset = load("folder", folder=folder, download=False)
    spec = DATASETS["folder"]
    train, valid, test = make_loaders(dataset, spec, CPU, batch_size=4, valid_size=None, augment=True, seed=5)
    assert valid is not None
    assert (train.num_images, valid.num_images, test.num_images) == (22, 2, 9)
    kept, held_out = split_validation(of_files(dataset.train), size=2, seed=5)
    assert (of_files(train.split).paths, of_files(valid.split).paths) == (kept.paths, held_out.paths)
    assert (train.augment, valid.augment, test.augment) == (True, False, False)
    assert_same(make_test_loader(dataset, spec, CPU, batch_size=4), test)
    image = next(iter(valid)).images[0]
    with Image.open(held_out.paths[0]) as file:
        wide = file.resize((35, 32), Image.Resampling.BILINEAR)  # 100 x 90, of which the shorter side becomes 32
    pixels = transform.to_tensor(wide.crop((2, 0, 34, 32)))
    expected = (pixels - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    torch.testing.assert_close(image, expected, rtol=0, atol=1.01 / 255 / 0.224)


def test_a_bad_file_is_one_error_that_names_it_and_ends_the_threads(folder, tmp_path):
    files = files_of(make_folder(tmp_path, {"train": 8, "test": 1}), 32)
    write(tmp_path / "train/bee/003.png", bad_files()["cut.png"])
    with pytest.raises(DataError, match=r"train/bee/003\.png cannot be read as an image: ") as caught:
        list(raw_loader(files, batch_size=4))
    assert "\n" not in str(caught.value)
    assert data_threads() == []


def test_an_epoch_that_is_left_early_leaves_no_thread(folder):
    epoch = raw_loader(files_of(folder, 72), batch_size=2, augment=True).epoch(1)
    next(epoch)
    assert data_threads() != []
    epoch.close()
    assert data_threads() == []


def test_only_a_few_batches_are_decoded_ahead(folder, monkeypatch):
    decoded = noted_files(monkeypatch)
    monkeypatch.setattr("data.images.count_threads", lambda: 2)
    batches = iter(raw_loader(files_of(folder, 32), batch_size=4))
    next(batches)
    time.sleep(0.2)
    assert len(decoded) == 12  # the first batch and two ahead
    batches.close()


@pytest.mark.gpu
@pytest.mark.parametrize("image_size", [32, 72])
def test_batches_on_a_gpu_are_those_of_the_cpu(image_size, folder):
    files = files_of(folder, image_size)
    here, there = (raw_loader(split, batch_size=5, augment=True) for split in (files, files.to(torch.device("cuda"))))
    for one, other in zip(here.epoch(1), there.epoch(1), strict=True):
        assert other.images.device.type == other.labels.device.type == "cuda"
        torch.testing.assert_close(one.images, other.images.cpu())
        assert torch.equal(one.labels, other.labels.cpu())


def test_large_images_of_one_colour_keep_it(tmp_path):
    """Resizing, cropping, flipping and stacking do not change an image of one colour."""
    for name, colour in (("red", (250, 10, 30)), ("blue", (0, 60, 200))):
        for use in ("train", "test"):
            write(tmp_path / use / name / "1.png", encoded(Image.new("RGB", (130, 90), colour), "PNG"))
    loader = raw_loader(files_of(tmp_path, 72), batch_size=2, augment=True)
    (batch,) = loader.epoch(1)
    for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
        expected = torch.tensor([(0, 60, 200), (250, 10, 30)][label]).view(3, 1, 1).expand(3, 72, 72)
        assert torch.equal(image.round().long(), expected)


def test_synthetic_images_differ():
    assert encoded(picture(9, 9, seed=1), "PNG") != encoded(picture(9, 9, seed=2), "PNG")
