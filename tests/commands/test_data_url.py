"""--data_url: files of a data set from another server than its own."""

import shutil

import pytest

from tests.support.application import assert_refused, run_here
from tests.support.dataset_files import ARCHIVE
from tests.support.synthetic_datasets import cifar10

FOLDER = "https://mirror.example/cifar"
TRAIN = ["--depth=10", "--growth_rate=2", "--n_epochs=1", "--valid_size=6", "--batch_size=16", "--limit_batches=1"]


def test_all_commands_that_download_ask_the_mirror_first(tmp_path, server, monkeypatch):
    synthetic = cifar10(50, 20, 0)
    synthetic.trust(monkeypatch)
    server.contents = {f"{FOLDER}/{ARCHIVE}": synthetic.archive}
    data, save = tmp_path / "data", tmp_path / "run"
    for words in (
        ["check", f"--data={data}", f"--data_url={FOLDER}/"],
        [*TRAIN, f"--data={data}", f"--save={save}", f"--data_url={FOLDER}"],
        ["evaluate", f"--save={save}", "--batch_size=16"],  # from where the run has its data
        ["check", f"--data={data}", "--data_url=https://other.example,https://mirror.example/cifar"],
    ):
        server.asked.clear()
        assert run_here(*words) == 0
        assert server.asked == ["https://other.example/" + ARCHIVE] * ("other" in words[-1]) + [f"{FOLDER}/{ARCHIVE}"]
        shutil.rmtree(data)


@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_it_is_refused_where_nothing_is_downloaded(dataset, tmp_path, capsys):
    words = ["check", f"--dataset={dataset}", f"--data={tmp_path}", f"--data_url={FOLDER}"]
    message = f"--data_url is {FOLDER}, but nothing of --dataset {dataset} is downloaded; leave the flag out"
    assert_refused(*words, message=message, folder=tmp_path, capture=capsys)
