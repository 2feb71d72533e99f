"""Small .npy files of images with any number of channels, and folders of them in the layout of --dataset folder."""

import io
from pathlib import Path

import numpy as np

from tests.support.synthetic_images import picture, write


def array(channels: int, *, width: int = 40, height: int = 32, seed: int = 0) -> np.ndarray:
    """Return an image uint8 (H, W, C) whose channels are parts of pictures, all different."""
    bands = [np.asarray(picture(width, height, seed=seed + i))[..., i % 3] for i in range(channels)]
    return np.stack(bands, 2)


def saved(values: np.ndarray, **options: bool) -> bytes:
    """Return the contents of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def make_array_folder(
    root: Path, sizes: dict[str, int], *, channels: int, classes: tuple[str, ...] = ("ant", "bee", "cat")
) -> Path:
    """Write .npy files below `root`, the same number for each class: `sizes` is by train, val and test."""
    for use, number in sizes.items():
        offset = {"train": 0, "val": 10_000, "test": 20_000}[use]
        for label, name in enumerate(classes):
            for i in range(number):
                values = array(channels, seed=offset + 100 * label + 10 * i)
                write(root / use / name / f"{i:03}.npy", saved(values))
    return root


def header(text: str, *, version: tuple[int, int] = (1, 0)) -> bytes:
    """Return the beginning of a .npy file, built from the format's specification without NumPy."""
    body = text.encode("latin1") + b"\n"
    length = len(body).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + body


def bad_arrays() -> dict[str, tuple[bytes, str]]:
    """Return contents of .npy files that hold no image of two channels, and what is said of them, by name."""
    good = saved(array(2, width=4, height=3))
    start = "{'descr': '|u1', 'fortran_order': False, 'shape': "
    return {
        "empty": (b"", "reading magic string"),
        "text": (b"no array at all", "magic string is not correct"),
        "cut header": (good[:40], "its header is damaged"),
        "cut": (good[:-1], "its array is 24 bytes, but it holds 23"),
        "too long": (good + b"\0", "its array is 24 bytes, but it holds 25"),
        "no array after a huge header": (
            header(start + "(100000, 80000, 2), }"),
            "it has more than 268,435,455 values",
        ),
        "no array after a large header": (
            header(start + "(8000, 8000, 2), }"),
            "its array is 128,000,000 bytes, but it holds 0",
        ),
        "overflow": (header(start + f"({2**62}, {2**62}, 2), }}"), "it has more than"),
        "negative": (header(start + "(-3, -4, 2), }") + bytes(24), "its shape is (-3, -4, 2)"),
        "no pixels": (saved(np.zeros((0, 4, 2), np.uint8)), "its shape is (0, 4, 2)"),
        "a number": (saved(np.zeros((), np.uint8)), "its shape is ()"),
        "a row": (saved(np.zeros(24, np.uint8)), "its shape is (24,)"),
        "many images": (saved(np.zeros((2, 3, 4, 2), np.uint8)), "its shape is (2, 3, 4, 2)"),
        "floats": (
            saved(np.zeros((3, 4, 2), np.float32)),
            "its values are float32, and not uint8; scale them to 0..255",
        ),
        "16 bits": (saved(np.zeros((3, 4, 2), np.uint16)), "its values are uint16, and not uint8"),
        "signed": (saved(np.zeros((3, 4, 2), np.int8)), "its values are int8, and not uint8"),
        "pickle": (saved(np.array([Exploding()], dtype=object), allow_pickle=True), "its values are object"),
        "names": (saved(np.zeros((3, 4), [("a", "u1"), ("b", "u1")])), "its values are ["),
        "a call as shape": (header(start + "exit(), }") + bytes(24), "its header is damaged"),
        "a header of a megabyte": (
            header(start + "(3, 4, 2), }" + " " * 2**20, version=(2, 0)),
            "its header is damaged",
        ),
        "version 3": (header(start + "(3, 4, 2), }", version=(3, 0)) + bytes(24), "its format is 3.0"),
        "version 9": (header(start + "(3, 4, 2), }", version=(9, 9)) + bytes(24), "its format is 9.9"),
        "deep": (header(start + "(" * 9000), "its header is damaged"),
        "1 channel": (saved(array(1, width=4, height=3)), "it has 1 channel, and not 2"),
        "grey": (saved(array(1, width=4, height=3)[..., 0]), "it has 1 channel, and not 2"),
        "channels first": (saved(np.zeros((2, 3, 4), np.uint8)), "it has 4 channels, and not 2"),
    }


class Exploding:
    """An object whose unpickling fails the test."""

    def __reduce__(self) -> tuple:
        return (_explode, ())


def _explode() -> None:
    raise AssertionError("it was unpickled")
