"""What all tests share."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=10, help="how often the run of test_killed.py is killed")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def same_global_state():
    """Undo what the application sets for a whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
