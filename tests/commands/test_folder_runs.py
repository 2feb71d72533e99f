"""Runs on a user's own folder of images, through the command line."""

import json
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.datasets import load
from data.errors import CorruptedData
from data.loader import Loader
from data.splits import Split
from data.verify import verify_held_out
from tests.support.application import command, everything_in, read_results, run_here
from tests.support.synthetic_images import data_threads, encoded, make_folder, picture, write
from train.errors import UserError
from train.run.config import require_recorded_data
from train.terminal import Bar

SMALL = ["--dataset=folder", "--depth=10", "--growth_rate=2", "--batch_size=16", "--seed=3"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert data_threads() == []


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


@pytest.mark.parametrize(
    ("name", "begins"), [("train/cat/002.png", True), ("test/cat/001.png", False), ("val/ant/000.png", False)]
)
def test_a_bad_file_ends_a_run_with_one_line_and_before_it_begins_if_it_is_needed_late(name, begins, tmp_path, capsys):
    make_folder(tmp_path / "data", {"train": 6, "val": 1, "test": 2})
    write(tmp_path / "data" / name, b"")
    save = tmp_path / "save"
    assert run_here(*SMALL, f"--data={tmp_path / 'data'}", f"--save={save}", "--n_epochs=1") == 2
    out, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert f"{tmp_path / 'data' / name} cannot be read as an image: it is empty" in error
    assert save.exists() == begins
    assert ("parameters" in out) == begins


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_first_look_is_at_files_only(in_memory, tmp_path):
    make_folder(tmp_path, {"train": 2, "test": 2})
    write(tmp_path / "test/cat/001.png", b"")
    test = load("folder", folder=tmp_path, download=False).test
    test = Split(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), test.labels) if in_memory else test
    loader = Loader(test, batch_size=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    with nullcontext() if in_memory else pytest.raises(CorruptedData, match=r"cat/001\.png"):
        verify_held_out([loader], bar=Bar)


@pytest.mark.parametrize(("use", "goes_on"), [("train", False), ("val", False), ("test", True)])
def test_a_run_does_not_go_on_with_another_number_of_images(use, goes_on, tmp_path, capsys):
    """Other images would be held out, and the run be validated on some that it was trained on."""
    data, save = tmp_path / "data", tmp_path / "save"
    make_folder(data, {"train": 6, "val": 2, "test": 2})
    assert run_here(*SMALL, f"--data={data}", "--n_epochs=1", f"--save={save}") == 0
    before = everything_in(save)
    write(data / use / "cat/more.png", encoded(picture(40, 32), "PNG"))
    capsys.readouterr()
    assert run_here(f"--save={save}", "--resume", "--n_epochs=2") == (0 if goes_on else 2)
    if not goes_on:
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        name, number = {"train": ("train", 18), "val": ("valid", 6)}[use]
        assert f"began with {number} images for {name} and the data set has {number + 1} now" in error
        assert everything_in(save) == before


def test_val_that_comes_later_is_named(tmp_path, capsys):
    make_folder(tmp_path / "data", {"train": 6, "test": 2})
    save = f"--save={tmp_path / 'run'}"
    assert run_here(*SMALL, f"--data={tmp_path / 'data'}", "--n_epochs=1", save) == 0
    make_folder(tmp_path / "data", {"val": 1})
    assert run_here(save, "--resume", "--n_epochs=2") == 2
    assert "began with 0 images for valid and the data set has 3 now" in capsys.readouterr().err


def test_a_run_finds_its_images_from_any_folder(tmp_path, monkeypatch):
    make_folder(tmp_path / "data", {"train": 2, "test": 2})
    monkeypatch.chdir(tmp_path)
    assert run_here(*SMALL, "--data=data", "--n_epochs=1", "--save=run") == 0
    monkeypatch.chdir("data")
    assert run_here("evaluate", "--save=../run") == 0
    assert run_here("--save=../run", "--resume", "--n_epochs=2") == 0


@pytest.mark.parametrize("images", ["many", {"train": "6"}, [6]])
def test_numbers_of_images_that_are_none_are_named(images, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"flags": {}, "images": images}))
    with pytest.raises(UserError, match=r"cannot be used: images is .*, but must be whole numbers by name"):
        require_recorded_data(tmp_path, classes=["a"], sizes={"train": 6, "valid": 0})


@pytest.mark.parametrize("recorded", [{"train": 18, "valid": 0, "test": 4}, {"train": 16, "valid": 2, "test": 4}])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"train": 18, "valid": 0}, None),
        ({"train": 19, "valid": 0}, "began with 18 images for train and the data set has 19 now"),
        ({"train": 16, "valid": 0}, "began with 18 images for train and the data set has 16 now"),
        ({"train": 18, "valid": 2}, "began with 0 images for valid and the data set has 2 now"),
        ({"train": 16, "valid": 2}, "began with 18 images for train and the data set has 16 now"),
    ],
)
def test_held_out_images_are_known_whether_a_run_counted_them_before_or_after_the_split(
    recorded, found, message, tmp_path
):
    (tmp_path / "config.json").write_text(json.dumps({"flags": {"valid_size": 2}, "images": recorded}))
    with pytest.raises(UserError, match=message) if message else nullcontext():
        require_recorded_data(tmp_path, classes=["a"], sizes=found)


@pytest.mark.parametrize("valid_size", [None, 0])
def test_images_of_a_validation_folder_are_no_training_images(valid_size, tmp_path):
    images = {"train": 16, "valid": 2 if valid_size is None else 0}
    (tmp_path / "config.json").write_text(json.dumps({"flags": {"valid_size": valid_size}, "images": images}))
    require_recorded_data(tmp_path, classes=["a"], sizes=images)
    with pytest.raises(UserError, match="images for train and the data set has 18 now"):
        require_recorded_data(tmp_path, classes=["a"], sizes={"train": 18, "valid": 0})


def test_config_counts_images_as_they_are_used(tmp_path):
    make_folder(tmp_path / "data", {"train": 6, "test": 2})  # of each of three classes
    make_folder(tmp_path / "own", {"train": 6, "val": 1, "test": 2})
    for name, words, images in (
        ("data", ["--valid_size=5"], {"train": 13, "valid": 5, "test": 6}),
        ("data", ["--valid_size=5", "--limit_batches=1"], {"train": 13, "valid": 5, "test": 6}),
        ("data", ["--valid_size=0"], {"train": 18, "valid": 0, "test": 6}),
        ("own", [], {"train": 18, "valid": 3, "test": 6}),
    ):
        save = tmp_path / f"{name}{''.join(words)}"
        assert run_here(*SMALL, f"--data={tmp_path / name}", *words, "--n_epochs=1", f"--save={save}") == 0
        assert json.loads((save / "config.json").read_text())["images"] == images


def test_a_run_that_counted_images_before_the_split_goes_on_with_the_same_bits(copy, finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    config = json.loads((copy / "config.json").read_text())
    assert config["images"] == {"train": 1302, "valid": 140, "test": 355}
    config["images"] = {"train": 1442, "valid": 0, "test": 355}  # as older versions wrote it
    (copy / "config.json").write_text(json.dumps(config))
    for run in (copy, other):
        assert run_here(f"--save={run}", "--resume", "--n_epochs=3") == 0
    assert (copy / "model.pt").read_bytes() == (other / "model.pt").read_bytes()
    assert json.loads((copy / "config.json").read_text())["images"] == {"train": 1302, "valid": 140, "test": 355}


def test_titles_say_which_images(tmp_path, capsys, monkeypatch):
    make_folder(tmp_path / "pets", {"train": 2, "test": 2})
    monkeypatch.chdir(tmp_path / "pets")
    assert run_here(*SMALL, "--data=.", "--n_epochs=1", "--save=../run") == 0
    assert "DenseNet-BC (L=10, k=2) on folder pets, seed 3: " in capsys.readouterr().out
    (tmp_path / "others").symlink_to("pets")
    assert run_here("evaluate", "--save=../run", "--data=../others") == 0
    assert capsys.readouterr().out.startswith("DenseNet-BC (L=10, k=2) on folder others, ")


def test_a_folder_whose_name_is_no_text_is_drawn_too(tmp_path, capsys):
    data = make_folder(tmp_path / "b\udcffad\n", {"train": 2, "test": 2})
    assert run_here(*SMALL, f"--data={data}", "--n_epochs=1", f"--save={tmp_path / 'run'}") == 0
    assert capsys.readouterr().out.startswith("DenseNet-BC (L=10, k=2) on folder b\\udcffad\\n, seed 3: ")
    assert (tmp_path / "run/curves.png").exists()


def test_a_link_stays_a_link(tmp_path, monkeypatch):
    """The target of the link may get another name."""
    make_folder(tmp_path / "v1", {"train": 2, "test": 2})
    (tmp_path / "current").symlink_to("v1")
    monkeypatch.chdir(tmp_path)
    assert run_here(*SMALL, "--data=current", "--n_epochs=1", "--save=run") == 0
    (tmp_path / "v1").rename("v2")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v2")
    assert run_here("evaluate", "--save=run") == 0


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
