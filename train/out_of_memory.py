"""Recognise errors that mean that memory ran out."""

# In the message of a RuntimeError: of PyTorch on the CPU, of CUDA (as for pinned memory), of cuDNN or cuBLAS, of C++.
SIGNS = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory of the device or of the host ran out.

    Linux mostly does not refuse host memory, and kills the process later; then there is no error.
    """
    import torch  # takes seconds, which a program that refuses its command line does not spend

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
