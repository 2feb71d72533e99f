"""The main job from the command line, on each data set in its exact layout on disk."""

import json

import pytest
import torch

from models import STRATEGIES, densenet_bc
from tests.support.application import assert_same_run, read_results, run_here
from tests.support.synthetic_datasets import Server, make_cifar10, make_cifar100, make_svhn

NETWORK = ["--depth=10", "--growth_rate=4", "--batch_size=32", "--seed=1", "--download=False"]
MAKERS = {"cifar10": make_cifar10, "cifar100": make_cifar100, "svhn": make_svhn}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A server that sends nothing, and tells what it was asked for."""
    server = Server(monkeypatch)
    yield server
    assert server.asked == []


@pytest.mark.parametrize(
    ("dataset", "num_classes", "num_train"), [("cifar10", 10, 400), ("cifar100", 100, 800), ("svhn", 10, 400)]
)
def test_a_run_learns_and_leaves_what_was_promised(dataset, num_classes, num_train, tmp_path, monkeypatch, capsys):
    made = MAKERS[dataset](tmp_path / "data", num_train, 2 * num_classes, monkeypatch=monkeypatch)
    save = tmp_path / "save"
    words = [f"--data={tmp_path / 'data'}", f"--save={save}", "--n_epochs=10", f"--valid_size={num_classes}"]
    assert run_here(*NETWORK, f"--dataset={dataset}", *words) == 0

    rows = read_results(save)
    assert [int(row["epoch"]) for row in rows] == [*range(1, 11)]
    assert 1 - float(rows[-1]["test_error"]) >= 3 / num_classes  # three times better than chance
    config = json.loads((save / "config.json").read_text())
    assert config["classes"] == list(made.classes)
    assert config["flags"]["augment"] is (dataset != "svhn")
    network = densenet_bc(10, 4, num_classes=num_classes)
    network.load_state_dict(torch.load(save / "model.pt", weights_only=True))
    assert f"{len(made.train) - num_classes:,} training, {num_classes:,} validation" in capsys.readouterr().out


def test_the_archive_alone_is_enough(tmp_path, monkeypatch):
    make_cifar10(tmp_path / "data", 60, 20, monkeypatch=monkeypatch, as_archive=True)
    words = [f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'save'}", "--n_epochs=1", "--valid_size=10"]
    assert run_here(*NETWORK, *words) == 0


def test_strategies_train_alike(tmp_path, monkeypatch):
    make_cifar10(tmp_path / "data", 60, 20, monkeypatch=monkeypatch)
    for strategy in STRATEGIES:
        words = [f"--data={tmp_path / 'data'}", f"--save={tmp_path / strategy}", "--n_epochs=2", "--valid_size=10"]
        assert run_here(*NETWORK, *words, "--drop_rate=0.2", f"--efficient={strategy}") == 0
    naive = tmp_path / "naive"
    assert_same_run(naive, tmp_path / "checkpoint")
    for strategy in ("buffer", "buffer_fast"):
        for ours, theirs in zip(read_results(tmp_path / strategy), read_results(naive), strict=True):
            assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "data_batch_3 is missing, and so is"),
        (
            lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
            "data_batch_3 is corrupted: its md5 digest is not",
        ),
    ],
)
def test_bad_data_is_one_line_and_leaves_no_folder_behind(damage, message, tmp_path, monkeypatch, capsys):
    make_cifar10(tmp_path / "data", 60, 20, monkeypatch=monkeypatch)
    damage(tmp_path / "data/cifar-10-batches-py/data_batch_3")
    assert run_here(*NETWORK, f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'runs/save'}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_no_network_is_one_line_with_the_address_and_leaves_no_folder_behind(tmp_path, monkeypatch, capsys, no_network):
    words = [word for word in NETWORK if not word.startswith("--download")]
    assert run_here(*words, f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'save'}") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot download https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in error
    assert str(tmp_path / "data" / "cifar-10-python.tar.gz") in error
    assert list(tmp_path.iterdir()) == []
    no_network.asked.clear()


def test_more_validation_images_than_there_are_is_refused(tmp_path, monkeypatch, capsys):
    make_cifar10(tmp_path / "data", 60, 20, monkeypatch=monkeypatch)
    assert run_here(*NETWORK, f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'save'}") == 2
    assert "--valid_size is 5000, but must be 0 or more and below 60, the training images" in capsys.readouterr().err


def test_the_whole_path_works_through_data_parallel(tmp_path, monkeypatch):
    """On a CPU the wrapper passes everything on; names of weights and the bits must not change."""
    from train import replicas

    words = ["--dataset=digits", *NETWORK, "--n_epochs=1"]
    assert run_here(*words, f"--save={tmp_path / 'plain'}") == 0
    real, wrapped = replicas.replicate, []

    def in_threads(network, device, **settings):
        made = real(network, device, **settings)
        wrapped.append(made)
        return replicas.Replicas(network, *(torch.nn.DataParallel(model) for model in (made.training, made.evaluation)))

    monkeypatch.setattr(replicas, "replicate", in_threads)
    assert run_here(*words, f"--save={tmp_path / 'parallel'}") == 0
    assert (tmp_path / "plain/model.pt").read_bytes() == (tmp_path / "parallel/model.pt").read_bytes()
    assert run_here(f"--save={tmp_path / 'parallel'}", "--resume", "--n_epochs=2") == 0
    assert len(wrapped) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [True, False])
def test_a_run_on_all_gpus_is_repeatable(mode, tmp_path):
    words = ["--dataset=digits", *NETWORK, "--n_epochs=2", "--drop_rate=0.2", f"--efficient={mode}"]
    for name in ("one", "two"):
        assert run_here(*words, f"--save={tmp_path / name}") == 0
    assert (tmp_path / "one/model.pt").read_bytes() == (tmp_path / "two/model.pt").read_bytes()
    assert float(read_results(tmp_path / "one")[-1]["peak_memory_mb"]) > 0
