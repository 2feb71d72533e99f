"""Decode one image file to S x S pixels. Pillow decodes without holding Python's lock, so threads run in parallel."""

import functools
import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from data import jpeg, png
from data.crops import Crop
from data.errors import CorruptedData, DataError
from data.threads import Budget

# Formats that Pillow knows and that are left out: EPS, for which it runs another program on each file; stubs without a
# decoder, such as HDF5; and formats in which nobody keeps images for training. TGA comes last: its files have no
# signature.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "PCX", "QOI", "SGI", "TGA")

COLOURS = {1: "grey", 3: "RGB"}  # by the number of channels; an image file has no other numbers

# A JPEG file can be decoded at 1/2, 1/4 or 1/8 of its size in a fraction of the time. The decoded image stays at least
# this many times larger than the result, so that the resizing after it, and not the decoder, decides how it looks.
MARGIN = 2

# Bytes of memory for images that are being decoded, in all threads together, and the most that one pixel takes: 24
# where a WebP image with transparency becomes RGB, measured; 4 to 20 elsewhere. The two largest images that are
# accepted fit in at a time, or 14 of 12 million pixels.
MEMORY = Budget(4 << 30)
BYTES_PER_PIXEL = 24
COEFFICIENT_BYTES = 6  # a progressive JPEG file is held whole, as three coefficients a pixel, at any scale

# How to turn a stored image, by the orientation in its EXIF data. From 5 on width and height are exchanged.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the `FORMATS` that this build of Pillow can decode."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of image files, in lower case and with their dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def prepare() -> None:
    """Load Pillow's decoders and set how its warnings are treated. Call this once before threads decode.

    An image with more pixels than Pillow's limit (89 million) is an error. Other warnings, about odd metadata, do not
    affect the pixels and are not shown.
    """
    suffixes()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(
    path: str, choose: Callable[[int, int], Crop], *, size: int, grey: bool = False, channels: int = 3
) -> np.ndarray:
    """Decode a file, crop it and resize the crop to S x S, bilinear and antialiased.

    Args:
        path: Path of the file.
        choose: Takes width and height of the image, as a viewer shows it, and returns the crop.
        size: Height and width S of the result.
        grey: Whether to remove colours. All channels of the result are equal then.
        channels: 3 for red, green and blue, or 1 for grey, which is 0.299 R + 0.587 G + 0.114 B.

    Returns:
        uint8 (S, S, channels). Transparent parts are white.

    Raises:
        CorruptedData: If the file is not an image, is damaged or too large.
        DataError: If it cannot be opened, or another number of channels is asked for.
    """
    if channels not in COLOURS:
        raise DataError(f"{path} cannot be read as {channels} channels, only as 1 or 3; .npy files may hold any number")
    contents = _read(path)
    with ExitStack() as reserved:
        with errors_of(path):
            image = _open(contents)
            if not isinstance(image, JpegImageFile):
                reserved.enter_context(MEMORY.reserve(_memory_of(image)))
                _load(image, contents)  # before the orientation: this turns TIFF files, and PNG may have EXIF data last
            orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        crop = choose(width, height)
        box = _stored_box(crop.box, orientation, width, height)
        with errors_of(path):
            divisor = 1
            if isinstance(image, JpegImageFile):
                divisor = _choose_scale(image, box, size)
                reserved.enter_context(MEMORY.reserve(_memory_of(image, divisor)))
                image.load()
            pixels = to_rgb(image)
        pixels = resize(pixels, [edge / divisor for edge in box], size, crop_first=crop.crop_first)
    if orientation in TURNS:
        pixels = pixels.transpose(TURNS[orientation])
    if crop.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if channels == 1:
        return np.asarray(pixels.convert("L"))[..., np.newaxis]
    return np.asarray(pixels.convert("L").convert("RGB") if grey else pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits a channel, as a viewer would show it on a white page.

    Grey values of 16 bits are divided by 257, which maps their whole range to 0..255.

    Raises:
        ValueError: If nothing says which of its values are black and white.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Convert grey values from 0 to 65,535, held as integers of 16 or 32 bits, to 8 bits."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are not from 0 to 65,535, and nothing says which are black and white")
    grey = (values / 257).round().astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(contents: bytes) -> ImageFile:
    """Read the header of a file, without metadata: damage there must not keep the pixels from being decoded."""
    if png.is_png(contents):
        contents = png.without_metadata(contents)
    elif jpeg.is_jpeg(contents):
        contents = jpeg.without_metadata(contents)
    return Image.open(io.BytesIO(contents), formats=formats())


def _memory_of(image: Image.Image, divisor: int = 1) -> int:
    """Return the most bytes that decoding takes. Width and height have been divided by `divisor` already."""
    pixels = image.width * image.height
    coefficients = pixels * divisor**2 * COEFFICIENT_BYTES if "progressive" in image.info else 0
    return pixels * BYTES_PER_PIXEL + coefficients


def _load(image: ImageFile, contents: bytes) -> None:
    """Decode all pixels of a file.

    Raises:
        ValueError: If some pixels are missing, where Pillow would leave them black.
    """
    if image.format == "TIFF":
        boxes = {tile.extents or (0, 0, *image.size) for tile in image.tile}
        if sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) < image.width * image.height:
            raise ValueError("it is cut off: some of its strips or tiles are missing")
    if image.format != "PNG":
        image.load()
        return
    png.load(image, contents)
    png.correct_transparency(image, contents)


@contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Turn any error of Pillow into one that names the file. Its decoders raise errors of all types."""
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
    """Return the EXIF orientation of an image, 1 to 8. It is 1, upright, where EXIF data cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        return 1
    return orientation if orientation in TURNS else 1


def _stored_box(box: Sequence[float], orientation: int, width: int, height: int) -> tuple[float, float, float, float]:
    """Map a box of an image of this width and height, as it is shown, to the image as it is stored.

    So only S x S pixels need to be turned. Turning the decoded image instead, as `ImageOps.exif_transpose` does, takes
    3 to 13% more time for a JPEG file of 500 x 375 pixels. It also shifts a JPEG file that is decoded at a fraction of
    its size by up to a pixel, where that fraction is rounded up at what is then the left or top edge.
    """
    left, top, right, bottom = box
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom) if orientation < 5 else (top, left, bottom, right)


def _choose_scale(image: JpegImageFile, box: Sequence[float], size: int) -> int:
    """Choose the smallest scale that `MARGIN` allows, and return the number by which both sides are divided."""
    left, top, right, bottom = box
    largest = min(right - left, bottom - top) / (MARGIN * size)
    divisor = next((divisor for divisor in (8, 4, 2) if divisor <= largest), 1)
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    return divisor


def resize(image: Image.Image, box: Sequence[float], size: int, *, crop_first: bool) -> Image.Image:
    """Resize a part of an image to S x S. With `crop_first` pixels outside the box have no influence."""
    left, top, right, bottom = box
    if crop_first:
        x, y = math.floor(left), math.floor(top)
        image = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
        left, top, right, bottom = left - x, top - y, right - x, bottom - y
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
