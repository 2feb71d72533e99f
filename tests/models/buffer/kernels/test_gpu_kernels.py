"""What only a GPU can show; all other tests of this folder run there too, if there is one."""

from unittest.mock import patch

import pytest
import torch

from models.buffer.kernels import check
from models.buffer.kernels.forward import Moments, activate
from tests.support.kernel_rows import assert_rounded, batch_norm_of, exact, numbers

pytestmark = pytest.mark.gpu


def test_rows_may_lie_more_than_2_to_the_31_values_apart():
    pitch, num_rows, c = 2**30 + 16, 3, 20  # 4.3 GB
    x = torch.empty(2 * pitch + 32, dtype=torch.bfloat16, device="cuda").as_strided((num_rows, c), (pitch, 1))
    values = numbers(num_rows, c, dtype=torch.bfloat16)
    Moments().add(values, out=x)
    assert torch.equal(x, values)
    norm = batch_norm_of(values)
    assert_rounded(activate(x, norm, torch.empty_like(values)), exact(values, norm))


def test_a_check_is_never_captured_in_a_graph():
    x = torch.zeros(3, device="cuda")
    with patch.dict(check._answers, clear=True), torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert "captured in a CUDA graph" in check.why_not(x)
        x.add_(1)
    assert check.why_not(x) == ""
