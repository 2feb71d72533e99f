"""Images in .npy files: each channel is cropped and resized as an image file's, and hostile files end in one line."""

import functools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.arrays import count_channels, decode_array
from data.crops import middle_crop, random_crop
from data.decode import decode
from data.errors import CorruptedData, DataError
from tests.support.array_files import array, bad_arrays, saved
from tests.support.synthetic_images import encoded, write

generated = settings(deadline=None, derandomize=True, max_examples=15)


def middle(path, size, channels):
    return decode_array(str(path), functools.partial(middle_crop, size=size), size=size, channels=channels)


@generated
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.sampled_from([8, 32, 72]),
    seed=st.none() | st.integers(0, 99),
)
def test_three_channels_are_those_of_an_image_file_with_the_same_pixels(tmp_path_factory, width, height, size, seed):
    folder = tmp_path_factory.mktemp("same")
    pixels = array(3, width=width, height=height)
    one = write(folder / "array.npy", saved(pixels))
    other = write(folder / "image.png", encoded(Image.fromarray(pixels), "PNG"))
    choose = functools.partial(middle_crop, size=size) if seed is None else functools.partial(random_crop, seed=seed)
    ours = decode_array(str(one), choose, size=size, channels=3)
    assert np.array_equal(ours, decode(str(other), choose, size=size))
    torch.from_numpy(ours)  # which takes no negative strides


@pytest.mark.parametrize("channels", [1, 2, 5, 40])
def test_an_array_of_the_right_size_keeps_its_values(channels, tmp_path):
    pixels = array(channels, width=32)
    assert np.array_equal(middle(write(tmp_path / "x.npy", saved(pixels)), 32, channels), pixels)


def test_other_orders_in_memory_and_other_versions_are_the_same_image(tmp_path):
    pixels = array(5, width=32)
    in_columns = write(tmp_path / "f.npy", saved(np.asfortranarray(pixels)))
    assert b"'fortran_order': True" in in_columns.read_bytes()
    assert np.array_equal(middle(in_columns, 32, 5), pixels)
    with open(tmp_path / "2.npy", "wb") as file:
        np.lib.format.write_array(file, pixels, version=(2, 0))
    assert np.array_equal(middle(tmp_path / "2.npy", 32, 5), pixels)


def test_a_matrix_is_one_channel(tmp_path):
    pixels = array(1, width=32)
    path = write(tmp_path / "x.npy", saved(pixels[..., 0]))
    assert count_channels(str(path)) == 1
    assert np.array_equal(middle(path, 32, 1), pixels)


@pytest.mark.parametrize("name", bad_arrays())
def test_what_is_no_image_of_these_channels_ends_in_one_line(name, tmp_path):
    contents, message = bad_arrays()[name]
    path = write(tmp_path / "x.npy", contents)
    with pytest.raises(CorruptedData) as error:
        middle(path, 32, 2)
    line = str(error.value)
    assert line.startswith(f"{path} cannot be read as an image: ")
    assert message in line
    assert "\n" not in line


def test_a_header_allocates_nothing(tmp_path):
    path = write(tmp_path / "x.npy", bad_arrays()["no array after a large header"][0])
    tracemalloc.start()
    try:
        with pytest.raises(CorruptedData):
            middle(path, 32, 2)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    for read in (functools.partial(middle, size=32, channels=2), lambda path: count_channels(str(path))):
        with pytest.raises(DataError, match=rf"{tmp_path}/none\.npy cannot be read: No such file"):
            read(tmp_path / "none.npy")


def test_a_folder_named_as_an_array_is_no_image(tmp_path):
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(DataError, match=r"x\.npy cannot be read: Is a directory"):
        middle(tmp_path / "x.npy", 32, 2)
