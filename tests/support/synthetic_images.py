"""Small made image files, good and bad ones, and folders of them in the layout of --dataset folder."""

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
    """The bytes of a file that holds the image."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write(path: Path, contents: bytes = b"") -> Path:
    """Write a file, in a folder that is made for it."""
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

    The picture of number i of a class is the one of seed 100 * label + i in train, and so on; no two are alike.
    """
    for use, number in sizes.items():
        offset = {"train": 0, "val": 10_000, "test": 20_000}[use]
        for label, name in enumerate(classes):
            for i in range(number):
                image = picture(width, height, seed=offset + 100 * label + i)
                write(root / use / name / f"{i:03}.png", encoded(image, "PNG"))
    return root


def bad_files() -> dict[str, bytes]:
    """Contents of files that are called images and are none, by a name for each."""
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
    """A small PNG file that says it has 20,000 x 20,000 pixels."""
    contents = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    contents[16:24] = (20_000).to_bytes(4, "big") * 2
    contents[29:33] = zlib.crc32(contents[12:29]).to_bytes(4, "big")
    return bytes(contents)


def data_threads() -> list[str]:
    """Names of the threads that read data at this moment."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("data")]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file: length, kind, body and checksum."""
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
    """A PNG file by its specification, without Pillow.

    Args:
        rows: Of the picture, each after a byte 0, which says that it is not filtered.
        shape: Width and height as the file says, whatever `rows` holds.
        bits: Of a sample.
        colour_type: 0 is grey, 2 RGB, 3 a palette, 4 grey with alpha and 6 RGB with alpha.
        interlaced: What the file says.
        before: Chunks before the pixels.
        after: Chunks after the pixels.
    """
    header = struct.pack(">IIBBBBB", *shape, bits, colour_type, 0, 0, interlaced)
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before + pixels + after + png_chunk(b"IEND", b"")


def decode_whole(path, contents, *, size):
    """The pixels of a file with these contents, all of the picture resized to `size` x `size`."""
    return decode(str(write(path, contents)), lambda width, height: Crop((0, 0, width, height)), size=size)
