"""Further requirements of some flags: optional packages, and a C++ compiler."""

import os
import shutil
from importlib.util import find_spec

from train.errors import UserError

COMPILERS = ("g++", "clang++", "c++")


def require_packages(*packages: str, flag: str, value: object) -> None:
    """Make sure, before any work is done, that the packages a flag needs are installed. Imports none of them.

    Args:
        packages: Top-level import names, which are also the names that pip knows.
        flag: Name of the flag, without dashes.
        value: The value of the flag that needs the packages.

    Raises:
        UserError: If a package is missing; the message says how to install it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        which = f"the package {missing[0]} is" if len(missing) == 1 else f"the packages {', '.join(missing)} are"
        raise UserError(f"--{flag} is {value}, but {which} missing: pip install {' '.join(missing)}")


def require_compiler() -> None:
    """Make sure, before any work is done, that torch.compile finds a C++ compiler.

    Raises:
        UserError: If there is none.
    """
    names = (os.environ.get("CXX", ""), *COMPILERS)
    if not any(shutil.which(name) for name in names if name):
        raise UserError(f"--compile is True, but needs a C++ compiler: {', '.join(COMPILERS)}, or one that CXX names")
