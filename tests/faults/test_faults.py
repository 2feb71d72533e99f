"""A run that meets faults ends in the bits of one that met none; tests/faults/__main__.py does the same at length."""

import itertools
import os
import re

import pytest

from tests.faults import __main__ as faults
from tests.faults.failing_system import ERRORS, failing
from tests.support.application import run_here
from train.run.config import FILES

EPOCHS = 2
# Bytes or calls, in each file of the first epoch and in the second one.
MOMENTS = {"full": (30_000, 65_000, 110_000), "quota": (200_000,), "fsync": (1, 4, 12), "open": (1, 8)}
WRITE_FAULTS = [(what, moment) for what, moments in MOMENTS.items() for moment in moments]


def words(save):
    return [*faults.WORDS, f"--n_epochs={EPOCHS}", f"--save={save}", "--resume=True"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    save = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_here(*words(save)) == 0
    return save


def test_a_run_that_meets_faults_ends_in_the_same_bits(tmp_path, request):
    rounds = request.config.getoption("--rounds")
    lines = []
    kinds = faults.meet_faults(tmp_path, rounds=rounds, seed=rounds, report=lines.append)
    assert kinds.total() == len(lines) == rounds


def test_all_kinds_of_write_faults_are_tried():
    assert set(MOMENTS) == set(ERRORS)


@pytest.mark.parametrize(("what", "moment"), WRITE_FAULTS)
def test_a_write_that_fails_is_one_line_and_the_run_goes_on(what, moment, undisturbed, tmp_path, capsys):
    save = tmp_path / "run"
    with failing(f"{what}:{moment}"):
        assert run_here(*words(save)) == 1
    finished = capsys.readouterr()
    reason = os.strerror(ERRORS[what])
    assert re.fullmatch(rf"demo\.py: error: cannot write {save}/[\w.]+: {reason}; .*\n", finished.err)
    num_lines = len(re.findall("^epoch ", finished.out, re.MULTILINE))
    assert faults.check_files(save) - num_lines in (0, 1)
    assert {path.name for path in save.glob("*")} <= set(FILES)
    assert run_here(*words(save)) == 0
    assert capsys.readouterr().err == ""
    faults.compare(save, undisturbed)


def test_a_disk_that_stays_full_changes_nothing_however_often_it_is_tried(undisturbed, tmp_path, capsys):
    save = tmp_path / "run"
    with failing("full:250000"):
        assert run_here(*words(save)) == 1
        before = {path.name: path.read_bytes() for path in save.iterdir()}
        for _ in range(2):
            assert run_here(*words(save)) == 1
            assert {path.name: path.read_bytes() for path in save.iterdir()} == before
    assert capsys.readouterr().err.count("\n") == 3
    assert run_here(*words(save)) == 0
    faults.compare(save, undisturbed)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.pt", "results.csv", "curves.png", "config.json"])
def test_a_file_that_is_not_whole_is_a_violation(name, undisturbed, tmp_path):
    save = tmp_path / "run"
    save.mkdir()
    for path in undisturbed.iterdir():
        content = path.read_bytes()
        (save / path.name).write_bytes(content[: len(content) // 2] if path.name == name else content)
    with pytest.raises(faults.Violation, match=re.escape(name)):
        faults.check_files(save)


def test_other_bits_are_a_violation(undisturbed, tmp_path):
    other = tmp_path / "other"
    assert run_here(*[word.replace("--seed=5", "--seed=6") for word in words(other)]) == 0
    with pytest.raises(faults.Violation, match="the results or the weights"):
        faults.compare(other, undisturbed)


def test_a_violation_is_one_message_and_leaves_the_folder(monkeypatch, tmp_path, capsys):
    def meet_faults(folder, **arguments):
        raise faults.Violation("something is wrong")

    monkeypatch.setattr(faults, "meet_faults", meet_faults)
    monkeypatch.setattr(faults.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    assert faults.main(["--rounds=1"]) == 1
    assert capsys.readouterr().err == f"violation: something is wrong\nboth runs are left in {tmp_path}\n"
    assert tmp_path.exists()


def test_the_long_version_has_a_hundred_kills_and_more_than_twenty_requests_to_stop():
    kinds = list(itertools.islice(itertools.cycle(faults.DECK), 150))
    assert kinds.count("SIGKILL") + kinds.count("SIGKILL at a rename") >= 100
    assert kinds.count("SIGTERM") >= 20
    assert set(kinds[:6]) == set(faults.ROUNDS)
