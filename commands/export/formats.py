"""The formats of exported networks: the ending of their files, and the packages that they need."""

from importlib.util import find_spec

from train.errors import UserError

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}  # besides torch itself


def require_packages(format: str) -> None:
    """Make sure, before any work, that the packages behind a format are installed.

    Raises:
        UserError: If one is missing; the message says how to install it.
    """
    missing = [package for package in PACKAGES[format] if find_spec(package) is None]
    if missing:
        raise UserError(f"--format is {format}, but packages are missing: pip install {' '.join(missing)}")
