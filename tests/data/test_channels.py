"""Grey images, and folders of arrays: what is read, how it is normalised, and what is refused."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transform

from data import normalisation
from data.datasets import DATASETS, load, require_channels
from data.errors import DataError
from data.images import describe_preparation, list_images, read_images
from data.loader import make_loaders, make_test_loader
from data.normalisation import with_normalisation
from tests.support.array_files import array, bad_arrays, make_array_folder, saved
from tests.support.dataset_files import in_memory
from tests.support.synthetic_images import data_threads, encoded, make_folder, picture, write

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert data_threads() == []


def folder_of(path, channels, **options):
    return load("folder", folder=path, download=False, channels=channels, **options)


def all_pixels(images):
    """uint8 (N, C, S, S) of all images of a split, as they are for evaluation."""
    return torch.cat(list(images.read(torch.arange(len(images)), [slice(0, 3), slice(3, None)])))


def test_colours_become_grey_as_in_torchvision(tmp_path):
    """With the weights of Rec. 601, rounded: torchvision does so too, but cuts off what is behind the point."""
    folder = make_folder(tmp_path, {"train": 2, "test": 1})
    grey, colour = (all_pixels(folder_of(folder, channels).train) for channels in (1, 3))
    assert grey.shape == (6, 1, 32, 32)
    luma = colour[:, 0] * 0.299 + colour[:, 1] * 0.587 + colour[:, 2] * 0.114
    assert (grey[:, 0] - luma).abs().max() <= 0.5 + 1e-3
    assert (grey.int() - transform.rgb_to_grayscale(colour)).abs().max() <= 1


@pytest.mark.parametrize("image_size", [16, 72])
def test_grey_files_keep_their_values_and_equal_each_of_three_channels(image_size, tmp_path):
    for use in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / use / name / "0.png", encoded(picture(80, 70).convert("L"), "PNG"))
            write(tmp_path / use / name / "1.jpg", encoded(picture(80, 70).convert("L"), "JPEG"))
            sixteen = Image.fromarray(np.asarray(picture(80, 70).convert("L")).astype(np.uint16) * 257)
            write(tmp_path / use / name / "2.png", encoded(sixteen, "PNG"))
    grey, colour = (all_pixels(folder_of(tmp_path, channels, image_size=image_size).train) for channels in (1, 3))
    assert torch.equal(grey.expand(-1, 3, -1, -1), colour)
    assert torch.equal(grey[0], grey[2])  # 257 v in 16 bits is v in 8


def test_random_crops_of_files_have_the_channels_too(tmp_path):
    folder = make_array_folder(tmp_path, {"train": 2, "test": 1}, channels=4)
    train = folder_of(folder, 4, image_size=72).train
    (batch,) = train.read(torch.arange(6), [slice(0, 6)], torch.arange(6))
    assert batch.shape == (6, 4, 72, 72)
    assert not torch.equal(batch, all_pixels(train))


def test_digits_have_one_channel_or_three_equal_ones():
    one, three = (load("digits", folder=None, download=False, channels=channels) for channels in (1, 3))
    for split in ("train", "test"):
        assert torch.equal(
            in_memory(getattr(one, split)).images.expand(-1, 3, -1, -1), in_memory(getattr(three, split)).images
        )


def test_one_channel_has_the_average_mean_and_deviation():
    digits = DATASETS["digits"]
    images = load("digits", folder=None, download=False, channels=1).train
    spec = with_normalisation(digits, images, channels=1)
    assert (spec.mean, spec.std) == (digits.mean[:1], digits.std[:1])
    of_folder = with_normalisation(DATASETS["folder"], images, channels=1)
    assert (of_folder.mean, of_folder.std) == ((0.449,), (0.226,))  # of .485 .456 .406 and .229 .224 .225
    assert with_normalisation(DATASETS["folder"], images, channels=3) is DATASETS["folder"]


@pytest.mark.parametrize("most", [1000, 5])
def test_arrays_are_normalised_by_what_numpy_measures(most, tmp_path, monkeypatch):
    monkeypatch.setattr(normalisation, "MOST_MEASURED", most)
    folder = make_array_folder(tmp_path, {"train": 4, "test": 1}, channels=5)
    train = folder_of(folder, 5).train
    spec = with_normalisation(DATASETS["folder"], train, channels=5)
    chosen = all_pixels(train).numpy()[[0, 2, 4, 7, 9] if most == 5 else slice(None)] / 255
    np.testing.assert_allclose(spec.mean, chosen.mean((0, 2, 3)), atol=5.1e-6)
    np.testing.assert_allclose(spec.std, chosen.std((0, 2, 3)), atol=5.1e-6)


def test_batches_of_arrays_are_standardised(tmp_path):
    folder = make_array_folder(tmp_path, {"train": 4, "test": 2}, channels=5)
    dataset = folder_of(folder, 5)
    spec = with_normalisation(DATASETS["folder"], dataset.train, channels=5)
    train, _, test = make_loaders(dataset, spec, CPU, batch_size=12, valid_size=0, augment=False, seed=1)
    (batch,) = train
    assert batch.images.shape == (12, 5, 32, 32)
    assert batch.images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (batch.images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-3
    paths = list_images([folder / "test"])
    (ours,) = read_images(
        paths, image_size=32, channels=5, grey=False, mean=spec.mean, std=spec.std, batch_size=6, device=CPU
    )
    assert torch.equal(ours.images, next(iter(test)).images)
    assert torch.equal(ours.images, next(iter(make_test_loader(dataset, spec, CPU, batch_size=6))).images)


def test_a_channel_of_one_value_is_not_divided_by_zero(tmp_path):
    for use in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / use / name / "0.npy", saved(np.full((9, 9, 2), [0, 255], np.uint8)))
    spec = with_normalisation(DATASETS["folder"], folder_of(tmp_path, 2).train, channels=2)
    assert spec.mean == (0, 1)
    assert all(math.isclose(std, 1 / 255, abs_tol=1e-5) for std in spec.std)


def test_arrays_beside_image_files_stay_skipped(tmp_path):
    """A run on such a folder must go on with the images that it began with."""
    folder = make_folder(tmp_path, {"train": 2, "test": 1})
    before = folder_of(folder, 3)
    write(folder / "train/ant/features.npy", saved(array(3)))
    write(folder / "test/bee/features.npy", saved(array(3)))
    after = folder_of(folder, 3)
    assert after.digest() == before.digest()
    assert [note for note in after.notes if "Skipped" in note and "features.npy" in note]
    assert len(list_images([folder / "train"])) == 6


def test_image_files_beside_arrays_are_skipped_where_train_has_none(tmp_path):
    folder = make_array_folder(tmp_path, {"train": 2, "test": 1}, channels=2)
    write(folder / "test/ant/shown.png", encoded(picture(8, 8), "PNG"))
    dataset = folder_of(folder, 2)
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    assert "Images are .npy files of 2 channels" in dataset.notes


def test_grey_is_said(tmp_path):
    folder = make_folder(tmp_path, {"train": 1, "test": 1})
    assert folder_of(folder, 1).notes == ("Images are read as grey; colours become 0.299 R + 0.587 G + 0.114 B",)
    assert folder_of(folder, 3).notes == ()


@pytest.mark.parametrize(
    ("name", "channels", "allowed"),
    [("cifar10", 1, "3"), ("cifar100", 4, "3"), ("svhn", 2, "3"), ("digits", 2, "1 or 3")],
)
def test_data_sets_refuse_channels_that_they_do_not_have(name, channels, allowed, tmp_path):
    message = f"^--in_channels is {channels}, but must be {allowed} for --dataset {name}$"
    with pytest.raises(DataError, match=message):
        load(name, folder=tmp_path, download=False, channels=channels)
    with pytest.raises(DataError, match=message):
        require_channels(name, channels)


def test_image_files_have_one_channel_or_three(tmp_path):
    folder = make_folder(tmp_path, {"train": 1, "test": 1})
    with pytest.raises(DataError, match=r"^--in_channels is 4, but must be 1 or 3 for image files; .*\.npy files"):
        folder_of(folder, 4)


def test_arrays_of_other_channels_are_refused_with_the_number_that_fits(tmp_path):
    folder = make_array_folder(tmp_path, {"train": 1, "test": 1}, channels=5)
    first = folder / "train/ant/000.npy"
    with pytest.raises(DataError, match=f"^--in_channels is 3, but must be 5 for arrays like {first}$"):
        folder_of(folder, 3)


def test_a_broken_training_array_is_named_before_training(tmp_path):
    folder = make_array_folder(tmp_path, {"train": 2, "test": 1}, channels=2)
    for name in ("bee/001.npy", "cat/000.npy"):
        write(folder / "train" / name, bad_arrays()["cut"][0])
    with pytest.raises(DataError, match=r"^2 files are broken: .*bee/001\.npy cannot be read .*cat/000\.npy"):
        with_normalisation(DATASETS["folder"], folder_of(folder, 2).train, channels=2)


def test_a_class_without_arrays_is_named(tmp_path):
    folder = make_array_folder(tmp_path, {"train": 1, "test": 1}, channels=2)
    (folder / "train/bee/000.npy").rename(folder / "train/bee/000.npz")
    with pytest.raises(DataError, match=r"bee has no image: no file in it ends in \.npy, but in \.npz$"):
        folder_of(folder, 2)


def test_a_batch_of_image_files_and_arrays_of_other_channels_names_each(tmp_path):
    good = write(tmp_path / "good.npy", saved(array(2)))
    image = write(tmp_path / "image.png", encoded(picture(9, 9), "PNG"))
    other = write(tmp_path / "other.npy", saved(array(3)))
    (batch,) = read_images(
        [str(good), str(image), str(other)],
        image_size=32,
        channels=2,
        grey=False,
        mean=(0.0,) * 2,
        std=(1.0,) * 2,
        batch_size=9,
        device=CPU,
    )
    assert batch.paths == [str(good)]
    assert batch.images.shape == (1, 2, 32, 32)
    assert list(map(str, batch.errors)) == [
        f"{image} cannot be read as 2 channels, only as 1 or 3; .npy files may hold any number",
        f"{other} cannot be read as an image: it has 3 channels, and not 2",
    ]


@pytest.mark.parametrize(
    ("channels", "grey", "colours"),
    [
        (3, False, "RGB"),
        (3, True, "grey (0.299 R + 0.587 G + 0.114 B), three times"),
        (1, False, "grey (0.299 R + 0.587 G + 0.114 B)"),
        (1, True, "grey (0.299 R + 0.587 G + 0.114 B)"),
        (5, False, "5 channels, as they are"),
    ],
)
def test_the_colours_are_described(channels, grey, colours):
    assert describe_preparation(image_size=32, channels=channels, grey=grey)["colours"] == colours
