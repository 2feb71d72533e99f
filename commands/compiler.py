"""What torch.compile needs beyond Python packages."""

import os
import shutil

from train.errors import UserError

COMPILERS = ("g++", "clang++", "c++")


def require_compiler() -> None:
    """Make sure, before any work, that there is a C++ compiler.

    Raises:
        UserError: If there is none.
    """
    names = (os.environ.get("CXX", ""), *COMPILERS)
    if not any(shutil.which(name) for name in names if name):
        raise UserError(f"--compile is True, but needs a C++ compiler: {', '.join(COMPILERS)}, or what CXX names")
