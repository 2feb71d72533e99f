"""How this program is named in messages, and started on command lines."""

from pathlib import Path

# In a wheel all of this code is the package densenets, whose __main__.py the command of that name runs.
IS_PACKAGE = (Path(__file__).resolve().parents[1] / "__main__.py").exists()
NAME = "densenets" if IS_PACKAGE else "demo.py"
PYTHON_WORDS = (NAME,) if IS_PACKAGE else ("python", NAME)  # start it in one process
TORCHRUN_WORDS = ("-m", NAME) if IS_PACKAGE else (NAME,)  # after torchrun and its flags
