"""Images of all modes become the colours that a viewer shows on a white page, computed by hand."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode import to_rgb
from tests.support.synthetic_images import encoded, picture

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def reread(image, image_format="PNG", **options):
    read = Image.open(io.BytesIO(encoded(image, image_format, **options)))
    read.load()
    return read


def pixels_of(image):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert rgb.size == image.size
    return [tuple(pixel) for pixel in np.asarray(rgb).reshape(-1, 3).tolist()]


def row(mode, *pixels):
    image = Image.new(mode, (len(pixels), 1))
    for x, value in enumerate(pixels):
        image.putpixel((x, 0), value)
    return image


def test_rgb_stays_as_it_is():
    image = picture(5, 4)
    assert to_rgb(image) is image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (row("1", 0, 1), [BLACK, WHITE]),
        (row("L", 0, 7, 255), [BLACK, (7, 7, 7), WHITE]),
        (row("RGBA", (*RED, 255), (*RED, 0), (*BLUE, 51)), [RED, WHITE, (204, 204, 255)]),  # 51 / 255 = 0.2
        (row("LA", (0, 255), (0, 0), (0, 51), (100, 255)), [BLACK, WHITE, (204,) * 3, (100,) * 3]),
        (row("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)), [WHITE, RED, BLACK]),
        (row("HSV", (0, 255, 255), (85, 255, 255)), [RED, GREEN]),
        (row("YCbCr", (255, 128, 128), (0, 128, 128)), [WHITE, BLACK]),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_pixels_of_a_mode(image, expected):
    assert pixels_of(image) == expected


def palette_picture():
    image = row("P", 0, 1, 2)
    image.putpalette([*RED, *GREEN, *BLUE])
    return image


def test_palettes_with_and_without_transparent_colours():
    assert pixels_of(palette_picture()) == [RED, GREEN, BLUE]
    assert pixels_of(reread(palette_picture())) == [RED, GREEN, BLUE]
    assert pixels_of(reread(palette_picture(), transparency=1)) == [RED, WHITE, BLUE]
    half = reread(palette_picture(), transparency=bytes([255, 51, 0]))
    assert pixels_of(half) == [RED, (204, 255, 204), WHITE]
    assert pixels_of(reread(palette_picture(), "GIF", transparency=2)) == [RED, GREEN, WHITE]


@pytest.mark.parametrize(
    ("image", "key", "expected"),
    [
        (row("RGB", RED, GREEN), GREEN, [RED, WHITE]),
        (row("L", 0, 7), 7, [BLACK, WHITE]),
        (row("1", 0, 1), 0, [WHITE, WHITE]),
        (row("I;16", 0, 300), 0, [WHITE, (1, 1, 1)]),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_a_colour_that_a_file_calls_transparent_is_white(image, key, expected):
    assert pixels_of(reread(image, transparency=key)) == expected


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_grey_values_of_16_bits_keep_their_range(image_format):
    """65,535 = 255 * 257, so that 257 v becomes v. From half a step on, values are rounded up."""
    values = np.array([[0, 128, 129, 257, 25700, 65535]], dtype=np.uint16)
    read = reread(Image.fromarray(values), image_format)
    assert read.mode.startswith("I")
    assert pixels_of(read) == [(v, v, v) for v in (0, 0, 1, 1, 100, 255)]


def test_big_endian_grey_values():
    values = Image.frombytes("I;16B", (2, 1), bytes([100, 100, 255, 255]))
    assert pixels_of(values) == [(100, 100, 100), WHITE]


@pytest.mark.parametrize("values", [[[0.0, 1.0]], [[-1, 5]], [[0, 65536]]])
def test_values_of_unknown_range_are_refused(values):
    image = Image.fromarray(np.array(values, dtype=np.float32 if isinstance(values[0][0], float) else np.int32))
    with pytest.raises(ValueError, match="nothing says which are black and white"):
        to_rgb(image)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(*[st.integers(0, 255)] * 4), min_size=1, max_size=8))
def test_transparency_mixes_with_white(pixels):
    expected = [[channel * a / 255 + 255 * (1 - a / 255) for channel in rgb] for *rgb, a in pixels]
    ours = np.array(pixels_of(row("RGBA", *pixels)), dtype=float)
    assert np.abs(ours - np.array(expected)).max() <= 1
    assert all(tuple(mine) == pixel[:3] for mine, pixel in zip(ours.tolist(), pixels, strict=True) if pixel[3] == 255)
