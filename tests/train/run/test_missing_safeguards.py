"""File systems that lack something: a run says once what is not protected, and goes on; real faults still end it."""

import errno
import fcntl
import os
import re
import stat

import pytest

from tests.support.application import SMALL, run_here
from tests.support.untrained_run import run_quickly, seeds_in
from train.errors import RunError, UserError
from train.run import acquire
from train.run.config import FILES

NO_SUCH_CALL = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
UNLOCKED = "cannot be locked: a second run in this folder would not be noticed"
UNSYNCED = "files are not synced, so that a power cut may damage the last ones"
UNSYNCED_NAMES = "the names of files are not synced, so that a power cut may bring back older files"
UNKNOWN = "a folder that takes this one's place while the program writes would not be noticed"


class System:
    """Lets calls fail as on a system that does not have them."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def refuse(self, number, call, *, module=os, if_=lambda *arguments, **keywords: True):
        """Let a call fail with an error, where its arguments ask for it."""
        real = getattr(module, call)

        def refused(*arguments, **keywords):
            if if_(*arguments, **keywords):
                raise OSError(number, os.strerror(number))
            return real(*arguments, **keywords)

        self.monkeypatch.setattr(module, call, refused)

    def without_locks(self, number):
        self.refuse(number, "flock", module=fcntl)

    def without_fcntl(self, number):
        """As on a Python that was built without that module."""

        def unavailable(descriptor, *, blocking):
            raise OSError(errno.ENOSYS, "fcntl is unavailable")

        self.monkeypatch.setattr(acquire, "lock_descriptor", unavailable)

    def without_lock_files(self, number):
        self.refuse(number, "open", if_=lambda path, *_, **__: path == ".lock")

    def without_sync_of_files(self, number):
        self.refuse(number, "fsync", if_=lambda descriptor: not is_folder(descriptor))

    def without_sync_of_folders(self, number):
        self.refuse(number, "fsync", if_=is_folder)

    def without_open_folders(self, number):
        self.refuse(number, "open", if_=lambda path, flags, *_, **__: flags & os.O_DIRECTORY)

    def without_unlink(self, number):
        self.refuse(number, "unlink")

    def without_rmdir(self, number):
        self.refuse(number, "rmdir")

    def without_truncation(self, number):
        self.refuse(number, "ftruncate")

    def without_writes_to_the_lock(self, number):
        self.refuse(number, "write")

    def without_status(self, number):
        self.refuse(number, "fstat")

    def without_lasting_numbers(self, number):
        """Each look at an open file gives another number."""
        real, numbers = os.fstat, iter(range(10**9, 2 * 10**9))

        def fstat(descriptor):
            values = list(real(descriptor))
            values[stat.ST_INO] = next(numbers)
            return os.stat_result(values)

        self.monkeypatch.setattr(os, "fstat", fstat)

    def without_lists(self, number):
        self.refuse(number, "listdir")
        self.refuse(number, "scandir")

    def without_all(self, number):
        for name in ("locks", "sync_of_files", "sync_of_folders", "truncation", "unlink", "rmdir"):
            getattr(self, f"without_{name}")(number)


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.fixture
def system(monkeypatch):
    return System(monkeypatch)


NOT_OFFERED = {
    "locks": ((*NO_SUCH_CALL, errno.ENOLCK, errno.EBADF), [UNLOCKED]),
    "fcntl": ((0,), [UNLOCKED]),
    "lock_files": ((errno.ENOSYS,), [UNLOCKED]),
    "sync_of_files": ((errno.EINVAL, errno.ENOSYS), [UNSYNCED]),
    "sync_of_folders": ((errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES), [UNSYNCED_NAMES]),
    "open_folders": ((errno.EACCES, errno.EPERM, errno.EISDIR), [UNSYNCED_NAMES]),
    "unlink": (
        (errno.EPERM, errno.EACCES),
        [r"results\.csv cannot be removed", r"\.lock cannot be removed"],
    ),
    "rmdir": ((errno.EPERM,), []),
    "truncation": ((errno.EINVAL, errno.EBADF), []),
    "writes_to_the_lock": ((errno.EBADF,), []),
    "status": ((errno.ENOSYS,), [UNKNOWN]),
    "lasting_numbers": ((0,), [UNKNOWN]),
    "lists": ((errno.EACCES,), ["cannot be listed: what a killed run has left of its files stays"]),
}
CASES = [(name, number) for name, (numbers, _) in NOT_OFFERED.items() for number in numbers]


@pytest.mark.parametrize(("name", "number"), CASES, ids=[f"{name}-{errno.errorcode.get(n, n)}" for name, n in CASES])
def test_a_run_goes_on_and_says_once_what_is_not_protected(name, number, system, tmp_path, capsys):
    folder = tmp_path / "run"
    getattr(system, f"without_{name}")(number)
    run_quickly(folder, seed=1)
    run_quickly(folder, seed=1, resume=True)
    system.monkeypatch.undo()
    warnings, expected = capsys.readouterr().err.splitlines(), NOT_OFFERED[name][1]
    assert len(warnings) == len(expected)
    for warning, pattern in zip(warnings, expected, strict=True):
        assert re.fullmatch(rf"warning: .*{pattern}.* \(.+\)", warning)
    assert {path.name for path in folder.iterdir()} - {".lock"} == {*FILES}
    assert seeds_in(folder) == {1}


WORDS = [*SMALL, "--n_epochs=1", "--limit_batches=1"]


@pytest.mark.parametrize(("name", "number"), [("locks", errno.ENOSYS), ("fcntl", 0), ("all", errno.EOPNOTSUPP)])
def test_the_program_trains_on_such_a_system(name, number, system, tmp_path, capsys):
    getattr(system, f"without_{name}")(number)
    assert run_here(*WORDS, f"--save={tmp_path}") == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (5 if name == "all" else 1)
    assert re.fullmatch(rf"warning: {tmp_path} {UNLOCKED} \(\D+\)", warnings[0])
    assert {path.name for path in tmp_path.iterdir()} >= {*FILES} - {"checkpoint.previous.pt"}


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_a_lock_that_somebody_else_holds_is_refused(number, system, tmp_path, capsys):
    system.without_locks(number)
    assert run_here(*WORDS, f"--save={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"demo\.py: error: --save \S+ is in use by another process; wait for it, or .*\n", error)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["locks", "lock_files", "open_folders", "writes_to_the_lock"])
def test_a_broken_system_is_refused_before_any_work(name, number, system, tmp_path):
    getattr(system, f"without_{name}")(number)
    with pytest.raises(UserError, match=f"^--save .* cannot be written: {os.strerror(number)}$"):
        run_quickly(tmp_path / "run", seed=1)
    assert [path.name for path in tmp_path.glob("run/*")] in ([], [".lock"])


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["sync_of_files", "sync_of_folders"])
def test_a_disk_that_fails_ends_the_run(name, number, system, tmp_path):
    getattr(system, f"without_{name}")(number)
    with pytest.raises(RunError, match=f"^cannot write .*config.json: {os.strerror(number)}; what is there is whole$"):
        run_quickly(tmp_path / "run", seed=1)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EXDEV])
def test_without_renames_there_is_no_run(number, system, tmp_path):
    system.refuse(number, "replace")
    with pytest.raises(RunError, match=f"^cannot write .*config.json: {os.strerror(number)}; what is there is whole$"):
        run_quickly(tmp_path / "run", seed=1)
    assert not (tmp_path / "run").exists()


def test_without_locks_a_later_run_takes_the_folder_over_and_the_earlier_one_notices(system, tmp_path):
    system.without_locks(errno.ENOSYS)

    def at(moment, epoch):
        if (moment, epoch) == ("in training", 2):
            run_quickly(tmp_path, seed=1, resume=True, at=look)

    def look(moment, epoch):
        if moment == "at the end":
            seen.append((tmp_path / "checkpoint.pt").read_bytes())

    seen = []
    with pytest.raises(RunError, match=r"\.lock was removed or replaced while the run was going on"):
        run_quickly(tmp_path, seed=1, at=at)
    assert seen == [(tmp_path / "checkpoint.pt").read_bytes()]


def test_a_lock_file_that_another_user_has_left_can_be_locked(system, tmp_path):
    """It may be read only, which as root only a system can say."""
    (tmp_path / ".lock").write_text("process 1 on another machine\n")
    writable = os.O_RDWR | os.O_CREAT
    system.refuse(errno.EACCES, "open", if_=lambda path, flags, *_, **__: path == ".lock" and flags & writable)
    held = []

    def at(moment, epoch):
        if moment == "in training":
            with pytest.raises(UserError, match="is in use by process 1 on another machine; wait"):
                run_quickly(tmp_path, seed=2)
            held.append(epoch)

    run_quickly(tmp_path, seed=1, at=at)
    assert held == [1, 2]


def test_a_folder_that_may_not_be_written_is_not_taken_for_one_without_locks(system, tmp_path):
    system.without_lock_files(errno.EACCES)
    with pytest.raises(UserError, match=f"--save {tmp_path} cannot be written: Permission denied"):
        run_quickly(tmp_path, seed=1)


def test_only_the_first_line_of_a_lock_file_names_its_owner(system, tmp_path):
    """The rest may be of an earlier one, where files cannot be cut."""
    (tmp_path / ".lock").write_text("process 1234567890123 on a machine with a name that is much longer\n" * 3)
    system.without_truncation(errno.ENOSYS)

    def at(moment, epoch):
        if moment == "in training":
            message = f"in use by process {os.getpid()} on {os.uname().nodename}; wait"
            with pytest.raises(UserError, match=message):
                run_quickly(tmp_path, seed=2)

    run_quickly(tmp_path, seed=1, at=at)
