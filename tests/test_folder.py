"""A user's own folder of images: what is found in it, and what is said of one that cannot be used."""

import os

import pytest

from data.datasets import load
from data.errors import DataError, MissingData
from data.find import find_images
from tests.made_images import encoded, make_folder, picture, write

PNG = encoded(picture(8, 8), "PNG")


def read(folder, image_size=32):
    return load("folder", folder=folder, download=True, image_size=image_size)


def names_of(images, folder):
    return [os.path.relpath(path, folder) for path in images.paths]


def make(folder, *names):
    """Files with the same picture, whatever they are called."""
    for name in names:
        write(folder / name, PNG)
    return folder


def test_classes_are_the_folders_below_train_in_order_of_name(tmp_path):
    make(tmp_path, "train/b/2.png", "train/b/1.png", "train/a/z.png", "train/B/x.png")
    make(tmp_path, "test/a/1.png", "test/b/5.png", "test/B/1.png")
    source = read(tmp_path, image_size=48)
    assert source.classes == ("B", "a", "b")
    assert names_of(source.train, tmp_path) == ["train/B/x.png", "train/a/z.png", "train/b/1.png", "train/b/2.png"]
    assert source.train.labels.tolist() == [0, 1, 2, 2]
    assert source.test.labels.tolist() == [0, 1, 2]
    assert source.train.image_size == source.test.image_size == 48
    assert source.valid is None
    assert source.notes == ()


def test_data_sets_are_told_apart_wherever_they_lie(tmp_path):
    names = ["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"]
    digest = read(make(tmp_path / "one", *names)).digest()
    assert digest == read(make(tmp_path / "deeper/other", *names)).digest()
    assert 0 <= digest < 2**62
    others = ([*names, "train/a/5.png"], ["train/a/7.png", *names[1:]], ["train/z/1.png", *names[1:], "train/a/1.png"])
    others += (["test/b/3.png", *names], [name.replace("/b/", "/c/") for name in names])
    digests = {read(make(tmp_path / str(i), *other)).digest() for i, other in enumerate(others)}
    assert len(digests - {digest}) == len(others)


@pytest.mark.parametrize("use", ["val", "test"])
def test_one_other_folder_is_the_test_set_whatever_its_name(use, tmp_path):
    source = read(make_folder(tmp_path, {"train": 2, use: 1}))
    assert names_of(source.test, tmp_path) == [f"{use}/{name}/000.png" for name in ("ant", "bee", "cat")]
    assert source.valid is None


def test_with_both_val_is_for_validation_and_test_for_the_end(tmp_path):
    source = read(make_folder(tmp_path, {"train": 2, "val": 3, "test": 1}))
    assert (len(source.train), len(source.valid), len(source.test)) == (6, 9, 3)
    assert all(name.startswith("val/") for name in names_of(source.valid, tmp_path))
    assert all(name.startswith("test/") for name in names_of(source.test, tmp_path))


def test_files_are_found_at_any_depth_and_by_their_ending_in_any_case(tmp_path):
    make(tmp_path, "train/a/x/y/1.PNG", "train/a/2.JpEg", "train/a/3.webp", "train/b/x.png/1.gif", "test/a/1.bmp")
    source = read(tmp_path)
    expected = ["train/a/2.JpEg", "train/a/3.webp", "train/a/x/y/1.PNG", "train/b/x.png/1.gif"]
    assert names_of(source.train, tmp_path) == expected


def test_what_is_skipped_is_counted_in_one_line(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    make(tmp_path, "train/a/.hidden.png", "train/a/notes.txt", "train/list.csv", "train/.cache/1.png", "test/a/png")
    make(tmp_path, "readme.md", "other/1.png")  # beside the folders that are looked into: nobody's business
    os.mkfifo(tmp_path / "train/b/pipe.png")
    source = read(tmp_path)
    assert len(source.train) == len(source.test) == 2
    (note,) = source.notes
    why = "hidden, no image by their name or in no class's folder"
    assert note.startswith(f"Skipped in {tmp_path}: 6 that are {why}, as train/")


def test_classes_that_val_or_test_lack_are_named(tmp_path):
    make(tmp_path, *(f"train/{name}/1.png" for name in "abcdefgh"), "val/a/1.png", "test/h/1.png")
    (tmp_path / "test/a").mkdir()
    source = read(tmp_path)
    assert source.valid.labels.tolist() == [0]
    assert source.test.labels.tolist() == [7]
    assert source.notes == (
        f"{tmp_path / 'val'} has no image of 7 of 8 classes: b, c, d, e, f, ...",
        f"{tmp_path / 'test'} has no image of 7 of 8 classes: a, b, c, d, e, ...",
    )


def test_links_to_files_and_folders_are_followed_and_circles_are_not(tmp_path):
    make(tmp_path / "elsewhere", "1.png", "deep/2.png")
    make(tmp_path, "train/a/0.png", "test/a/0.png")
    (tmp_path / "train/a/linked.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "train/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/itself").symlink_to("itself")
    expected = ["train/a/0.png", "train/a/linked.png", "train/b/1.png", "train/b/deep/2.png"]
    assert names_of(read(tmp_path).train, tmp_path) == expected


def good(folder):
    make(folder, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "val/a/1.png")


def without(*names):
    def damage(folder):
        for name in names:
            (folder / name).rename(folder / f"away_{name.replace('/', '_')}")

    return damage


BAD_FOLDERS = {
    "no train": (without("train"), MissingData, "there is no folder {}/train; --data needs train/"),
    "neither val nor test": (without("val", "test"), MissingData, "there is no folder {}/test; --data needs train/"),
    "empty": (without("train", "val", "test"), MissingData, "there is no folder {}/train; --data needs"),
    "one class": (without("train/b", "test/b"), DataError, "{}/train has 1 class folder, but must have 2 or more"),
    "no class": (without("train/a", "train/b"), DataError, "{}/train has 0 class folders, but must have 2 or more"),
    "empty class": (without("train/b/1.png"), DataError, "{}/train/b has no image: no file in it ends in .jpg"),
    "empty test": (without("test/a/1.png", "test/b"), DataError, "{}/test/a has no image"),
    "empty val": (without("val/a"), DataError, "{}/val/a has no image"),
    "unknown in test": (lambda folder: make(folder, "test/c/1.png"), DataError, "{}/test/c is no class"),
    "unknown in val": (lambda folder: make(folder, "val/A/1.png"), DataError, "{}/val/A is no class"),
    "broken link": (
        lambda folder: (folder / "train/a/2.png").symlink_to("nowhere"),
        DataError,
        "{}/train/a/2.png cannot be read; mend the link, or take it away",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_one_line(name, tmp_path):
    damage, kind, message = BAD_FOLDERS[name]
    good(tmp_path)
    damage(tmp_path)
    with pytest.raises(kind) as caught:
        read(tmp_path)
    assert message.format(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_that_does_not_exist_or_is_a_file(tmp_path):
    with pytest.raises(MissingData, match=r"--dataset folder needs --data FOLDER, which holds train/ and test/"):
        read(None)
    with pytest.raises(MissingData, match=f"there is no folder {tmp_path}/nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(MissingData, match="there is no folder"):
        read(write(tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["train/a/1.png", "train/a", "test", "."])
def test_what_may_not_be_read_is_named(name, tmp_path):
    good(tmp_path)
    (tmp_path / name).chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path)
    finally:
        (tmp_path / name).chmod(0o755)


def test_a_system_that_denies_access_is_named(tmp_path, monkeypatch):
    """What the test before cannot see as root."""
    good(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not path.endswith("train/b/1.png"))
        with pytest.raises(DataError, match=r"train/b/1\.png cannot be read; give it permission, or take it away"):
            read(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="train/b cannot be read: Permission denied"):
        read(tmp_path)


def test_names_that_are_no_text_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    path = os.fsencode(tmp_path / "a") + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        file.write(PNG)
    (found,) = find_images(tmp_path).images
    assert os.fsencode(found) == path
