import pytest
import torch
import torch.nn.functional as F

from models.buffer.dropout import NO_DROPOUT, Dropout
from models.buffer.rows import as_rows
from tests.support.network_pairs import FORMATS
from tests.support.tensor_measurements import LiveStorages


@pytest.mark.parametrize("channels", [1, 7, 48])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mask_keeps_what_pytorch_keeps(dtype, memory_format, channels):
    x = torch.randn(3, channels, 5, 4, dtype=dtype).contiguous(memory_format=memory_format)
    torch.manual_seed(1)
    expected, state = F.dropout(x, 0.3), torch.get_rng_state()
    torch.manual_seed(1)
    rows = as_rows(x).clone()
    dropout = Dropout.draw(0.3, rows, (3, 5, 4), channels, memory_format)
    assert dropout.mask.dtype == torch.bool
    assert torch.equal(torch.get_rng_state(), state)
    result = torch.cat([dropout.of(chunk).apply(rows[chunk].clone()) for chunk in (slice(0, 37), slice(37, 60))])
    torch.testing.assert_close(result, as_rows(expected))
    assert torch.equal(result == 0, as_rows(expected) == 0)


def test_nothing_dropped_leaves_rows_alone():
    rows = torch.randn(4, 3)
    assert NO_DROPOUT.of(slice(0, 4)).apply(rows) is rows
    assert NO_DROPOUT.mask is None


def test_drawing_takes_little_more_than_the_mask():
    rows = torch.zeros(0)
    with LiveStorages() as storages:
        mask = Dropout.draw(0.2, rows, (4, 16, 16), 32, torch.contiguous_format).mask
    assert mask.nbytes == 4 * 16 * 16 * 32
    assert storages.peak_bytes == 2 * mask.nbytes  # as images, and as rows
