"""Compile all Triton kernels for GPUs that need not be there, and look at the machine code.

    python -m tests.compile_kernels
    python -m tests.compile_kernels --capabilities 80,90 --dtypes tf32,bf16 --sizes 48x12

All of it takes ten minutes on two processors; what was compiled before is taken from Triton's cache.
The kernels are those that models/buffer/kernels launches: its functions are called with tensors of the CPU, and each
launch is compiled as it would be for the GPU, instead of being run. A line for each kernel gives its registers, spills,
shared memory, loads and atomic operations. The exit code is 1 if a kernel

- spills registers to memory,
- needs more shared memory than the GPU has,
- has atomic operations, after which equal runs would not give equal bits, or
- loads rows less than 16 bytes at a time, where their pitch and alignment allow it.

Triton brings its own assembler and disassembler along.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.support import kernel_uses

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# KiB of shared memory that a program can have: CUDA C++ Programming Guide, technical specifications of capabilities.
SHARED_MEMORY = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


class Launched(NamedTuple):
    """A kernel as it was launched.

    Attributes:
        function: The function that was compiled.
        kernel: What it was compiled to.
        label: Its compile-time constants, in words.
        dtype: Of the rows among its arguments.
        rows: Names of parameters that point to rows whose pitch and alignment allow loads of 16 bytes.
        seconds: Time to compile it.
    """

    function: JITFunction
    kernel: Any
    label: str
    dtype: str
    rows: frozenset[str]
    seconds: float


class Report(NamedTuple):
    """What the machine code of a kernel shows."""

    registers: int
    spills: int
    shared_memory: float  # KiB
    wide_loads: int  # of rows, 16 bytes each
    narrow_loads: int  # of rows
    atomics: int

    def faults(self, capability: int) -> list[str]:
        """Return what is wrong."""
        limit = SHARED_MEMORY[capability]
        found = {
            f"{self.spills} spills": self.spills,
            f"{self.shared_memory:.0f} KiB of shared memory, {limit} are there": self.shared_memory > limit,
            f"{self.atomics} atomic operations": self.atomics,
            f"{self.narrow_loads} narrow loads of rows": self.narrow_loads,
        }
        return [fault for fault, is_there in found.items() if is_there]


class NoDevice:
    """Stands for the driver of a GPU of some compute capability, for which kernels are compiled."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached by device

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def compiled(capability: int) -> Iterator[list[Launched]]:
    """Compile all kernels that are launched within, once for each set of constants, and list them; run none.

    This process can launch no kernels after it.
    """
    launched: list[Launched] = []
    hashes: set[str] = set()
    run = JITFunction.run

    def compile_only(self: JITFunction, *arguments: Any, grid: object, warmup: bool, **constants: Any) -> None:
        start = time.monotonic()
        kernel = run(self, *arguments, grid=grid, warmup=True, **constants)
        seconds = time.monotonic() - start
        if kernel.hash not in hashes:
            hashes.add(kernel.hash)
            label = " ".join(f"{name}={value}" for name, value in constants.items())
            dtype = " ".join({str(value.dtype)[6:] for value in arguments if are_rows(value)})
            names = zip(self.arg_names, arguments, strict=False)
            rows = frozenset(name for name, value in names if are_rows(value) and can_be_loaded_wide(value))
            launched.append(Launched(self, kernel, label, dtype, rows, seconds))

    driver.set_active(NoDevice(capability))
    JITFunction.run = compile_only
    try:
        yield launched
    finally:
        JITFunction.run = run


def are_rows(value: object) -> TypeGuard[Tensor]:
    """Tell whether an argument is rows of feature maps or gradients."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape[:1] == (kernel_uses.NUM_ROWS,)


def can_be_loaded_wide(rows: Tensor) -> bool:
    """Tell whether 16 bytes at a time can be loaded: the first value and the pitch are aligned, rows not short."""
    return rows.shape[1] > 16 and rows.stride(0) % 16 == 0 and rows.data_ptr() % 16 == 0


def report_of(launched: Launched) -> Report:
    """Look at the machine code of a kernel."""
    kernel = launched.kernel
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = output_of("cuobjdump", "--dump-resource-usage", file.name)
        code = output_of("nvdisasm", "-c", file.name)
    registers = re.search(r"REG:(\d+)", usage)
    folder = Path(launched.function.fn.__code__.co_filename).parent
    widths = [size for rows, size in loads_in(kernel.asm["ptx"], folder) if rows & launched.rows]
    return Report(
        registers=int(registers[1]) if registers else -1,
        spills=len(re.findall(r"\bSTL\b", code)),
        shared_memory=kernel.metadata.shared / 1024,
        wide_loads=sum(size == 16 for size in widths),
        narrow_loads=sum(size != 16 for size in widths),
        # Not ATOMS: tensor cores of sm_100 are given their memory by one on shared memory, which adds no numbers.
        atomics=len(re.findall(r"\b(?:RED|ATOM|ATOMG)\b", code)),
    )


def output_of(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


LOAD = re.compile(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfus](\d+)\b")
COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\b[^;]*?\], (0x)?([0-9a-f]+)")
LINE = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]+)"')


def loads_in(ptx: str, folder: Path) -> Iterator[tuple[frozenset[str], int]]:
    """Yield each load from global memory: the parameters that its address comes from, and its size in bytes.

    Args:
        ptx: The assembler of a kernel, with positions in its source.
        folder: Where the source is. Triton's cache may give the paths of another copy of this project.
    """
    files = {number: folder / Path(path).name for number, path in FILE.findall(ptx)}
    source: frozenset[str] = frozenset()
    positions = None  # that are still to come, if this is a piece of assembler
    for line in ptx.splitlines():
        if "begin inline asm" in line:
            positions = 1  # further ones are made up: each line of the assembler counts as one more line of the file
        elif "end inline asm" in line:
            positions = None
        elif found := LINE.search(line):
            if positions != 0:
                source = pointers_in(files[found[1]]).get(int(found[2]), frozenset())
            positions = positions and positions - 1
        elif found := LOAD.search(line):
            yield source, int(found[1] or 1) * int(found[2]) // 8
        elif found := COPY.search(line):
            yield source, int(found[2], 16 if found[1] else 10)


@cache
def pointers_in(path: Path) -> dict[int, frozenset[str]]:
    """Map lines of a file with a call of `tl.load` to the parameters of its function from which the address comes."""
    lines: dict[int, frozenset[str]] = {}
    if not path.exists():  # Triton's own functions, which load nothing
        return lines
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
                    lines[node.lineno] = frozenset(origins(node.args[0], function))
    return lines


def origins(address: ast.expr, function: ast.FunctionDef) -> set[str]:
    """Names that an address is computed from, through all assignments in a function."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
    found: set[str] = set()
    waiting = [address]
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Name) and node.id not in found:
                found.add(node.id)
                waiting += values.get(node.id, [])
    return found


def check(capability: int, dtypes: list[str], sizes: list[tuple[int, int]]) -> list[str]:
    """Compile all kernels for a compute capability, print a line for each, and return what is wrong."""
    faults = []
    with compiled(capability) as launched:
        kernel_uses.use_all(capability, dtypes, sizes)
    for one in launched:
        report = report_of(one)
        name = one.function.__name__
        print(
            f"sm_{capability} {name:<20} {one.dtype:<8} {report.registers:3} registers, {report.spills} spills,"
            f" {report.shared_memory:5.1f} KiB, {report.wide_loads} wide and {report.narrow_loads} narrow loads of"
            f" rows, {report.atomics} atomics, {one.seconds:.1f} s; {one.label}",
            flush=True,
        )
        faults += [f"sm_{capability} {name} {one.label}: {fault}" for fault in report.faults(capability)]
    unused = kernel_uses.launched_by_name() - {one.function.__name__ for one in launched}
    if unused and capability >= 80 and {"tf32", "fp32"} <= set(dtypes):  # some products take other kernels in TF32
        faults.append(f"sm_{capability}: never compiled: {', '.join(sorted(unused))}")
    return faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compile_kernels", description=__doc__.partition("\n")[0])
    numbers = lambda text: [int(number) for number in text.split(",")]  # noqa: E731
    pairs = lambda text: [tuple(map(int, pair.split("x"))) for pair in text.split(",")]  # noqa: E731
    parser.add_argument("--capabilities", type=numbers, default=list(SHARED_MEMORY), help="75,80,... (default: all)")
    parser.add_argument(
        "--dtypes", type=lambda text: text.split(","), default=["tf32", "fp32", "bf16", "fp16"],
        help="tf32,fp32,bf16,fp16: dtypes of rows, of float32 with products in TF32 or not (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes",
        type=pairs,
        default=[(64, 32), (48, 12), (20, 5), (16, 4)],
        help="bxk,...: channels of layers (default: four)",
    )
    arguments = parser.parse_args(argv)
    one = partial(check, dtypes=arguments.dtypes, sizes=arguments.sizes)
    with ProcessPoolExecutor(min(len(arguments.capabilities), os.cpu_count() or 1)) as pool:
        faults = [fault for found in pool.map(one, arguments.capabilities) for fault in found]
    for fault in faults:
        print(fault, file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
