"""JPEG files with damaged metadata, which other programs ignore, and the metadata that is kept."""

import io
import struct
from functools import partial

import numpy as np
import pytest
from PIL import ExifTags, Image, UnidentifiedImageError

from data.decode import prepare
from data.jpeg import without_metadata
from tests.support.synthetic_images import decode_whole, encoded, picture


@pytest.fixture(autouse=True)
def prepared():
    prepare()


@pytest.fixture
def seen(tmp_path):
    return partial(decode_whole, tmp_path / "file.jpg", size=16)


def segment(number, body):
    return struct.pack(">HH", 0xFFE0 + number, len(body) + 2) + body


PLAIN = encoded(picture(16, 16), "JPEG")


def with_segment(part):
    return PLAIN[:2] + part + PLAIN[2:]


DAMAGED = {
    "short JFIF": segment(0, b"JFIF\0"),
    "short profile": segment(2, b"ICC_PROFILE\0\0"),
    "damaged Photoshop data": segment(13, b"Photoshop 3.0\0008BIM\0\0"),
    "short Adobe data": segment(14, b"Adobe\0"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_metadata_does_not_keep_pixels_from_being_read(name, seen):
    contents = with_segment(DAMAGED[name])
    with pytest.raises(UnidentifiedImageError):  # if it is not left out
        Image.open(io.BytesIO(contents))
    assert np.array_equal(seen(contents), seen(PLAIN))


def test_a_file_is_the_same_without_its_profile():
    assert without_metadata(with_segment(segment(2, b"ICC_PROFILE\0\x01\x01x"))) == PLAIN
    assert without_metadata(PLAIN) is PLAIN


@pytest.mark.parametrize("options", [{"icc_profile": b"x" * 100_000}, {"comment": b"x" * 60_000}])
def test_the_orientation_stays(options, seen):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    upright = seen(encoded(picture(16, 16), "JPEG"))
    assert np.array_equal(seen(encoded(picture(16, 16), "JPEG", exif=exif, **options)), upright[::-1, ::-1])


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_the_coding_of_colours_stays(mode, seen):
    """CMYK is inverted where Adobe's segment says so."""
    image = Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(seen(encoded(image, "JPEG", quality=95, icc_profile=b"x")) - expected).max() <= 3


@pytest.mark.parametrize("end", range(2, 40))
def test_any_end_is_followed_no_further(end):
    contents = with_segment(segment(2, b"ICC_PROFILE\0\x01\x01x"))[:end]
    assert PLAIN.startswith(without_metadata(contents)) or without_metadata(contents) == contents
