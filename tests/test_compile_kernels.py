"""Kernels are compiled for GPUs that are not here."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.application import ROOT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="no triton")


def run(*arguments):
    """Run Python in a process of its own, where Triton compiles; here it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("capability", "dtypes"), [("80", "fp32"), ("90", "bf16")])
def test_kernels_spill_no_registers_and_load_16_bytes_at_a_time(capability, dtypes):
    # For each of two GPUs one dtype, such that all kernels are compiled once; the command compiles them for all.
    arguments = (f"--capabilities={capability}", f"--dtypes={dtypes}", "--sizes=48x12")
    result = run("-m", "tests.compile_kernels", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    wide_loads = {}
    for name, number in re.findall(r"^sm_\d+ (\w+) .* (\d+) wide", result.stdout, re.MULTILINE):
        wide_loads[name] = max(wide_loads.get(name, 0), int(number))
    of_1x1 = ["backward_1x1_input", "backward_1x1_weight"] if dtypes == "fp32" else ["backward_1x1"]
    rows = ["bottleneck_1x1", "new_maps_3x3", "backward_3x3", "backward_3x3_weight", *of_1x1, "sums_of_norm"]
    assert all(wide_loads[name] for name in rows)


def test_faults_are_found():
    result = run("-m", "tests.support.faulty_kernels")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["['narrow loads of rows']", "['atomic operations']", "['spills']"]


IN_PLACE = """
import torch
from models.buffer.dropout import Dropout
from models.buffer.kernels.forward import Moments
from tests.compile_kernels import compiled

with compiled(90) as launched:
    Moments().add(torch.zeros(512, 17), Dropout(0.5, torch.ones(512, 17, dtype=torch.bool)))
print(launched[0].kernel.asm["ptx"])
"""


def test_values_are_dropped_in_place_after_all_warps_have_read_the_first_row():
    result = run("-c", IN_PLACE)
    accesses = re.findall(r"\bld\.global|\bbar\.sync|\bst\.global", result.stdout)
    assert accesses[: accesses.index("st.global")].count("bar.sync") == 1, result.stderr
