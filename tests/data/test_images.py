"""Image files without labels are prepared as the test images of a run, and bad files do not disturb good ones."""

import os

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision import transforms

from data.datasets import DATASETS, load
from data.errors import DataError, MissingData
from data.images import describe_preparation, list_images, read_images
from data.loader import make_test_loader
from tests.support.dataset_files import in_memory
from tests.support.synthetic_images import bad_files, data_threads, encoded, make_folder, picture, write

CPU = torch.device("cpu")
RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert data_threads() == []


def read(paths, *, batch_size=4, image_size=32, grey=False, **statistics):
    statistics = statistics or RAW
    return read_images(paths, image_size=image_size, grey=grey, batch_size=batch_size, device=CPU, **statistics)


@pytest.mark.parametrize("image_size", [32, 72])
def test_batches_are_the_test_batches_of_a_run_to_the_last_bit(image_size, tmp_path):
    folder = make_folder(tmp_path, {"train": 1, "test": 5}, width=90, height=100)
    spec = DATASETS["folder"]
    dataset = load("folder", folder=folder, download=False, image_size=image_size)
    tested = list(make_test_loader(dataset, spec, CPU, batch_size=4))
    paths = list_images([folder / "test"])
    ours = list(read(paths, image_size=image_size, mean=spec.mean, std=spec.std))
    for batch, test_batch in zip(ours, tested, strict=True):
        assert torch.equal(batch.images, test_batch.images)
        assert batch.errors == []
    assert [path for batch in ours for path in batch.paths] == paths


def test_digits_that_were_written_to_files_are_the_test_images(tmp_path):
    digits = load("digits", folder=None, download=False)
    for i, pixels in enumerate(in_memory(digits.test).images[:6]):
        write(tmp_path / f"{i}.png", encoded(Image.fromarray(pixels.permute(1, 2, 0).numpy()), "PNG"))
    spec = DATASETS["digits"]
    (batch,) = read(list_images([tmp_path]), batch_size=6, grey=spec.grey, mean=spec.mean, std=spec.std)
    expected = next(iter(make_test_loader(digits, spec, CPU, batch_size=6))).images
    assert torch.equal(batch.images, expected)


def test_digits_of_8x8_grey_pixels_are_enlarged_as_the_training_images_were(tmp_path):
    from sklearn.datasets import load_digits

    first = load_digits().images[0] * 255 / 16
    path = write(tmp_path / "0.png", encoded(Image.fromarray(first.round().astype(np.uint8)), "PNG"))
    expected = in_memory(load("digits", folder=None, download=False).train).images[0]
    (batch,) = read([str(path)], grey=True)
    assert (batch.images[0].round() - expected).abs().max() <= 1  # both round, one of them twice


def test_images_are_grey_if_the_data_set_is(tmp_path):
    path = str(write(tmp_path / "a.png", encoded(picture(50, 40), "PNG")))
    colour, grey = (next(read([path], grey=grey)).images[0] for grey in (False, True))
    assert colour.shape == grey.shape == (3, 32, 32)
    assert torch.equal(grey[0], grey[2])
    assert not torch.equal(colour[0], colour[2])


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(("image_size", "shorter"), [(32, 32), (64, 64), (65, 74), (224, 256)])
def test_who_follows_the_description_has_the_same_images(image_size, shorter, grey, tmp_path):
    """By the steps in torchvision, on an image that is turned and partly transparent."""
    mask = picture(300, 400, seed=1).convert("L")
    shown = picture(300, 400)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees, clockwise
    stored = Image.merge("RGBA", (*shown.split(), mask)).transpose(Image.Transpose.ROTATE_90)
    path = str(write(tmp_path / "a.png", encoded(stored, "PNG", exif=exif)))
    steps = describe_preparation(image_size=image_size, grey=grey)
    assert list(steps) == ["turn", "transparency", "shorter_side", "resize", "middle_crop", "colours"]
    assert (steps["shorter_side"], steps["middle_crop"]) == (shorter, image_size)
    page = Image.composite(shown, Image.new("RGB", shown.size, "white"), mask)
    small = transforms.CenterCrop(steps["middle_crop"])(transforms.Resize(steps["shorter_side"])(page))
    pixels = np.asarray(small, np.float32)
    if grey:
        assert steps["colours"] == "grey (0.299 R + 0.587 G + 0.114 B), three times"
        pixels = (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, 2)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    ours = next(read([path], image_size=image_size, grey=grey)).images[0]
    assert (ours - expected).abs().max() <= 2


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_files_leave_errors_and_the_others_are_read(batch_size, tmp_path):
    good = [str(write(tmp_path / f"good{i}.png", encoded(picture(32, 32, i), "PNG"))) for i in range(5)]
    bad = [str(write(tmp_path / name, contents)) for name, contents in bad_files().items()]
    gone = str(tmp_path / "gone.png")
    paths = sorted([*good, *bad, gone])
    batches = list(read(paths, batch_size=batch_size))
    assert [path for batch in batches for path in batch.paths] == sorted(good)
    for batch in batches:
        assert batch.images.shape == (len(batch.paths), 3, 32, 32)
        for path, image in zip(batch.paths, batch.images, strict=True):
            with Image.open(path) as file:
                assert np.array_equal(image.round().byte().permute(1, 2, 0).numpy(), np.asarray(file))
    errors = [str(error) for batch in batches for error in batch.errors]
    assert [error.partition(" cannot be read")[0] for error in errors] == sorted([*bad, gone])
    assert f"{gone} cannot be read: No such file or directory" in errors
    assert not any("\n" in error for error in errors)


def test_files_and_folders_can_be_named_in_any_order(tmp_path):
    for name in ("b.png", "a/2.jpg", "a/1/3.PNG", "a/.hidden.png", "a/notes.txt", "notes.txt"):
        write(tmp_path / name)
    words = [tmp_path / name for name in ("notes.txt", "a", "b.png", "b.png")]
    found = [os.path.relpath(path, tmp_path) for path in list_images(words)]
    assert found == ["notes.txt", "a/1/3.PNG", "a/2.jpg", "b.png", "b.png"]


def test_what_cannot_be_an_image_is_named_before_any_work(tmp_path):
    (tmp_path / "empty.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(MissingData, match=f"there is no file {tmp_path}/x.png"):
        list_images([tmp_path / "x.png"])
    with pytest.raises(MissingData, match=f"there is no image in the folder {tmp_path}/empty.png"):
        list_images([tmp_path / "empty.png"])
    with pytest.raises(DataError, match=r"pipe\.png is neither a file nor a folder"):
        list_images([tmp_path / "pipe.png"])


def test_leaving_early_ends_the_threads(tmp_path):
    path = str(write(tmp_path / "a.png", encoded(picture(32, 32), "PNG")))
    batches = read([path] * 100)
    next(batches)
    batches.close()
    assert data_threads() == []
