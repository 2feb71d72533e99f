"""A run that is killed at random moments, over and over, ends in the bits of one that never was.

python -m pytest tests/test_killed.py --kills 100
"""

import os
import random
import signal
import subprocess
import time

import pytest

from tests.application import ROOT, assert_same_run, command

WORDS = ["--dataset=digits", "--depth=10", "--growth_rate=2", "--batch_size=128", "--seed=5", "--drop_rate=0.2"]
LONGEST_WAIT = 1.5  # seconds from the first line to the kill; an epoch takes about half a second


@pytest.fixture
def environment():
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def start(words, environment):
    return subprocess.Popen(command(*words), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def kill_at_random(words, environment, moment):
    """Kill a run a random time after its first line; returns whether it was still alive."""
    process = start(words, environment)
    process.stdout.readline()
    time.sleep(moment.uniform(0, LONGEST_WAIT))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_killed_run_ends_in_the_same_bits(tmp_path, environment, request):
    kills = request.config.getoption("--kills")
    moment = random.Random(kills)
    words = [*WORDS, f"--n_epochs={4 * kills}"]
    undisturbed = start([*words, f"--save={tmp_path / 'undisturbed'}"], environment)
    killed = [*words, f"--save={tmp_path / 'killed'}", "--resume=True"]
    hits = sum(kill_at_random(killed, environment, moment) for _ in range(kills))
    assert hits == kills
    assert subprocess.run(command(*killed), cwd=ROOT, env=environment, capture_output=True).returncode == 0
    undisturbed.communicate()
    assert undisturbed.returncode == 0
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")
    assert (tmp_path / "killed/curves.png").read_bytes() == (tmp_path / "undisturbed/curves.png").read_bytes()
    assert names(tmp_path / "killed") == names(tmp_path / "undisturbed")
