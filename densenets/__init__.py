"""Memory-efficient DenseNets in PyTorch.

    from densenets import DenseNet, densenet_bc, load_weights

The names are those of the folder `models`. torch is imported when one of them is first used.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent
if not (_FOLDER / "models").is_dir():  # a checkout, which has the parts of this package beside this folder
    __path__.append(str(_FOLDER.parent))

models = import_module(".models", __name__)
__all__ = list(models.__all__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
