"""Small synthetic image files, good and bad ones, and folders of them in the layout of --dataset folder."""

import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data.crops import Crop
from data.decode import decode


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse random colours with fine noise, as a photo has large shapes and some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + random.integers(-10, 11, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    """Return the contents of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write(path: Path, contents: bytes = b"") -> Path:
    """Write a file, and create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    return path


def make_folder(
    root: Path,
    sizes: dict[str, int],
    *,
    classes: tuple[str, ...] = ("ant", "bee", "cat"),
    width: int = 40,
    height: int = 32,
) -> Path:
    """Write PNG files below `root`, the same number for each class: `sizes` is by train, val and test.

    Image i of a class has the seed 100 * label + i in train, 10,000 more in val and 20,000 more in test: all differ.
    """
    for use, number in sizes.items():
        offset = {"train": 0, "val": 10_000, "test": 20_000}[use]
        for label, name in enumerate(classes):
            for i in range(number):
                image = picture(width, height, seed=offset + 100 * label + i)
                write(root / use / name / f"{i:03}.png", encoded(image, "PNG"))
    return root


def bad_files() -> dict[str, bytes]:
    """Return contents of files that are named as images but cannot be read, by name."""
    png, jpeg = encoded(picture(60, 50), "PNG"), encoded(picture(60, 50), "JPEG")
    return {
        "empty.png": b"",
        "text.png": b"no picture at all",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "no_end.jpg": jpeg[:-40],
        "head.png": png[:20],
        "flipped.png": png[:200] + bytes(byte ^ 255 for byte in png[200:260]) + png[260:],
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "floats.tiff": encoded(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF"),
        "bomb.png": _bomb(),
    }


def _bomb() -> bytes:
    """Return a small PNG file whose header says that it has 20,000 x 20,000 pixels."""
    contents = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    contents[16:24] = (20_000).to_bytes(4, "big") * 2
    contents[29:33] = zlib.crc32(contents[12:29]).to_bytes(4, "big")
    return bytes(contents)


def data_threads() -> list[str]:
    """Return the names of the threads that are reading data."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("data")]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG file: length, kind, body and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_file(
    rows: bytes,
    *,
    shape: tuple[int, int],
    bits: int = 8,
    colour_type: int = 0,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Return a PNG file, built from the specification without Pillow.

    Args:
        rows: Rows of the image, each with a leading byte 0, which says that it is not filtered.
        shape: Width and height in the header, which may contradict `rows`.
        bits: Bits of a sample.
        colour_type: 0 is grey, 2 RGB, 3 a palette, 4 grey with alpha and 6 RGB with alpha.
        interlaced: Whether the header says that the image is interlaced.
        before: Chunks in front of the pixels.
        after: Chunks after the pixels.
    """
    header = struct.pack(">IIBBBBB", *shape, bits, colour_type, 0, 0, interlaced)
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before + pixels + after + png_chunk(b"IEND", b"")


def decode_whole(path, contents, *, size):
    """Write a file and decode it, with the whole image resized to `size` x `size`."""
    return decode(str(write(path, contents)), lambda width, height: Crop((0, 0, width, height)), size=size)
