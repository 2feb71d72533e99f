"""Where tests of Triton kernels run: on a GPU if there is one, else in Triton's interpreter, on tensors of the CPU.

Import this before any kernel. `tests/conftest.py` has chosen the interpreter by then, before triton is imported.

The interpreter of Triton 3.8 computes wrongly with bfloat16, which it stores as the 16 bits of an integer: it cuts
float32 off where a GPU rounds to nearest, and it multiplies these integers in a product of matrices. Where it still
does, it is corrected here.
"""

from threading import Lock

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The interpreter of Triton 3.6 fails in loops to a number that is an argument, with versions of NumPy since 1.25.
triton = pytest.importorskip("triton", minversion="3.8" if DEVICE == "cpu" else None)
tl = triton.language

# The marks of tests that use this module.
MARKS = [pytest.mark.gpu] if DEVICE == "cuda" else []


def correct_bfloat16() -> None:
    """Make the interpreter round to bfloat16, and multiply matrices of it, where it does neither."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    handle = interpreter.TensorHandle
    cast, dot = builder.cast_impl, builder.create_dot

    def rounded(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, src, dst_type)
        return handle(bfloat16_bits(src.data), tl.bfloat16)

    def multiplied(self, a, b, *others):
        return dot(self, *(widened(x) for x in (a, b)), *others)

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return handle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    one = np.array([[1 + 3 / 512]], np.float32)  # between two numbers of bfloat16, nearer to the greater
    as_bfloat16 = handle(bfloat16_bits(one), tl.bfloat16)
    some = builder()
    if some.cast_impl(handle(one, tl.float32), tl.bfloat16).data != as_bfloat16.data:
        builder.cast_impl = rounded
    zero = handle(np.zeros((1, 1), np.float32), tl.float32)
    if some.create_dot(as_bfloat16, as_bfloat16, zero, None, None).data > 2:
        builder.create_dot = multiplied


def bfloat16_bits(numbers):
    """Numbers of float32 as bits of bfloat16, as PyTorch rounds them."""
    return torch.from_numpy(np.ascontiguousarray(numbers)).bfloat16().view(torch.int16).numpy().view(np.uint16)


def run_as_on_a_gpu() -> None:
    """Let kernels run one at a time and without warnings about numbers.

    The interpreter keeps the place of a program in the grid for all threads together. NumPy warns of infinite and
    signalling values, which columns that are read only to fill a vector may hold; a GPU computes with them silently.
    """
    from triton.runtime.interpreter import InterpretedFunction

    run, lock = InterpretedFunction.run, Lock()

    def run_silently(self, *arguments, **settings):
        with lock, np.errstate(all="ignore"):
            return run(self, *arguments, **settings)

    InterpretedFunction.run = run_silently


if triton.knobs.runtime.interpret:
    correct_bfloat16()
    run_as_on_a_gpu()
