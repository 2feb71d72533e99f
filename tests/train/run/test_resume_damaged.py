"""Damaged files of a run: it goes on from the checkpoint before, or one line says why it cannot."""

import re

import pytest
import torch

from tests.support.application import assert_same_run, everything_in, run_here


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", b"", "config.json cannot be read"),
        ("config.json", b"[1]", "config.json cannot be read"),
        ("config.json", b'{"flags": {"deph": 10}}', "config.json cannot be used: unknown flag 'deph'"),
        ("config.json", b'{"flags": {}}', "config.json names no seed"),
        ("config.json", None, "but no config.json, so it cannot be continued"),
    ],
)
def test_damaged_files_are_one_clear_line_and_stay_as_they_are(name, damage, message, long_copy, capsys):
    (long_copy / name).unlink() if damage is None else (long_copy / name).write_bytes(damage)
    before = everything_in(long_copy)
    assert run_here(f"--save={long_copy}", "--resume") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert everything_in(long_copy) == before


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"no archive",
    "truncated": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 4]) + content[5001:],
    "missing": None,
}


def damage(path, name):
    path.unlink() if DAMAGES[name] is None else path.write_bytes(DAMAGES[name](path.read_bytes()))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_whose_checkpoint_is_damaged_goes_on_from_the_one_before(name, long_copy, long_run, capsys):
    damage(long_copy / "checkpoint.pt", name)
    found = (long_copy / "checkpoint.pt").read_bytes() if name != "missing" else None
    assert run_here(f"--save={long_copy}", "--resume") == 0
    warning, *others = capsys.readouterr().err.splitlines()
    assert others == []
    pattern = r"warning: .*checkpoint\.pt is (damaged|missing).*; going on from checkpoint\.previous\.pt"
    assert re.match(pattern, warning)
    assert (found is None) == ("it stays as checkpoint.damaged.pt" not in warning)
    assert found is None or (long_copy / "checkpoint.damaged.pt").read_bytes() == found
    assert_same_run(long_copy, long_run)
    assert run_here(f"--save={long_copy}", "--resume") == 0
    assert capsys.readouterr().err == ""


def test_two_damaged_checkpoints_are_one_line_that_names_both(long_copy, capsys):
    damage(long_copy / "checkpoint.pt", "one bit")
    damage(long_copy / "checkpoint.previous.pt", "truncated")
    before = everything_in(long_copy)
    assert run_here(f"--save={long_copy}", "--resume") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"checkpoint\.pt is damaged.*; and .*checkpoint\.previous\.pt is damaged", error)
    assert everything_in(long_copy) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 5}, "checkpoint.pt is of a newer version of this program (format 5; this one reads 4)"),
        ({"network": {"weight": torch.ones(1)}}, "is of another network than its config.json says"),
        ({"chosen": {}}, "is of another network than its config.json says"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "is of another optimizer"),
        (lambda content: content["optimizer"]["state"].clear(), "its buffers are not those of momentum"),
        (
            lambda content: content["optimizer"]["state"][0].update(momentum_buffer=torch.ones(1)),
            "its buffers are not those of momentum",
        ),
    ],
)
def test_a_whole_checkpoint_of_something_else_is_refused(change, message, long_copy, capsys):
    content = torch.load(long_copy / "checkpoint.pt", weights_only=True)
    content["rows"] = content["rows"][:1]  # of a run that is to go on
    content = content | change if isinstance(change, dict) else change(content) or content
    torch.save(content, long_copy / "checkpoint.pt")
    before = (long_copy / "checkpoint.pt").read_bytes(), (long_copy / "checkpoint.previous.pt").read_bytes()
    assert run_here(f"--save={long_copy}", "--resume") == 2
    assert message in capsys.readouterr().err
    assert before == ((long_copy / "checkpoint.pt").read_bytes(), (long_copy / "checkpoint.previous.pt").read_bytes())
