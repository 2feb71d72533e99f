"""Batches out of image files: the same as batches out of memory, whichever threads and processes decode them."""

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transform

from data import image_files
from data.crops import random_crop
from data.datasets import DATASETS, load
from data.decode import decode, prepare
from data.errors import DataError
from data.loader import Loader, make_loaders, make_test_loader, plan_epoch
from data.share import Share
from data.source import Split, split_validation
from tests.application import command, everything_in, read_results, run_here
from tests.made_images import bad_files, data_threads, encoded, make_folder, picture, write

RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # normalised pixels are the pixels
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert data_threads() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), {"train": 8, "test": 3}, width=100, height=90)


def files_of(folder, image_size):
    return load("folder", folder=folder, download=False, image_size=image_size).train


def in_memory(files):
    """The same images, prepared one by one and held in memory."""
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
def test_small_images_are_those_of_memory_to_the_last_bit(image_size, augment, folder):
    files = files_of(folder, image_size)
    spec = DATASETS["folder"]
    options = {"batch_size": 7, "mean": spec.mean, "std": spec.std, "seed": 3, "augment": augment}
    ours, theirs = (Loader(split, **options) for split in (files, in_memory(files)))
    assert_same(ours.epoch(2), theirs.epoch(2))
    assert_same(ours, theirs)
    assert next(iter(ours)).images.shape == (7, 3, image_size, image_size)


def test_large_training_images_are_the_planned_parts(folder):
    files = files_of(folder, 72)
    loader = Loader(files, batch_size=5, seed=6, augment=True, **RAW)
    plan = plan_epoch(len(files), seed=6, epoch=3)
    images = torch.cat([batch.images for batch in loader.epoch(3)])
    for image, place, seed in zip(images, plan.order.tolist(), plan.seed.tolist(), strict=True):
        expected = decode(files.paths[place], lambda w, h, seed=seed: random_crop(w, h, seed=seed), size=72)
        assert np.array_equal(image.round().byte().permute(1, 2, 0).numpy(), expected)
    unplanned = torch.cat([batch.images for batch in Loader(files, batch_size=5, seed=6, **RAW).epoch(3)])
    assert torch.equal(unplanned.round().byte(), in_memory(files).images[plan.order])


@pytest.mark.parametrize("image_size", [32, 72])
def test_an_epoch_is_the_same_in_any_number_of_threads(image_size, folder, monkeypatch):
    files = files_of(folder, image_size)
    epochs = []
    for threads in (1, 2, 7, 40):
        monkeypatch.setattr(image_files, "count_threads", lambda threads=threads: threads)
        loader = Loader(files, batch_size=5, seed=1, augment=True, **RAW)
        epochs.append([*loader.epoch(1), *loader])
    for other in epochs[1:]:
        assert_same(epochs[0], other)
    different = [*Loader(files, batch_size=5, seed=1, augment=True, **RAW).epoch(2)]
    assert not torch.equal(different[0].images, epochs[0][0].images)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("image_size", [32, 72])
def test_processes_read_their_parts_of_the_same_batches(count, image_size, folder):
    files = files_of(folder, image_size).take(torch.arange(13))
    options = {"batch_size": 6, "seed": 1, "augment": True, **RAW}  # the last batch has one image
    alone = Loader(files, **options)
    loaders = [Loader(files, share=Share(rank, count), **options) for rank in range(count)]
    for whole, *parts in zip(alone.epoch(1), *(loader.epoch(1) for loader in loaders), strict=True):
        assert {part.size for part in parts} == {len(whole.labels)}
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def noted_files(monkeypatch):
    """A list that gets the path of each file that is decoded."""
    paths = []

    def note(path, *arguments, **options):
        paths.append(path)
        return decode(path, *arguments, **options)

    monkeypatch.setattr(image_files, "decode", note)
    return paths


def test_a_limit_decodes_no_more_than_it_gives(folder, monkeypatch):
    decoded = []
    real = image_files.decode
    monkeypatch.setattr(
        image_files, "decode", lambda path, *_, **options: decoded.append(path) or real(path, *_, **options)
    )
    batches = list(Loader(files_of(folder, 32), batch_size=4, limit=2, **RAW).epoch(1))
    assert [batch.size for batch in batches] == [4, 4]
    assert len(decoded) == 8


def test_the_loaders_of_a_folder(folder):
    source = load("folder", folder=folder, download=False)
    spec = DATASETS["folder"]
    preparation = {"batch_size": 4, "valid_size": None, "augment": True, "seed": 5}
    train, valid, test = make_loaders(source, spec, CPU, **preparation)
    assert (train.num_images, valid.num_images, test.num_images) == (22, 2, 9)
    kept, held_out = split_validation(source.train, size=2, seed=5)
    assert (train.split.paths, valid.split.paths) == (kept.paths, held_out.paths)
    assert (train.augment, valid.augment, test.augment) == (True, False, False)
    assert_same(make_test_loader(source, spec, CPU, batch_size=4), test)
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
        list(Loader(files, batch_size=4, **RAW))
    assert "\n" not in str(caught.value)
    assert data_threads() == []


def test_an_epoch_that_is_left_early_leaves_no_thread(folder):
    epoch = Loader(files_of(folder, 72), batch_size=2, augment=True, **RAW).epoch(1)
    next(epoch)
    assert data_threads() != []
    epoch.close()
    assert data_threads() == []


def test_only_a_few_batches_are_decoded_ahead(folder, monkeypatch):
    decoded = []
    real = image_files.decode
    monkeypatch.setattr(image_files, "count_threads", lambda: 2)
    monkeypatch.setattr(
        image_files, "decode", lambda path, *_, **options: decoded.append(path) or real(path, *_, **options)
    )
    batches = iter(Loader(files_of(folder, 32), batch_size=4, **RAW))
    next(batches)
    time.sleep(0.2)
    assert len(decoded) == 12  # the first batch and two ahead
    batches.close()


SMALL = ["--dataset=folder", "--depth=10", "--growth_rate=2", "--batch_size=16", "--seed=3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Some of the digits as PNG files, and images that are neither digits nor small."""
    root = tmp_path_factory.mktemp("digits")
    source = load("digits", folder=None, download=False)
    for use, split, number in (("train", source.train, 200), ("test", source.test, 50)):
        for i, (pixels, label) in enumerate(zip(split.images[:number], split.labels[:number].tolist(), strict=True)):
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            write(root / use / str(label) / f"{i:03}.png", encoded(image, "PNG"))
    write(root / "train/notes.txt")
    return root


def test_a_run_on_a_folder_says_what_it_found(digits, tmp_path, capsys):
    words = [*SMALL, f"--data={digits}", "--n_epochs=2"]
    assert run_here(*words, f"--save={tmp_path / 'one'}") == 0
    lines = capsys.readouterr().out.splitlines()
    why = "hidden, no image by their name or in no class's folder"
    assert lines[1] == f"Skipped in {digits}: 1 that are {why}, as train/notes.txt"
    assert lines[2] == "180 training, 20 validation and 50 test images"
    assert [row["epoch"] for row in read_results(tmp_path / "one")] == ["1", "2"]


@pytest.mark.parametrize("change", [Path.rename, shutil.copytree])
def test_a_run_does_not_go_on_with_other_classes(change, digits, tmp_path, capsys):
    """Labels are positions in the list of classes."""
    data = shutil.copytree(digits, tmp_path / "data")
    save = f"--save={tmp_path / 'run'}"
    assert run_here(*SMALL, f"--data={data}", "--n_epochs=1", save) == 0
    before = everything_in(tmp_path / "run")
    for use in ("train", "test"):
        change(data / use / "3", data / use / "three")
    capsys.readouterr()
    assert run_here(save, "--resume", "--n_epochs=2") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the classes of the data are not those of the run" in error
    assert "'three'" in error
    assert everything_in(tmp_path / "run") == before


def test_an_interrupted_and_resumed_run_has_the_same_bits(digits, tmp_path, monkeypatch):
    words = [*SMALL, f"--data={digits}", "--n_epochs=2"]
    assert run_here(*words, f"--save={tmp_path / 'whole'}") == 0
    from train import engine

    real = engine.RunFolder.save
    with monkeypatch.context() as patch:
        patch.setattr(engine.RunFolder, "save", lambda self, checkpoint: (real(self, checkpoint), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run_here(*words, f"--save={tmp_path / 'parts'}")
    assert run_here(f"--save={tmp_path / 'parts'}", "--resume") == 0
    assert (tmp_path / "parts/model.pt").read_bytes() == (tmp_path / "whole/model.pt").read_bytes()


def test_a_bad_file_ends_a_run_with_one_line(tmp_path, capsys):
    make_folder(tmp_path / "data", {"train": 6, "test": 2})
    write(tmp_path / "data/train/cat/002.png", b"")
    assert run_here(*SMALL, f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'save'}", "--n_epochs=1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path / 'data/train/cat/002.png'} cannot be read as an image: it is empty" in error


@pytest.mark.parametrize("flag", ["--valid_size=3", "--valid_size=0"])
def test_a_run_with_val_and_test_uses_both(flag, tmp_path, capsys):
    make_folder(tmp_path / "data", {"train": 6, "val": 2, "test": 3})
    words = [*SMALL, f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'save'}", "--n_epochs=1", "--image_size=72"]
    assert run_here(*words, flag) == 2
    assert (
        f"{flag.replace('=', ' is ')}, but the data set has 6 validation images of its own" in capsys.readouterr().err
    )
    assert not (tmp_path / "save").exists()
    assert run_here(*words) == 0
    assert "18 training, 6 validation and 9 test images" in capsys.readouterr().out
    assert run_here(f"--save={tmp_path / 'save'}", "--resume", "--n_epochs=2") == 0


def test_a_stopped_run_ends_soon_and_stands_at_its_last_epoch(tmp_path):
    """Threads that decode large files are at work as the signal comes."""
    make_folder(tmp_path / "data", {"train": 20, "test": 2}, width=320, height=240)
    words = [*SMALL, f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'save'}", "--image_size=72", "--n_epochs=1000"]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "epoch" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    start = time.perf_counter()
    _, error = process.communicate(timeout=30)
    assert time.perf_counter() - start < 10
    assert process.returncode == 143
    assert "to go on: python demo.py" in error
    assert "Traceback" not in error


@pytest.mark.gpu
@pytest.mark.parametrize("image_size", [32, 72])
def test_batches_on_a_gpu_are_those_of_the_cpu(image_size, folder):
    files = files_of(folder, image_size)
    here, there = (
        Loader(split, batch_size=5, augment=True, **RAW) for split in (files, files.to(torch.device("cuda")))
    )
    for one, other in zip(here.epoch(1), there.epoch(1), strict=True):
        assert other.images.device.type == other.labels.device.type == "cuda"
        torch.testing.assert_close(one.images, other.images.cpu())
        assert torch.equal(one.labels, other.labels.cpu())


def test_large_pictures_of_one_colour_keep_it(tmp_path):
    """Resizing, cropping and flipping leave one colour as it is, and so does the way through a batch."""
    for name, colour in (("red", (250, 10, 30)), ("blue", (0, 60, 200))):
        for use in ("train", "test"):
            write(tmp_path / use / name / "1.png", encoded(Image.new("RGB", (130, 90), colour), "PNG"))
    loader = Loader(files_of(tmp_path, 72), batch_size=2, augment=True, **RAW)
    (batch,) = loader.epoch(1)
    for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
        expected = torch.tensor([(0, 60, 200), (250, 10, 30)][label]).view(3, 1, 1).expand(3, 72, 72)
        assert torch.equal(image.round().long(), expected)


def test_made_pictures_differ():
    assert encoded(picture(9, 9, seed=1), "PNG") != encoded(picture(9, 9, seed=2), "PNG")
