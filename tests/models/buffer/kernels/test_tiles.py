"""How rows are divided among programs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.buffer.kernels.tiles import PROGRAMS, Tiles, columns_to_load


@given(st.integers(1, 2**31 - 1), st.integers(1, 5000))
def test_programs_cover_all_rows_and_columns_and_each_has_some(num_rows, num_columns):
    tiles = Tiles.of(num_rows, num_columns)
    across, down = tiles.grid
    assert (across - 1) * tiles.constants["BLOCK_N"] < num_columns <= across * tiles.constants["BLOCK_N"]
    assert (down - 1) * tiles.num_rows < num_rows <= down * tiles.num_rows
    assert tiles.num_rows % tiles.constants["BLOCK_M"] == 0
    assert across * down <= max(PROGRAMS, across)


def test_columns_are_loaded_in_multiples_of_16_where_all_rows_have_them():
    buffer = torch.empty(5, 64)
    assert columns_to_load(12, buffer[:, :12]) == 16
    assert columns_to_load(32, buffer[:, :32]) == 32
    assert columns_to_load(12, buffer[2:, :12], torch.empty(5, 16)) == 16
    assert columns_to_load(12, buffer[:, :12], torch.empty(5, 12)) == 12
    assert columns_to_load(12, buffer[2:, 36:48]) == 16
    assert columns_to_load(12, buffer[2:, 52:64]) == 12  # 16 would reach into the next row, or out of memory
    assert columns_to_load(12, torch.empty(1).expand(1, 12)) == 12  # the distance of rows is 0, and there is one
