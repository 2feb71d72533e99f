"""Another folder comes into the place of a run's own while the run goes on: neither loses or gains a byte."""

import os
import shutil
from contextlib import ExitStack

import pytest

from tests.support.application import everything_in
from tests.support.untrained_run import MOMENTS, run_quickly, seeds_in
from train.errors import RunError
from train.run import open_folder
from train.run.acquire import locked

OURS, THEIRS = 1, 7


class Scene:
    """A run, a finished one beside it, and other processes that are alive until the end of the test."""

    def __init__(self, folder, finished, alive):
        self.runs, self.run, self.other = folder / "runs", folder / "runs/ours", folder / "runs/theirs"
        self.moved, self.alive = folder / "moved", alive
        shutil.copytree(finished, self.other)
        self.run.mkdir()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run_quickly(folder, seed=THEIRS)
    return folder


def remove(scene):
    shutil.rmtree(scene.run)


def move(scene):
    scene.run.rename(scene.moved)


def begin_anew_empty(scene):
    shutil.rmtree(scene.run)
    scene.run.mkdir()


def move_and_make_empty(scene):
    move(scene)
    scene.run.mkdir()


def let_another_run_begin(scene):
    move(scene)
    scene.run.mkdir()
    scene.alive.enter_context(locked(scene.run))


def let_another_run_begin_and_end(scene):
    shutil.rmtree(scene.run)
    run_quickly(scene.run, seed=THEIRS)


def put_a_copy_there(scene):
    move(scene)
    shutil.copytree(scene.other, scene.run)


def put_a_copy_of_itself_there(scene):
    """With a lock file of the same contents."""
    move(scene)
    shutil.copytree(scene.moved, scene.run)


def swap(scene):
    move(scene)
    scene.other.rename(scene.run)
    scene.moved.rename(scene.other)


def link_to_a_finished_run(scene):
    move(scene)
    scene.run.symlink_to(scene.other)


def link_with_our_lock(scene):
    """The folder is another one, though the lock file in it is ours."""
    move(scene)
    os.link(scene.moved / ".lock", scene.other / ".lock")
    scene.run.symlink_to(scene.other)


def link_the_parent_elsewhere(scene):
    elsewhere = scene.moved.with_name("elsewhere")
    shutil.copytree(scene.other, elsewhere / "ours")
    scene.runs.rename(scene.moved)
    scene.runs.symlink_to(elsewhere)


def put_a_file_there(scene):
    move(scene)
    scene.run.write_text("a file")


def link_to_nothing(scene):
    move(scene)
    scene.run.symlink_to(scene.moved.with_name("nothing"))


def remove_the_lock(scene):
    (scene.run / ".lock").unlink()


def let_another_run_have_the_lock(scene):
    (scene.run / ".lock").unlink()
    scene.alive.enter_context(locked(scene.run))


def link_the_lock(scene):
    (scene.run / ".lock").unlink()
    (scene.run / ".lock").symlink_to(scene.other / "config.json")


OF_FOLDERS = [
    remove,
    move,
    begin_anew_empty,
    move_and_make_empty,
    let_another_run_begin,
    let_another_run_begin_and_end,
    put_a_copy_there,
    put_a_copy_of_itself_there,
    swap,
    link_to_a_finished_run,
    link_with_our_lock,
    link_the_parent_elsewhere,
    put_a_file_there,
    link_to_nothing,
]
OF_LOCKS = [remove_the_lock, let_another_run_have_the_lock, link_the_lock]
# Each change at every second moment. Between a look at the lock and a rename in the same folder nothing protects.
CASES = [
    (change, moment)
    for i, moment in enumerate(MOMENTS)
    for j, change in enumerate([*OF_FOLDERS, *OF_LOCKS])
    if (i + j) % 2 == 0 and not (change in OF_LOCKS and moment == "between check and rename")
]


def look(*folders):
    """All bytes in folders, but for files that a run has not finished."""
    found = [
        {
            name: content
            for name, content in everything_in(folder).items()
            if not name.endswith(".tmp") and ".lock" not in name
        }
        if folder.is_dir()
        else folder.exists() and folder.read_bytes()
        for folder in folders
    ]
    locks = [(folder / ".lock").lstat().st_ino for folder in folders if os.path.lexists(folder / ".lock")]
    return found, locks


def test_there_are_more_than_60_cases():
    assert len(CASES) > 60


@pytest.mark.parametrize(("change", "moment"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_run_whose_place_is_taken_changes_nothing_there(change, moment, finished, tmp_path):
    seen = []
    with ExitStack() as alive:
        scene = Scene(tmp_path, finished, alive)

        def at(now, epoch):
            if not seen and (now, epoch) == (moment, MOMENTS[moment]):
                change(scene)
                theirs = [scene.run] if change in OF_LOCKS else [scene.run, scene.other][: 1 if change is swap else 2]
                seen.append((theirs, look(*theirs)))

        with pytest.raises(RunError, match=r"^[^\n]* while the run was going on[^\n]*$"):
            run_quickly(scene.run, seed=OURS, at=at)
        ((theirs, before),) = seen
        assert look(*theirs) == before
    for folder in (scene.run, scene.other, scene.moved):
        if folder.is_dir():
            assert len(seeds_in(folder)) <= 1


@pytest.mark.parametrize("moment", ["before load", "before the checkpoint", "between temporary and check"])
@pytest.mark.parametrize("change", [let_another_run_begin, swap, link_the_parent_elsewhere])
def test_a_system_that_takes_whole_paths_only_looks_before_each_rename(change, moment, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(open_folder, "HAS_DIR_FD", False)
    test_a_run_whose_place_is_taken_changes_nothing_there(change, moment, finished, tmp_path)


@pytest.mark.parametrize(
    "change", [let_another_run_begin, swap, link_the_parent_elsewhere, let_another_run_have_the_lock]
)
def test_events_are_not_written_into_what_stands_there(change, finished, tmp_path):
    pytest.importorskip("tensorboard")
    seen = []
    with ExitStack() as alive:
        scene = Scene(tmp_path, finished, alive)

        def at(now, epoch):
            if (now, epoch) == ("before the events", 2):
                change(scene)
                seen.append(look(scene.run))

        with pytest.raises(RunError, match="while the run was going on"):
            run_quickly(scene.run, seed=OURS, events=True, at=at)
        assert seen == [look(scene.run)]


def test_a_new_run_does_not_go_on_from_a_checkpoint_that_has_appeared(tmp_path):
    """As that of an earlier run, which did not see that its folder had gone."""
    run_quickly(tmp_path / "earlier", seed=THEIRS)

    def at(now, epoch):
        if now == "before load":
            shutil.copy(tmp_path / "earlier/checkpoint.pt", tmp_path / "run/checkpoint.pt")

    for resume in (False, True):
        with pytest.raises(RunError, match=r"checkpoint\.pt has appeared since this run began, and is not its own"):
            run_quickly(tmp_path / "run", seed=OURS, resume=resume, at=at)
        assert seeds_in(tmp_path / "run") == {THEIRS}
        shutil.rmtree(tmp_path / "run")


def test_a_folder_that_comes_back_is_the_same(tmp_path):
    def at(now, epoch):
        if now == "in training":
            (tmp_path / "run").rename(tmp_path / "away")
            (tmp_path / "away").rename(tmp_path / "run")

    run_quickly(tmp_path / "run", seed=OURS, at=at)
    assert seeds_in(tmp_path / "run") == {OURS}
    assert not (tmp_path / "run/.lock").exists()


def test_an_empty_folder_that_another_run_has_made_is_not_removed(tmp_path):
    def at(now, epoch):
        if now == "before load":
            (tmp_path / "run").rename(tmp_path / "away")
            (tmp_path / "run").mkdir()

    with pytest.raises(RunError, match="was replaced while the run was going on"):
        run_quickly(tmp_path / "run", seed=OURS, at=at)
    assert (tmp_path / "run").is_dir()


def test_the_flags_that_may_differ_are_not_in_a_checkpoint(tmp_path):
    from train.run.files import load_tensors

    run_quickly(tmp_path, seed=OURS)
    flags = load_tensors(tmp_path / "checkpoint.pt")["flags"]
    assert flags == {"seed": OURS, "lr": 0.1, "n_epochs": 2}
