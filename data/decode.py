"""One image file becomes S x S pixels. Pillow decodes it; it works without Python's lock, so that threads help."""

import functools
import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from data import jpeg, png
from data.budget import Budget
from data.crops import Crop
from data.errors import CorruptedData, DataError
from data.modes import to_rgb

# Formats that Pillow knows but are not here: EPS, which runs a program of its own for each file; stubs without a
# decoder, as HDF5; and formats in which nobody keeps pictures for training. TGA comes last: nothing marks its files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "PCX", "QOI", "SGI", "TGA")

# A JPEG file can be decoded at 1/2, 1/4 or 1/8 of its size in a fraction of the time. What is left is at least so many
# times larger than the result, so that the resizing that follows, and not the decoder, decides how the result looks.
MARGIN = 2

# Bytes of memory that pictures take while they are decoded, in all threads together, and what a pixel takes at most: 24
# where a WebP picture with transparent parts becomes RGB, measured; 4 to 20 elsewhere. The two largest pictures that
# are accepted can be decoded at a time, or 14 of 12 million pixels.
MEMORY = Budget(4 << 30)
BYTES_PER_PIXEL = 24
COEFFICIENT_BYTES = 6  # a progressive JPEG file is held whole, as three coefficients a pixel, at whatever scale

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the number in a file's EXIF data; from 5 on they exchange width and height


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the names of image files, in lower case, with their dot."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats())


def prepare() -> None:
    """Load Pillow's decoders and settle what its warnings mean; once, before any thread decodes.

    A picture of more pixels than Pillow's limit (89 million) is an error. What else it warns of (odd metadata) does not
    touch the pixels, and is not shown.
    """
    suffixes()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(path: str, choose: Callable[[int, int], Crop], *, size: int, grey: bool = False) -> np.ndarray:
    """Decode a file, take a part of it and resize that, with bilinear weights over all pixels that it covers.

    Args:
        path: Of the file.
        choose: Takes width and height of the picture, as a viewer shows it, and returns the part.
        size: Height and width S of the result.
        grey: Whether colours are taken away.

    Returns:
        uint8 (S, S, 3), red, green and blue.

    Raises:
        CorruptedData: If the file is no picture, is damaged or too large.
        DataError: If it cannot be opened.
    """
    contents = _read(path)
    with MEMORY.part() as memory:
        with _one_line(path):
            image = _open(contents)
            is_jpeg = isinstance(image, JpegImageFile)
            if not is_jpeg:
                memory.take(_memory_of(image))
                _load(image, contents)  # TIFF files are turned by this, and those of PNG may have EXIF data at the end
            orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        crop = choose(width, height)
        box = _as_stored(crop.box, orientation, width, height)
        with _one_line(path):
            divisor = _choose_scale(image, box, size) if is_jpeg else 1
            if is_jpeg:
                memory.take(_memory_of(image, divisor))
                image.load()
            picture = to_rgb(image)
        picture = _cut(picture, [edge / divisor for edge in box], size, alone=crop.alone)
    for turn in (TURNS.get(orientation), TURNS[2] if crop.flip else None):
        picture = picture if turn is None else picture.transpose(turn)
    return np.asarray(picture.convert("L").convert("RGB") if grey else picture)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(contents: bytes) -> Image.Image:
    """Read the head of a file, by its pixels alone: metadata cannot keep them from being decoded."""
    for kind, is_kind in ((png, png.is_png), (jpeg, jpeg.is_jpeg)):
        if is_kind(contents):
            contents = kind.without_metadata(contents)
    return Image.open(io.BytesIO(contents), formats=formats())


def _memory_of(image: Image.Image, divisor: int = 1) -> int:
    """Bytes that a picture takes at most while it is decoded with both sides divided by `divisor`."""
    pixels = image.width * image.height
    coefficients = pixels * divisor**2 * COEFFICIENT_BYTES if "progressive" in image.info else 0
    return pixels * BYTES_PER_PIXEL + coefficients


def _load(image: Image.Image, contents: bytes) -> None:
    """Decode all pixels of a file.

    Raises:
        ValueError: If it does not hold all of them, and Pillow would leave the rest black.
    """
    if image.format == "TIFF":
        boxes = {tile[1] for tile in image.tile}
        if sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) < image.width * image.height:
            raise ValueError("it is cut off: some of its strips or tiles are missing")
    if image.format != "PNG":
        image.load()
        return
    png.load(image, contents)
    png.correct_transparency(image, contents)


@contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Turn whatever Pillow meets in the file into an error that names it. Its decoders raise errors of all kinds."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise CorruptedData(f"{path} cannot be read as an image: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is empty, damaged or of no known format"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """How the picture is to be turned, 1 to 8; 1 is as it is. EXIF data that cannot be read turns nothing."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        return 1
    return turn if turn in TURNS else 1


def _as_stored(box: Sequence[float], orientation: int, width: int, height: int) -> tuple[float, float, float, float]:
    """Where a part of a picture of this width and height lies in its file, which holds it not turned yet."""
    left, top, right, bottom = box
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom) if orientation < 5 else (top, left, bottom, right)


def _choose_scale(image: JpegImageFile, box: Sequence[float], size: int) -> int:
    """Choose the smallest scale that `MARGIN` allows, and return the number that both sides are divided by."""
    left, top, right, bottom = box
    possible = min(right - left, bottom - top) / (MARGIN * size)
    divisor = next((divisor for divisor in (8, 4, 2) if divisor <= possible), 1)
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    return divisor


def _cut(picture: Image.Image, box: Sequence[float], size: int, *, alone: bool) -> Image.Image:
    """Resize a part of a picture to S x S; `alone`: as if there were nothing around it."""
    left, top, right, bottom = box
    if alone:
        x, y = math.floor(left), math.floor(top)
        picture = picture.crop((x, y, math.ceil(right), math.ceil(bottom)))
        left, top, right, bottom = left - x, top - y, right - x, bottom - y
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
