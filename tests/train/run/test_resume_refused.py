"""A command line that would overwrite a run, or turn it into another one, is refused and changes nothing."""

import json

import pytest

from tests.support.application import SMALL, everything_in, read_results, run_here
from train.run.config import FILES


def test_second_run_without_resume_is_refused_and_changes_nothing(long_copy, capsys):
    before = everything_in(long_copy)
    assert run_here(*SMALL, f"--save={long_copy}") == 2
    message = capsys.readouterr().err
    assert f"--save {long_copy} already holds a run (" in message
    assert "continue it with --resume True, or choose another folder" in message
    assert everything_in(long_copy) == before


@pytest.mark.parametrize("name", FILES)
def test_any_file_of_a_run_protects_its_folder(name, long_copy):
    for other in FILES:
        if other != name:
            (long_copy / other).unlink()
    before = everything_in(long_copy)
    assert run_here(*SMALL, f"--save={long_copy}") == 2
    assert everything_in(long_copy) == before


def test_other_files_in_the_folder_are_nobodys_business(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert run_here(*SMALL, "--n_epochs=1", f"--save={tmp_path}") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--depth=16", "--depth is 16, but the run in {} has 10"),
        ("--growth_rate=3", "--growth_rate is 3, but the run in {} has 2"),
        ("--dataset=svhn", "--dataset is 'svhn', but the run in {} has 'digits'"),
        ("--seed=4", "--seed is 4, but the run in {} has 3"),
        ("--batch_size=64", "--batch_size is 64, but the run in {} has 128"),
        ("--lr=0.2", "--lr is 0.2, but the run in {} has 0.1"),
        ("--wd=0", "--wd is 0.0, but the run in {} has 0.0001"),
        ("--momentum=0", "--momentum is 0.0, but the run in {} has 0.9"),
        ("--drop_rate=0", "--drop_rate is 0.0, but the run in {} has 0.2"),
        ("--augment=False", "--augment is False, but the run in {} has True"),
        ("--valid_size=0", "--valid_size is 0, but the run in {} has 140"),
        ("--n_epochs=3", "--n_epochs is 3, but the run in {} has 4; it may only grow"),
    ],
)
def test_a_flag_that_changes_the_run_is_refused_with_both_values(word, message, long_copy, capsys):
    before = everything_in(long_copy)
    assert run_here(f"--save={long_copy}", "--resume", word) == 2
    assert message.format(long_copy) in capsys.readouterr().err
    assert everything_in(long_copy) == before


@pytest.mark.parametrize("flag", ["limit_batches", "init_weights", "recipe"])
def test_none_is_a_value_where_it_does_not_let_the_program_choose(flag, long_copy, capsys):
    path = long_copy / "config.json"
    config = json.loads(path.read_text())
    value = {"limit_batches": 3, "init_weights": "/w.pt", "recipe": "densenet-40-12-c10+"}[flag]
    config["flags"][flag] = value
    path.write_text(json.dumps(config))
    before = everything_in(long_copy)
    assert run_here(f"--save={long_copy}", "--resume", f"--{flag}=None", "--n_epochs=5") == 2
    assert f"--{flag} is None, but the run in {long_copy} has {value!r}" in capsys.readouterr().err
    assert everything_in(long_copy) == before


NEWER_FLAGS = ["network", "image_size", "recipe", "init_weights", "accum_steps", "lr_schedule", "warmup_epochs"]
NEWER_FLAGS += ["precision", "label_smoothing", "compile", "sync_bn", "limit_batches", "tensorboard"]


@pytest.fixture
def older(long_copy):
    """The same, as the first version of this program recorded it."""
    config = json.loads((long_copy / "config.json").read_text())
    for flag in NEWER_FLAGS:
        del config["flags"][flag]
    (long_copy / "config.json").write_text(json.dumps(config))
    return long_copy


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--precision=fp16", "--precision is 'fp16', but the run in {} has 'fp32'"),
        ("--accum_steps=2", "--accum_steps is 2, but the run in {} has 1"),
        ("--limit_batches=1", "--limit_batches is 1, but the run in {} has None"),
        ("--init_weights=weights.pt", "weights.pt', but the run in {} has None"),
        ("--recipe=densenet-40-12-c10+", "--recipe is 'densenet-40-12-c10+', but the run in {} has None"),
    ],
)
def test_what_an_older_run_did_not_record_was_as_by_default(word, message, older, capsys):
    before = everything_in(older)
    assert run_here(f"--save={older}", "--resume", "--n_epochs=5", word) == 2
    assert message.format(older) in capsys.readouterr().err
    assert everything_in(older) == before


def test_an_older_run_goes_on(older, long_copy):
    assert run_here(f"--save={older}", "--resume", "--n_epochs=5", "--accum_steps=1", "--seed=None") == 0
    assert [row["epoch"] for row in read_results(older)] == ["1", "2", "3", "4", "5"]


def test_another_network_is_not_taken_for_one_of_another_depth(long_copy, capsys):
    assert run_here(f"--save={long_copy}", "--resume", "--network=densenet121") == 2
    assert "--depth" not in capsys.readouterr().err
