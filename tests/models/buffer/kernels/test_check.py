"""A device is checked before kernels are used there."""

import sys
from threading import Thread
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.buffer.device import as_on_gpu
from models.buffer.kernels import check, forward, sums
from models.buffer.kernels.check import are_usable, why_not
from models.buffer.kernels.launch import recorded
from tests.support.triton_interpreter import DEVICE, MARKS, triton

pytestmark = MARKS


@pytest.fixture(autouse=True)
def gpu():
    """A GPU that has not been used."""
    with as_on_gpu((9, 0)), patch.dict(check._answers, clear=True):
        yield


def rows(dtype=torch.float32):
    return torch.zeros(3, 4, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("dtype", check.TOLERANCE)
def test_kernels_that_agree_with_pytorch_are_used(dtype):
    assert are_usable(rows(dtype))


def test_the_check_disturbs_nothing():
    launches, state = [], torch.get_rng_state()
    with torch.autocast(DEVICE, torch.bfloat16), torch.inference_mode(), recorded(launches.append):
        assert why_not(rows()) == ""
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled(DEVICE)
        assert not torch.is_grad_enabled()
    assert launches == []
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_made_once_for_all_threads():
    with patch.object(check, "_difference", wraps=check._difference) as difference:
        threads = [Thread(target=why_not, args=[rows()]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert difference.call_count == 1


def test_an_answer_is_not_kept_waiting_by_another_check():
    with patch.object(check, "_difference", return_value=""):
        assert are_usable(rows())
    answers = []
    thread = Thread(target=lambda: answers.append(are_usable(rows())), daemon=True)
    with check._lock:  # as a check of another dtype has it, which may need this thread to go on
        thread.start()
        thread.join(timeout=10)
    assert answers == [True]


@pytest.mark.parametrize(
    ("place", "name"), [(forward, "activate_rows"), (forward, "average_activated"), (sums, "join_reader")]
)
def test_kernels_that_compute_nothing_are_not_used(place, name):
    class Nothing:
        __name__ = name

        def __getitem__(self, grid):
            return lambda *arguments, **constants: None

    with (
        patch.object(place, name, Nothing()),
        patch.object(torch, "empty_like", torch.zeros_like),
        pytest.warns(UserWarning, match="slower operations take the place of kernels, .* differs from PyTorch's by"),
    ):
        assert not are_usable(rows())
    assert not are_usable(rows())  # without another look, and without another warning


def test_norms_have_the_digits_of_float32_where_products_are_tf32(monkeypatch):
    monkeypatch.setattr(check, "precision_of_products", lambda: "tf32")
    activate = forward.activate
    monkeypatch.setattr(forward, "activate", lambda *arguments: activate(*arguments).mul_(1.001))
    with pytest.warns(UserWarning, match="a norm differs from PyTorch's by 1e-03"):
        assert not are_usable(rows())


def test_whatever_a_compiler_raises_is_a_reason_of_one_line():
    class Broken:
        __name__ = "broken"

        def __getitem__(self, grid):
            raise RuntimeError("ptxas: out of registers\nand more")

    with patch.object(forward, "activate_rows", Broken()), pytest.warns(UserWarning, match="ptxas: out of registers$"):
        assert why_not(rows()) == f"they fail on {rows().device}: RuntimeError: ptxas: out of registers"


def test_what_kernels_cannot_do_without_is_named(monkeypatch):
    assert "float64" in why_not(rows(torch.float64))
    with as_on_gpu((7, 0)):
        assert "compute capability 7.5" in why_not(rows())
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    assert "triton 3.6 or later, and 3.5.1 is installed" in why_not(rows())
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "the package triton 3.6" in why_not(rows())


def test_a_machine_without_a_gpu_has_no_kernels():
    with patch("models.buffer.device._pretended", None):
        assert why_not(torch.zeros(1)) == "they need an NVIDIA GPU, and tensors are on cpu"


def test_fake_tensors_need_no_check():
    with FakeTensorMode(), patch.object(check, "_difference", side_effect=AssertionError):
        assert why_not(rows()) == ""
