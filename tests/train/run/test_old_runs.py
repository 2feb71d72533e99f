"""Runs that version 0 of the program began, and that were stopped after two of four epochs, go on to the same end.

Each folder in tests/old_runs is what such a run left, without its plot. Beside it lies results.csv of the same run
where nothing disturbed it. The feature buffer rounds otherwise since version 1.1: the end is the same up to rounding.
"""

import json
import shutil

import pytest

from tests.support.application import ROOT, TIMING, read_csv, read_results, run_here
from train.run.files import load_tensors

OLD_RUNS = ROOT / "tests/old_runs"
CHANGED_BY_RESUMING = {"save", "resume"}
OF_THE_PROGRAM = {"version", "versions", "git_revision", "device"}
# Flags of later versions, and which of them decide the results.
DECIDING = {"mixup", "cutmix", "trivial_augment", "erasing", "cutout", "crop_border"}
ADDED = {"cuda_graph", "deterministic"} | DECIDING


@pytest.fixture(scope="module", params=["plain", "dropout"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def resumed(name, tmp_path_factory):
    """A copy of an old run after this program has finished it."""
    folder = shutil.copytree(OLD_RUNS / name, tmp_path_factory.mktemp("resumed") / name)
    assert run_here(f"--save={folder}", "--resume") == 0
    return folder


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_an_old_run_ends_as_if_it_had_never_stopped(name, resumed):
    finished = read_csv(OLD_RUNS / f"{name}.finished.csv")
    expected = [{column: row[column] for column in row if column not in TIMING} for row in finished]
    rows = read_results(resumed, timing=False)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, one_expected in zip(rows, expected, strict=True):
        for column, cell in row.items():
            # Another seed, rate or order of images changes a loss by far more. Of 140 images three may be classified
            # otherwise because of rounding.
            tolerance = {"abs": 3 / 140} if column.endswith("error") else {"rel": 1e-4}
            assert bool(cell) == bool(one_expected[column])
            assert float(cell or 0) == pytest.approx(float(one_expected[column] or 0), **tolerance)


def test_the_configuration_of_an_old_run_keeps_keys_order_and_values(name, resumed):
    old, new = config_of(OLD_RUNS / name), config_of(resumed)
    assert [key for key in new if key != "version"] == list(old)
    assert [flag for flag in new["flags"] if flag not in ADDED] == list(old["flags"])
    for key in set(old) - OF_THE_PROGRAM - {"flags"}:
        assert new[key] == old[key]
    for flag in set(old["flags"]) - CHANGED_BY_RESUMING:
        assert new["flags"][flag] == old["flags"][flag]
    assert (new["flags"]["save"], new["flags"]["resume"]) == (str(resumed), True)
    assert (resumed / "config.json").read_text() == json.dumps(new, indent=2) + "\n"


FREE_FLAGS = {"save", "data", "download", "resume", "efficient", "compile", "threads", "tensorboard", "debug"}


def test_a_new_checkpoint_names_what_an_old_one_names(name, resumed):
    old, new = (load_tensors(folder / "checkpoint.pt") for folder in (OLD_RUNS / name, resumed))
    assert list(new) == list(old) == ["format", "rows", "network", "optimizer", "chosen", "scaler", "flags"]
    assert new["format"] == old["format"]
    for part in ("network", "chosen", "optimizer", "scaler"):
        assert list(new[part]) == list(old[part])
    assert [list(row) for row in new["rows"][:2]] == [list(row) for row in old["rows"]]
    assert new["rows"][:2] == old["rows"]
    assert [(flag, value) for flag, value in new["flags"].items() if flag not in DECIDING] == [*old["flags"].items()]
    assert set(config_of(resumed)["flags"]) - set(new["flags"]) == (FREE_FLAGS | ADDED) - DECIDING
