"""Tests of kernels need triton, which PyTorch brings along for GPUs only."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]
