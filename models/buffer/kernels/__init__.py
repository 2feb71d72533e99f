"""Triton kernels for the parts of a dense block on a GPU. Nothing here imports triton before a kernel is needed."""
