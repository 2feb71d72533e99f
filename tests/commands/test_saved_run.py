"""A run read back from config.json and model.pt, whoever wrote them."""

import json
import re
from pathlib import Path

import pytest
import torch

from commands.saved_run import read_saved_run
from tests.support.run_preparations import put
from train.errors import UserError
from train.run.files import DamagedFile, serialize

CONFIG = {
    "flags": {
        "save": "runs/a",
        "data": None,
        "dataset": "digits",
        "depth": 16,
        "growth_rate": 3,
        "lr": 0.05,
        "seed": 7,
    },
    "parameters": 1234,
    "classes": ["cat", "dög", ""],
    "mean": [0.5, 0, 1],
    "std": [0.25, 1, 0.5],
    "device": "CPU, 1 thread",
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "git_revision": "0123abc",
}


def put_config(folder: Path, content: object) -> Path:
    """Put something in the place of config.json: what `put` takes, or what is written as JSON."""
    put(folder / "config.json", content if isinstance(content, str | bytes) else json.dumps(content))
    return folder


def test_values_are_typed_and_missing_flags_have_their_defaults(tmp_path):
    run = read_saved_run(put_config(tmp_path, CONFIG))
    assert run.path == tmp_path
    assert (run.settings.depth, run.settings.growth_rate, run.settings.lr, run.settings.seed) == (16, 3, 0.05, 7)
    assert run.settings.save == tmp_path  # wherever it was when the run began
    assert (run.settings.n_epochs, run.settings.efficient) == (300, True)
    assert run.classes == ("cat", "dög", "")
    assert (run.mean, run.std) == ((0.5, 0.0, 1.0), (0.25, 1.0, 0.5))
    assert {type(number) for number in run.mean + run.std} == {float}
    assert (run.versions, run.git_revision) == (CONFIG["versions"], "0123abc")


def test_a_required_flag_may_be_missing(tmp_path):
    assert read_saved_run(put_config(tmp_path, CONFIG | {"flags": {}})).settings.save == tmp_path


def test_the_origin_is_plain_and_names_no_folder(tmp_path):
    origin = read_saved_run(put_config(tmp_path, CONFIG)).origin()
    assert json.loads(json.dumps(origin)) == origin
    assert origin["flags"]["depth"] == 16
    assert {"save", "data", "resume", "debug"} & origin["flags"].keys() == set()


def flags(**others) -> dict:
    return CONFIG | {"flags": CONFIG["flags"] | others}


def without(name: str) -> dict:
    return {key: value for key, value in CONFIG.items() if key != name}


REFUSED = {
    "a folder": ("folder", "config.json cannot be read: it is not a file"),
    "a pipe": ("pipe", "config.json cannot be read: it is not a file"),
    "a terabyte": ("terabyte", "config.json cannot be read: "),
    "empty": (b"", "config.json cannot be read: "),
    "no text": (b"\xff\xfe\x00", "config.json cannot be read: "),
    "deep": (b"[" * 100_000, "config.json cannot be read: "),
    "long": (b'{"flags": {"depth": 1' + b"0" * 5000 + b"}}", "config.json cannot be read: "),
    "cut off": (json.dumps(CONFIG).encode()[:-1], "config.json cannot be read: "),
    "a list": ([CONFIG], "config.json cannot be read: "),
    "no flags": (without("flags"), "config.json cannot be read: it should hold the flags of the run"),
    "a list of flags": (CONFIG | {"flags": [["depth", 10]]}, "config.json cannot be read: "),
    "unknown flag": (flags(deph=10), "config.json cannot be used: unknown flag 'deph'; did you mean --depth?"),
    "not a flag": (flags(**{"return": None}), "config.json cannot be used: unknown flag 'return'"),
    "a flag of two lines": (flags(**{"a\nb" * 99: 1}), r"cannot be used: unknown flag 'a\nb"),
    "a wrong depth": (flags(depth=43), "--depth is '43', but must be a whole number, 6m"),
    "a huge depth": (flags(depth=10**999), "--depth is '1000"),
    "a fraction": (flags(depth=16.0), "--depth is '16.0'"),
    "a bool as number": (flags(growth_rate=True), "--growth_rate is 'True'"),
    "nothing as number": (flags(depth=None), "--depth is 'None'"),
    "a nested value": (flags(depth=[[[16]]]), "its flag 'depth' should be text, a number, true, false or null"),
    "a nested path": (flags(data=["folder"]), "its flag 'data' should be text, a number, true, false or null"),
    "NaN": (flags(lr=float("nan")), "--lr is 'nan'"),
    "no classes": (without("classes"), "classes is None, but must be a list of one or more texts"),
    "empty classes": (CONFIG | {"classes": []}, "classes is [], but must be a list of one or more texts"),
    "classes as text": (CONFIG | {"classes": "abc"}, "classes is 'abc', but must be a list"),
    "classes as numbers": (CONFIG | {"classes": [*range(9)]}, "classes is [0, 1, 2, 3, 4, 5, ...], but must be a list"),
    "no mean": (without("mean"), "mean is None, but must be 3 numbers from 0 to 1"),
    "two means": (CONFIG | {"mean": [0.5, 0.5]}, "mean is [0.5, 0.5], but must be 3 numbers from 0 to 1"),
    "mean of 0 to 255": (CONFIG | {"mean": [125, 123, 114]}, "mean is [125, 123, 114], but must be"),
    "mean of texts": (CONFIG | {"mean": ["0"] * 3}, "mean is ['0', '0', '0'], but must be"),
    "mean of bools": (CONFIG | {"mean": [True] * 3}, "mean is [True, True, True], but must be"),
    "infinite mean": (CONFIG | {"mean": [0, 0, float("inf")]}, "mean is [0, 0, inf], but must be"),
    "mean that is none": (CONFIG | {"mean": [float("nan")] * 3}, "mean is [nan, nan, nan], but must be"),
    "huge mean": (CONFIG | {"mean": [10**400, 0, 0]}, "mean is [1000"),
    "std of 0": (CONFIG | {"std": [0.2, 0.2, 0]}, "std is [0.2, 0.2, 0], but must be 3 numbers from 1e-06 to 1"),
    "std as dict": (CONFIG | {"std": {"r": 1}}, "std is {'r': 1}, but must be"),
    "no versions": (without("versions"), "versions is None, but must be texts by name"),
    "versions as numbers": (CONFIG | {"versions": {"torch": 2.14}}, "versions is {'torch': 2.14}, but must be"),
    "revision as number": (CONFIG | {"git_revision": 7}, "git_revision is 7, but must be a text or nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_is_not_a_runs_is_refused_in_one_short_line(case, tmp_path):
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        read_saved_run(put_config(tmp_path, content))
    assert str(refusal.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 2000


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in {
        "nowhere": "nowhere does not exist",
        "file": "file', but must be a folder, not a file",
        "file/more": "file/more does not exist",
        "loop": "loop does not exist",
        "": "holds no run: it has no config.json",
        "x" * 300: "cannot be read: File name too long",
    }.items():
        with pytest.raises(UserError, match=message):
            read_saved_run(tmp_path / name)


def test_a_folder_of_runs_names_one_of_them(tmp_path):
    for seed in (1, 2):
        put_config(tmp_path / f"seed-{seed}", CONFIG)
    with pytest.raises(UserError, match=f"holds no run: .*; there are runs in it, such as --save {tmp_path}/seed-1$"):
        read_saved_run(tmp_path)


def test_a_run_that_was_stopped_in_its_first_epoch_has_no_weights_yet(tmp_path):
    run = read_saved_run(put_config(tmp_path, CONFIG))
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(UserError, match="has no chosen weights yet: it has not finished an epoch"):
        run.weights()


def test_weights_are_read_only_when_they_are_asked_for(tmp_path):
    run = read_saved_run(put_config(tmp_path, CONFIG))
    with pytest.raises(UserError, match=r"model.pt cannot be read: No such file"):
        run.weights()
    (tmp_path / "model.pt").write_bytes(b"mine")
    with pytest.raises(DamagedFile, match=r"model.pt is damaged"):
        run.weights()
    (tmp_path / "model.pt").write_bytes(serialize({"weight": torch.ones(2)}))
    assert torch.equal(run.weights()["weight"], torch.ones(2))
