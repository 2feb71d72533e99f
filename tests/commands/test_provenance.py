"""The commit that a result comes from."""

import os
import shutil
import subprocess

import pytest

from commands.provenance import git_revision

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit of one file."""
    (tmp_path / "code.py").write_text("1\n")
    someone = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for words in (["init", "-q"], ["add", "."], [*someone, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_changed_files_are_marked(repository):
    revision = git_revision(repository)
    assert revision
    assert len(revision) == 40
    (repository / "code.py").write_text("2\n")
    assert git_revision(repository) == f"{revision}+changes"


def test_folders_inside_and_outside_a_repository_have_no_revision(repository, tmp_path_factory):
    (repository / "inside").mkdir()
    assert git_revision(repository / "inside") is None
    assert git_revision(tmp_path_factory.mktemp("outside")) is None


def test_the_repository_is_not_written(repository):
    os.utime(repository / "code.py", (1, 1))  # git would update the time of change that its index records
    index = (repository / ".git/index").read_bytes()
    git_revision(repository)
    assert (repository / ".git/index").read_bytes() == index
