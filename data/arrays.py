"""Decode one image from a .npy file, which holds any number of channels, to S x S pixels."""

import os
from collections.abc import Callable
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from data.crops import Crop
from data.decode import MEMORY, errors_of, resize
from data.errors import DataError

SUFFIX = ".npy"
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # others are for fields with names
LARGEST = 3 * (Image.MAX_IMAGE_PIXELS or 0)  # values; as many as the largest image file that is accepted


class Header(NamedTuple):
    """What a .npy file says of its array.

    Attributes:
        shape: Height, width and channels.
        order: "C", or "F" if the first index is the one that changes fastest.
    """

    shape: tuple[int, int, int]
    order: Literal["C", "F"]

    @property
    def size(self) -> int:
        """Bytes of the array."""
        height, width, channels = self.shape
        return height * width * channels


def is_array(path: str) -> bool:
    """Return whether a file is named as an array."""
    return path.lower().endswith(SUFFIX)


def decode_array(path: str, choose: Callable[[int, int], Crop], *, size: int, channels: int) -> np.ndarray:
    """Read an array, crop it and resize the crop to S x S, each channel as `decode` does it.

    Args:
        path: Path of a .npy file with uint8 (H, W, C), or (H, W) for a single channel.
        choose: Takes width and height of the image, and returns the crop.
        size: Height and width S of the result.
        channels: C.

    Returns:
        uint8 (S, S, C).

    Raises:
        CorruptedData: If the file is damaged, too large, or holds another array.
        DataError: If it cannot be opened.
    """
    try:
        with open(path, "rb") as file, errors_of(path):
            header = _read_header(file)
            if header.shape[2] != channels:
                raise ValueError(f"it has {_count(header.shape[2])}, and not {channels}")
            with MEMORY.reserve(2 * header.size):  # the array, and the copies of one channel at a time
                pixels = np.frombuffer(file.read(header.size), np.uint8).reshape(header.shape, order=header.order)
                return _crop_and_resize(pixels, choose, size=size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def count_channels(path: str) -> int:
    """Return the number of channels of the array in a .npy file.

    Raises:
        CorruptedData: If the file holds no image.
        DataError: If it cannot be opened.
    """
    try:
        with open(path, "rb") as file, errors_of(path):
            return _read_header(file).shape[2]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_header(file: BinaryIO) -> Header:
    """Read the header, and make sure that the rest of the file is the array: nothing is allocated by what it says.

    Raises:
        ValueError: If the array is no image, or the file holds more or less than the array.
    """
    version = npy.read_magic(file)
    if version not in READERS:
        raise ValueError(f"its format is {version[0]}.{version[1]}, and not 1.0 or 2.0")
    try:
        shape, is_fortran, dtype = READERS[version](file)
    except Exception as error:  # Python's parser and tokenizer raise errors of many types
        raise ValueError("its header is damaged") from error
    if dtype != np.uint8:
        raise ValueError(f"its values are {dtype}, and not uint8; scale them to 0..255 first")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"its shape is {shape}, and not (height, width, channels)")
    height, width, channels, *_ = (*shape, 1)
    header = Header((height, width, channels), "F" if is_fortran else "C")
    if header.size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} values; make it smaller")
    found = os.fstat(file.fileno()).st_size - file.tell()
    if found != header.size:
        raise ValueError(f"its array is {header.size:,} bytes, but it holds {found:,}")
    return header


def _count(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _crop_and_resize(pixels: np.ndarray, choose: Callable[[int, int], Crop], *, size: int) -> np.ndarray:
    """Crop and resize an image (H, W, C) to (S, S, C)."""
    height, width, channels = pixels.shape
    crop = choose(width, height)
    bands = (Image.fromarray(pixels[..., channel]) for channel in range(channels))
    result = np.stack([np.asarray(resize(band, crop.box, size, crop_first=crop.crop_first)) for band in bands], 2)
    return np.ascontiguousarray(result[:, ::-1]) if crop.flip else result
