"""A user's own folder of images: the files in it, and the errors where it cannot be used."""

import os
from pathlib import Path

import pytest

from data.datasets import load
from data.errors import DataError, MissingData
from data.walk import find_images
from tests.support.synthetic_images import encoded, make_folder, picture, write

PNG = encoded(picture(8, 8), "PNG")


def read(folder, image_size=32):
    return load("folder", folder=folder, download=True, image_size=image_size)


def names_of(images, folder):
    return [os.path.relpath(path, folder) for path in images.paths]


def make(folder, *names):
    """Write the same image to files of any name."""
    for name in names:
        write(folder / name, PNG)
    return folder


def test_classes_are_the_folders_below_train_in_order_of_name(tmp_path):
    make(tmp_path, "train/b/2.png", "train/b/1.png", "train/a/z.png", "train/B/x.png")
    make(tmp_path, "test/a/1.png", "test/b/5.png", "test/B/1.png")
    dataset = read(tmp_path, image_size=48)
    assert dataset.classes == ("B", "a", "b")
    assert names_of(dataset.train, tmp_path) == ["train/B/x.png", "train/a/z.png", "train/b/1.png", "train/b/2.png"]
    assert dataset.train.labels.tolist() == [0, 1, 2, 2]
    assert dataset.test.labels.tolist() == [0, 1, 2]
    assert dataset.train.image_size == dataset.test.image_size == 48
    assert dataset.valid is None
    assert dataset.notes == ()


def test_data_sets_are_told_apart_wherever_they_lie(tmp_path):
    names = ["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"]
    digest = read(make(tmp_path / "one", *names)).digest()
    assert digest == read(make(tmp_path / "deeper/other", *names)).digest()
    assert 0 <= digest < 2**62
    others = [[*names, "train/a/5.png"], ["train/a/7.png", *names[1:]], ["train/z/1.png", *names[1:], "train/a/1.png"]]
    others += [["test/b/3.png", *names], [name.replace("/b/", "/c/") for name in names]]
    digests = {read(make(tmp_path / str(i), *other)).digest() for i, other in enumerate(others)}
    assert len(digests - {digest}) == len(others)


@pytest.mark.parametrize("use", ["val", "test"])
def test_a_single_folder_beside_train_is_the_test_set_whatever_its_name(use, tmp_path):
    dataset = read(make_folder(tmp_path, {"train": 2, use: 1}))
    assert names_of(dataset.test, tmp_path) == [f"{use}/{name}/000.png" for name in ("ant", "bee", "cat")]
    assert dataset.valid is None


def test_with_both_val_is_for_validation_and_test_for_the_end(tmp_path):
    dataset = read(make_folder(tmp_path, {"train": 2, "val": 3, "test": 1}))
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (6, 9, 3)
    assert all(name.startswith("val/") for name in names_of(dataset.valid, tmp_path))
    assert all(name.startswith("test/") for name in names_of(dataset.test, tmp_path))


def test_files_are_found_at_any_depth_and_by_their_suffix_in_any_case(tmp_path):
    make(tmp_path, "train/a/x/y/1.PNG", "train/a/2.JpEg", "train/a/3.webp", "train/b/x.png/1.gif", "test/a/1.bmp")
    dataset = read(tmp_path)
    expected = ["train/a/2.JpEg", "train/a/3.webp", "train/a/x/y/1.PNG", "train/b/x.png/1.gif"]
    assert names_of(dataset.train, tmp_path) == expected


def test_skipped_files_are_counted_in_one_line(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    make(tmp_path, "train/a/.hidden.png", "train/a/notes.txt", "train/list.csv", "train/.cache/1.png", "test/a/png")
    make(tmp_path, "train/a/@eaDir/1.png", "train/__MACOSX/a/1.png", "test/b/__MACOSX/1.png")  # thumbnails
    os.mkfifo(tmp_path / "train/b/pipe.png")
    dataset = read(tmp_path)
    assert len(dataset.train) == len(dataset.test) == 2
    (note,) = dataset.notes
    why = "hidden, no image by their name or in no class's folder"
    assert note.startswith(f"Skipped in {tmp_path}: 9 that are {why}, as train/")


def test_classes_that_val_or_test_lack_are_named(tmp_path):
    make(tmp_path, *(f"train/{name}/1.png" for name in "abcdefgh"), "val/a/1.png", "test/h/1.png")
    (tmp_path / "test/a").mkdir()
    dataset = read(tmp_path)
    assert dataset.valid.labels.tolist() == [0]
    assert dataset.test.labels.tolist() == [7]
    assert dataset.notes == (
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
    "empty val": (without("val/a"), DataError, "{}/val has no class folders, and no image; --data needs train/"),
    "unknown in test": (lambda folder: make(folder, "test/c/1.png"), DataError, "{}/test/c is no class"),
    "unknown in val": (lambda folder: make(folder, "val/A/1.png"), DataError, "{}/val/A is no class"),
    "broken link": (
        lambda folder: (folder / "train/a/2.png").symlink_to("nowhere"),
        DataError,
        "{}/train/a/2.png cannot be read; fix the link, or take it away",
    ),
}


SEVERAL = {
    "empty classes": (
        without("train/a/1.png", "train/b/1.png"),
        "{0}/train/a and {0}/train/b have no image: no file in them ends in .jpg, .png, .webp or the like",
    ),
    "unknown classes": (
        lambda folder: make(folder, "test/c/1.png", "test/d/1.png", "val/e/1.png"),
        "{0}/val/e is no class: the training images have no folder of that name; {0}/test/c and {0}/test/d are no "
        "classes: the training images have no folders of those names",
    ),
    "links and files": (
        lambda folder: [(folder / f"train/a/{i}.png").symlink_to("nowhere") for i in range(2, 14)],
        ", ".join(f"{{0}}/train/a/{i}.png" for i in (10, 11, 12, 13, 2, 3, 4, 5, 6, 7))
        + " and 2 more cannot be read; fix the links, or take them away",
    ),
    "problems of different kinds": (
        lambda folder: (without("train/b/1.png")(folder), (folder / "test/a/2.png").symlink_to("nowhere")),
        "{0}/train/b has no image: no file in it ends in .jpg, .png, .webp or the like; {0}/test/a/2.png cannot be "
        "read; fix the link, or take it away",
    ),
    "images without labels in test": (
        lambda folder: (
            without("test/a", "test/b")(folder),
            make(folder, "test/1.png", "test/2.png", "test/notes.txt"),
        ),
        "{0}/test has no class folders, but 2 images: they have no labels; rename it, or use predict",
    ),
    "one image without a label in val": (
        lambda folder: (without("val/a")(folder), make(folder, "val/1.png")),
        "{0}/val has no class folders, but 1 image: they have no labels; rename it, or use predict",
    ),
    "images without labels in train": (
        lambda folder: (without("train/a", "train/b")(folder), make(folder, "train/1.png", "train/2.png")),
        "{0}/train has 0 class folders, but must have 2 or more; --data needs train/ with a folder for each class, and "
        "test/ or val/ with the same folders; 2 images in it lie in no class's folder, and so have no labels",
    ),
    "classes one folder too deep": (
        lambda folder: (
            (folder / "train").rename(folder / "x"),
            (folder / "train").mkdir(),
            (folder / "x").rename(folder / "train/x"),
        ),
        "{0}/train has 1 class folder, but must have 2 or more; --data needs train/ with a folder for each class, and "
        "test/ or val/ with the same folders; a and b in {0}/train/x look like classes: move them into {0}/train",
    ),
    "classes of test one folder too deep": (
        lambda folder: (
            (folder / "test").rename(folder / "x"),
            (folder / "test").mkdir(),
            (folder / "x").rename(folder / "test/x"),
        ),
        "{0}/test/x is no class: the training images have no folder of that name; {0}/test/x holds folders of "
        "classes: move them into {0}/test",
    ),
    "other endings": (
        lambda folder: (
            without("train/b/1.png")(folder),
            make(folder, "train/b/1.HEIC", "train/b/2.heic", "train/b/x"),
        ),
        "{0}/train/b has no image: no file in it ends in .jpg, .png, .webp or the like, but in .heic and x",
    ),
    "two names for a use": (
        lambda folder: make(folder, "valid/a/1.png"),
        "{0} has val and valid, which are names for the same use; keep one of them",
    ),
    "two names for training": (
        lambda folder: make(folder, "Training/a/1.png"),
        "{0} has Training and train, which are names for the same use; keep one of them",
    ),
    "another Unicode form": (
        lambda folder: make(folder, "train/caf\u00e9/1.png", "test/cafe\u0301/1.png"),
        "{0}/test/cafe\u0301 is no class: the training images have no folder of that name; cafe\u0301 only looks like "
        "one, and is written in another Unicode form: give both the same",
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_one_line_names_every_problem(name, tmp_path):
    damage, message = SEVERAL[name]
    good(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value) == message.format(tmp_path)


@pytest.mark.parametrize("valid", ["val", "valid", "validation", "dev", "Val", "VALIDATION"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "Testing"), ("TRAIN", "Test")])
def test_folders_have_the_names_that_people_give_them(train, valid, test, tmp_path):
    make(tmp_path, *(f"{use}/{name}/1.png" for use in (train, valid, test) for name in "ab"), f"{valid}/a/2.png")
    dataset = read(tmp_path)
    assert names_of(dataset.train, tmp_path) == [f"{train}/a/1.png", f"{train}/b/1.png"]
    assert names_of(dataset.valid, tmp_path) == [f"{valid}/a/1.png", f"{valid}/a/2.png", f"{valid}/b/1.png"]
    assert names_of(dataset.test, tmp_path) == [f"{test}/a/1.png", f"{test}/b/1.png"]
    assert dataset.notes == ()


def test_the_names_of_the_folders_do_not_tell_data_sets_apart_where_they_are_the_usual_ones(tmp_path):
    """So that a run from before other names were accepted can be resumed."""
    dataset = read(make_folder(tmp_path, {"train": 2, "val": 1, "test": 1}))
    paths = ["/val/ant/000.png", "/val/bee/000.png", "/val/cat/000.png"]
    assert [name.replace(str(tmp_path), "") for name in dataset.valid.paths] == paths
    assert dataset.valid.names() == [path.removeprefix("/val") for path in paths]


def test_unused_entries_are_named_and_counted(tmp_path):
    good(tmp_path)
    make(tmp_path, "readme.md", "other/1.png", "other/x/2.png", "other/x/.3.png", "more/1.txt", "unlabelled/1.png")
    make(tmp_path, ".git/1.png", ".DS_Store", "__MACOSX/train/1.png")  # which nobody has put there
    *_, note = read(tmp_path).notes
    assert note == (f"Not used in {tmp_path}: more/ (no image), other/ (2 images), readme.md and unlabelled/ (1 image)")


def test_a_large_unused_folder_is_not_counted_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("data.folder.FILES_LOOKED_AT", 3)
    good(tmp_path)
    make(tmp_path, *(f"other/{i}.png" for i in range(4)), *(f"texts/{i}.txt" for i in range(4)))
    *_, note = read(tmp_path).notes
    assert note == f"Not used in {tmp_path}: other/ (many images) and texts/ (many files)"


def test_the_right_folder_above_or_below_is_suggested(tmp_path, monkeypatch):
    good(tmp_path / "data/three")
    for wrong, right in (("data", "data/three"), ("data/three/train", "data/three"), ("data/three/val", "data/three")):
        with pytest.raises(MissingData) as caught:
            read(tmp_path / wrong)
        assert str(caught.value).endswith(f"; did you mean --data {tmp_path / right}?")
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(MissingData, match=r"did you mean --data three\?$"):
        read(Path())
    good(tmp_path / "data/four")
    for unclear in (tmp_path / "data", tmp_path / "data/three/train/a"):
        with pytest.raises(MissingData) as caught:
            read(unclear)
        assert "did you mean" not in str(caught.value)


def test_classes_that_look_the_same_are_noted(tmp_path):
    good(tmp_path)
    make(tmp_path, "train/caf\u00e9/1.png", "train/cafe\u0301/1.png", "test/caf\u00e9/1.png", "test/cafe\u0301/1.png")
    note = "2 classes look like caf\u00e9, and are written in different Unicode forms"
    assert read(tmp_path).notes[-1] == note


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
def test_unreadable_files_and_folders_are_named(name, tmp_path):
    good(tmp_path)
    (tmp_path / name).chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path)
    finally:
        (tmp_path / name).chmod(0o755)


def test_a_system_that_denies_access_is_named(tmp_path, monkeypatch):
    """Simulated, for tests that run as root."""
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


def test_names_that_are_not_valid_text_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    path = os.fsencode(tmp_path / "a") + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        file.write(PNG)
    (found,) = find_images(tmp_path).images
    assert os.fsencode(found) == path
