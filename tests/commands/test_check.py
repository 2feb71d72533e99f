"""The command `check`, and all broken files that a first look and an epoch name."""

import json

import pytest

from data.datasets import load
from data.errors import CorruptedData, DataError, as_one
from data.loader import Loader, Shard
from data.verify import verify_held_out
from tests.support.application import everything_in, run_here
from tests.support.dataset_files import flip_a_byte
from tests.support.synthetic_datasets import make_cifar10, make_svhn
from tests.support.synthetic_images import bad_files, data_threads, encoded, make_folder, picture, write
from train.terminal import Bar

RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
SMALL = ["--dataset=folder", "--depth=10", "--growth_rate=2", "--seed=3", "--n_epochs=1"]
CUT = "cannot be read as an image: image file is truncated"
EMPTY = "cannot be read as an image: it is empty, damaged or of no known format"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert data_threads() == []


@pytest.fixture
def data(tmp_path):
    return make_folder(tmp_path / "data", {"train": 4, "val": 2, "test": 2})


def damage(data, *names):
    for name in names:
        write(data / name, bad_files()["cut.png"])


def check(data, *words):
    return run_here("check", "--dataset=folder", f"--data={data}", *words)


def test_a_good_folder_is_described(data, capsys):
    write(data / "train/ant/more.png", encoded(picture(32, 32), "PNG"))
    write(data / "notes.txt")
    before = everything_in(data)
    assert check(data) == 0
    assert capsys.readouterr() == (
        f"Not used in {data}: notes.txt\n"
        "3 classes: ant, bee and cat\n"
        "Images: 13 for training (4 to 5 of a class), 6 for validation and 6 for the test\n"
        "All 25 images can be read.\n",
        "",
    )
    assert everything_in(data) == before


def test_every_broken_file_is_named_and_the_exit_code_is_1(data, capsys):
    names = ["train/bee/001.png", "train/cat/003.png", "val/ant/000.png", "test/ant/001.png", "test/cat/000.png"]
    damage(data, *names)
    write(data / names[0], b"")
    assert check(data) == 1
    out, error = capsys.readouterr()
    assert out == (
        "3 classes: ant, bee and cat\nImages: 12 for training (4 of each class), 6 for validation and 6 for the test\n"
    )
    assert error.splitlines() == [
        f"error: {data / names[0]} {EMPTY}",
        *(f"error: {data / name} {CUT}" for name in names[1:]),
        "demo.py check: error: 5 of 24 images cannot be read",
    ]


def test_more_than_ten_are_all_named(data, capsys):
    names = [f"train/{name}/{i:03}.png" for name in ("ant", "bee", "cat") for i in range(4)]
    damage(data, *names)
    assert check(data) == 1
    assert capsys.readouterr().err.count(CUT) == 12


def test_a_bar_is_shown_on_a_terminal_alone(data, monkeypatch, capsys):
    damage(data, "train/bee/001.png")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert check(data) == 1
    assert "reading all images" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert check(data) == 1
    assert "reading all images" not in capsys.readouterr().err


def test_a_folder_that_cannot_be_used_is_one_line(data, capsys):
    (data / "train").rename(data / "away")
    assert check(data) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert f"demo.py check: error: there is no folder {data / 'train'}; --data needs" in error


def test_digests_of_other_data_sets_are_verified(tmp_path, monkeypatch, capsys, server):
    make_svhn(tmp_path / "svhn", 60, 50, num_extra=40, monkeypatch=monkeypatch)
    assert run_here("check", "--dataset=svhn", f"--data={tmp_path / 'svhn'}") == 0
    assert "Images: 100 for training (10 of each class) and 50 for the test\nAll 150 images" in capsys.readouterr().out
    made = make_cifar10(tmp_path / "cifar", monkeypatch=monkeypatch)
    for name in [*made.files][:2]:
        flip_a_byte(tmp_path / "cifar" / name)
    assert run_here("check", f"--data={tmp_path / 'cifar'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(str(tmp_path / "cifar" / name) in error for name in [*made.files][:2])
    assert server.asked == []


def test_memory_that_runs_out_is_one_line(data, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("PIL.Image.open", fail)
    assert check(data) == 1
    assert capsys.readouterr().err == "demo.py check: error: memory ran out; use a machine with more memory\n"


def test_a_first_look_names_all_broken_files_in_one_line(data, tmp_path, capsys):
    names = ["val/ant/000.png", "test/ant/001.png", "test/cat/000.png"]
    damage(data, "train/ant/000.png", *names)  # the first is not looked at
    assert run_here(*SMALL, f"--data={data}", f"--save={tmp_path / 'run'}") == 2
    lines = "; ".join(f"{data / name} {CUT}" for name in names)
    assert capsys.readouterr().err == f"demo.py: error: 3 files are broken: {lines}\n"
    assert not (tmp_path / "run").exists()


def test_of_more_than_ten_the_first_ten_are_named_and_the_number_of_all():
    errors = [DataError(f"{number} is broken") for number in range(1_234)]
    assert as_one(errors[:1]) is errors[0]
    first = "; ".join(f"{number} is broken" for number in range(10))
    assert str(as_one(errors[:10])) == f"10 files are broken: {first}"
    assert str(as_one(errors)) == f"1,234 files are broken: {first}; and 1,224 more"
    assert isinstance(as_one(errors), CorruptedData)


def test_an_epoch_ends_with_all_broken_files_of_a_batch(data, tmp_path, capsys):
    names = ["train/ant/000.png", "train/cat/002.png"]
    damage(data, *names)
    assert run_here(*SMALL, "--batch_size=12", f"--data={data}", f"--save={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert error.startswith("demo.py: error: 2 files are broken: ")
    assert error.count("\n") == 1
    assert all(f"{data / name} {CUT}" in error for name in names)
    assert json.loads((tmp_path / "run/config.json").read_text())["flags"]["seed"] == 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_processes_look_at_their_own_parts(count, data):
    """Each file is read by one of them, and a limit leaves out what no batch needs."""
    names = ["test/ant/001.png", "test/bee/000.png", "test/cat/001.png"]
    damage(data, *names)
    test = load("folder", folder=data, download=False).test
    found = []
    for rank in range(count):
        loader = Loader(test, batch_size=4, shard=Shard(rank, count), **RAW)
        try:
            verify_held_out([loader], bar=Bar)
        except DataError as error:
            found += [name for name in names if str(data / name) in str(error)]
    assert sorted(found) == names
    verify_held_out([Loader(test, batch_size=1, limit=1, **RAW)], bar=Bar)
