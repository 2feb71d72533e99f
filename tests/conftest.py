"""Fixtures and settings of all tests."""

import os

# Threads that spin while they wait make small networks ten times slower on a busy machine. The processes that tests
# start inherit this; it must be set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import socket

import pytest
import torch

# Kernels are interpreted where no GPU can run them. Triton decides when it is imported, which comes later.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from train.run import safeguards

# What they assert is shown as what tests assert.
pytest.register_assert_rewrite(
    "tests.support.application",
    "tests.support.dataset_files",
    "tests.support.tensor_measurements",
    "tests.support.network_pairs",
)


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=3, help="how many faults the run of test_faults.py meets")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def same_global_state():
    """Undo what the application sets for a whole process."""
    safeguards.forget()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def blocks_over_buffers(monkeypatch):
    """List the blocks that have run over a feature buffer."""
    from models.buffer import network
    from models.buffer.function import block_over_buffer

    blocks = []

    def note(x, block, transition, **settings):
        blocks.append(block)
        return block_over_buffer(x, block, transition, **settings)

    monkeypatch.setattr(network, "block_over_buffer", note)
    return blocks


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of two epochs that is done."""
    from tests.support.application import SMALL, run_here

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run_here(*SMALL, "--n_epochs=2", f"--save={folder}") == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """The same, to be changed by a test."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """The folder that a command line stands in, without a network, and with a copy of the run in `run`."""
    from tests.support.synthetic_datasets import Server

    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    Server(monkeypatch)
    return tmp_path


@pytest.fixture(scope="session")
def long_run(tmp_path_factory):
    """A run of four epochs that nothing has disturbed."""
    from tests.support.application import LONGER, run_here

    folder = tmp_path_factory.mktemp("long") / "run"
    assert run_here(*LONGER, f"--save={folder}") == 0
    return folder


@pytest.fixture
def long_copy(long_run, tmp_path):
    """The same, to be changed by a test."""
    return shutil.copytree(long_run, tmp_path / "copy")


@pytest.fixture
def server(monkeypatch):
    """No network: a server in memory, which knows no address before a test gives it some."""
    from tests.support.synthetic_datasets import Server

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a test used the network"))
    return Server(monkeypatch)
