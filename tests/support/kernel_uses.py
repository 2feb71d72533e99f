"""Calls of all functions of models/buffer/kernels, in all variants, with small tensors whose values do not matter."""

import ast
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from models.buffer.dropout import NO_DROPOUT, Dropout
from models.buffer.kernels import backward, forward, products, table
from models.buffer.kernels.products import Bottleneck, Convolution, Inputs
from models.buffer.norms import ChannelNorm

SHAPE = (2, 16, 16)
NUM_ROWS = 512
DTYPES = {"tf32": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = 89  # that a layer reads


def launched_by_name() -> set[str]:
    """Names of all kernels that models/buffer/kernels launches, as its source says."""
    folder = Path(products.__file__).parent
    calls = (node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    return {
        ast.unparse(node.args[0]).rpartition(".")[2]
        for node in calls
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "launch"
    }


def use_all(capability: int, dtypes: list[str], sizes: list[tuple[int, int]]) -> None:
    """Call all functions that a GPU of a compute capability can use.

    Args:
        capability: As 80 for 8.0.
        dtypes: Of rows, names in `DTYPES`. Those of "tf32" and "fp32" differ in the precision of products.
        sizes: Channels of bottlenecks, and channels that their layers make.
    """
    for name in dtypes:
        dtype = DTYPES[name]
        if name != "fp32" or "tf32" not in dtypes:
            use_norms(dtype)
        for b, k in sizes if capability >= 80 else []:
            plan = plan_of(capability, name, b, k)
            for is_plain in (True, False):
                use_products(dtype, plan, b, k, is_plain=is_plain)


def plan_of(capability: int, name: str, b: int, k: int) -> table.Plan:
    """The plan of a layer whose products of float32 are computed in TF32 or not."""
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee" if name == "fp32" else "tf32"
    try:
        plan = table.plan(divmod(capability, 10), DTYPES[name], b, k)
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision
    assert plan is not None
    return plan


def rows_of(dtype: torch.dtype, columns: int = COLUMNS) -> Tensor:
    """Rows with a pitch that is a multiple of 16 columns."""
    return torch.zeros(NUM_ROWS, -(-columns // 16) * 16, dtype=dtype)[:, :columns]


def norm_of(columns: int, *, is_frozen: bool = False) -> ChannelNorm:
    running = (torch.zeros(columns), torch.ones(columns)) if is_frozen else None
    return ChannelNorm(*torch.zeros(4, columns), running)


def dropout_of(columns: int) -> Dropout:
    return Dropout(0.5, torch.ones(NUM_ROWS, columns, dtype=torch.bool))


def use_products(dtype: torch.dtype, plan: table.Plan, b: int, k: int, *, is_plain: bool) -> None:
    """Call all functions of products.

    Args:
        dtype: Of rows.
        plan: The plan of the layer.
        b: Channels of the bottleneck.
        k: Channels that the layer makes.
        is_plain: The layer that needs the fewest registers: without dropout, with frozen norms and a bottleneck that
            was kept. Otherwise the one that needs the most.
    """
    x, y, z = rows_of(dtype), rows_of(dtype, k), rows_of(dtype, b)
    dropouts = (NO_DROPOUT, NO_DROPOUT) if is_plain else (dropout_of(b), dropout_of(k))
    first = Convolution(norm_of(COLUMNS, is_frozen=is_plain), torch.zeros(b, COLUMNS, 1, 1), dropouts[0])
    second = Convolution(norm_of(b, is_frozen=is_plain), torch.zeros(k, b, 3, 3), dropouts[1])
    products.bottleneck(x, first, plan, eps=1e-5, out=z)
    products.new_maps(z, second, SHAPE, plan, eps=1e-5, out=y)
    a, d = torch.zeros(2, COLUMNS)
    inputs = Inputs(x, rows_of(dtype), (a, d))
    of_z = Bottleneck(z, rows_of(dtype, b), is_plain)
    products.backward(rows_of(dtype, k), inputs, of_z, first, second, SHAPE, plan)


def use_norms(dtype: torch.dtype, columns: int = COLUMNS, b: int = 48, k: int = 12) -> None:
    """Call all functions of norms: for rows of a buffer, a bottleneck, and the channels that a layer makes."""
    x, grad, norm = rows_of(dtype, columns), rows_of(dtype, columns), norm_of(columns)
    pooled, averaged = rows_of(dtype, columns)[: NUM_ROWS // 4], rows_of(dtype, columns)[: SHAPE[0]]
    for relu in (True, False):
        forward.activate(x, norm, rows_of(dtype, columns), relu=relu)
    forward.activate_and_pool(x, norm, SHAPE, pooled)
    forward.activate_and_average(x, norm, SHAPE)
    for dropout, out in product((NO_DROPOUT, dropout_of(k)), (None, rows_of(dtype, k))):
        moments = forward.Moments()
        moments.add(rows_of(dtype, k), dropout, out=out)
        moments.result(1e-5)
    collected = (torch.zeros(columns), torch.zeros(columns))
    for is_first in (True, False):
        sums = backward.NormSums(norm)
        sums.mask(grad, x)
        sums.add_to(rows_of(dtype, columns), grad, x, is_first=is_first)
        sums.add_pooled_to(rows_of(dtype, columns), pooled, x, SHAPE, is_first=is_first)
        sums.add_averaged_to(rows_of(dtype, columns), averaged, x, SHAPE, is_first=is_first)
        sums.result(None if is_first else collected)
    z, norm2 = rows_of(dtype, b), norm_of(b)
    for total, dropout in product((None, (torch.zeros(b), torch.zeros(b))), (NO_DROPOUT, dropout_of(b))):
        backward.norm_backward(rows_of(dtype, b), z, norm2, total, NUM_ROWS, rows_of(dtype, b), dropout)
    for dropout in (NO_DROPOUT, dropout_of(k)):
        of_new = (torch.zeros(k), torch.zeros(k))
        new, out = rows_of(dtype, k), torch.zeros(NUM_ROWS, 16, dtype=dtype)
        backward.finish_gradient(new, rows_of(dtype, k), torch.zeros(k), of_new, NUM_ROWS, out, dropout)
