"""PNG files with transparent colours, metadata and missing rows, compared with values computed by hand."""

import struct
import zlib
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from data.crops import middle_crop
from data.decode import decode, prepare
from data.errors import CorruptedData
from data.png import without_metadata
from tests.support.synthetic_images import decode_whole, encoded, picture, png_chunk, png_file, write

WHITE = (255, 255, 255)


@pytest.fixture(autouse=True)
def prepared():
    prepare()


@pytest.fixture
def seen(tmp_path):
    """A function that decodes a file in its own size, 8 x 8."""
    return partial(decode_whole, tmp_path / "file.png", size=8)


def packed(values, bits):
    """Return rows of an image of 8 columns, with samples of 1 to 16 bits, the first in the highest bits."""
    row = "".join(f"{value:0{bits}b}" for value in values)
    return (b"\0" + int(row, 2).to_bytes(len(row) // 8)) * 8


def grey(bits, left, right, clear):
    """Return an image of two halves, with a transparent grey value."""
    before = png_chunk(b"tRNS", struct.pack(">H", clear))
    return png_file(packed([left] * 4 + [right] * 4, bits), shape=(8, 8), bits=bits, before=before)


# With a bits, v stands for 255 v / (2^a - 1): 255, 85, 17, 1 and 1/257 for a step of 1.
GREYS = [
    (1, 0, 1, 1, [0, 255]),
    (1, 0, 1, 0, [255, 255]),
    (1, 1, 0, 1, [255, 0]),
    (2, 1, 2, 2, [85, 255]),
    (2, 2, 1, 2, [255, 85]),
    (2, 1, 0, 3, [85, 0]),
    (4, 9, 5, 5, [153, 255]),
    (4, 9, 5, 9, [255, 85]),
    (4, 9, 5, 15, [153, 85]),
    (4, 10, 0, 10, [255, 0]),
    (8, 9, 5, 5, [9, 255]),
    (8, 9, 85, 5, [9, 85]),
    (16, 9 * 257, 5 * 257, 5 * 257, [9, 255]),
    (16, 9 * 257, 5 * 257, 5 * 257 + 1, [9, 5]),
]


@pytest.mark.parametrize(("bits", "left", "right", "clear", "expected"), GREYS)
def test_the_transparent_grey_value_shows_white(bits, left, right, clear, expected, seen):
    pixels = seen(grey(bits, left, right, clear))
    for columns, value in ((slice(0, 4), expected[0]), (slice(4, 8), expected[1])):
        assert (pixels[:, columns] == value).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bits_above_those_of_a_sample_do_not_count(bits, seen):
    """By the specification of transparent values."""
    pixels = seen(grey(bits, 0, 1, 1 + (1 << bits)))
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize(("bits", "low"), [(8, None), (16, 0), (16, 99)])
def test_the_transparent_colour_shows_white(bits, low, seen):
    """The upper 8 of 16 bits are shown."""

    def sample(channel):
        return channel if low is None else channel * 256 + low

    colours = [(10, 20, 30)] * 4 + [(200, 0, 7)] * 4
    samples = [sample(channel) for colour in colours for channel in colour]
    before = png_chunk(b"tRNS", struct.pack(">3H", *map(sample, (200, 0, 7))))
    pixels = seen(png_file(packed(samples, bits), shape=(8, 8), bits=bits, colour_type=2, before=before))
    assert pixels[0].tolist() == [[10, 20, 30]] * 4 + [[*WHITE]] * 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_colours_of_a_palette_show_white(bits, seen):
    palette = png_chunk(b"PLTE", bytes([10, 20, 30, 200, 0, 7]))
    for alphas, expected in ((b"\xff\x00", WHITE), (b"\xff\x33", (244, 204, 205)), (b"", (200, 0, 7))):
        before = palette + (png_chunk(b"tRNS", alphas) if alphas else b"")
        contents = png_file(packed([0] * 4 + [1] * 4, bits), shape=(8, 8), bits=bits, colour_type=3, before=before)
        assert seen(contents)[3].tolist() == [[10, 20, 30]] * 4 + [[*expected]] * 4  # 51 / 255 = 0.2, mixed with white


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 257)])
def test_images_with_a_channel_of_transparency(bits, scale, seen):
    rows = packed([0, 0, 0, 255 * scale] * 4, bits)
    contents = png_file(rows, shape=(8, 8), bits=bits, colour_type=4)
    assert seen(contents)[0].tolist() == [[*WHITE], [0, 0, 0]] * 4


MILLION = bytes(2_000_000)  # compressed to 2 kB
METADATA = {
    "large profile": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(MILLION)),
    "damaged profile": png_chunk(b"iCCP", b"p\0\0nonsense"),
    "profile of a new kind": png_chunk(b"iCCP", b"p\0\x07nonsense"),
    "profile with a wrong checksum": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x"))[:-1] + b"!",
    "large compressed text": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MILLION)),
    "text of a new kind": png_chunk(b"zTXt", b"Comment\0\x07nonsense"),
    "large international text": png_chunk(b"iTXt", b"Comment\0\x01\0en\0\0" + zlib.compress(MILLION)),
    "many texts": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000))) * 70,
    "large XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(MILLION)),
    "large EXIF text": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(MILLION)),
    "many EXIF texts": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(1_000_000))) * 70,
    "text without a name": png_chunk(b"tEXt", b""),
    "name that is no text": png_chunk(b"iTXt", b"\xff\xfe\0\0\0\0\0x"),
    "short gamma": png_chunk(b"gAMA", b"\0"),
    "short colours": png_chunk(b"cHRM", b"\0"),
    "short size": png_chunk(b"pHYs", b"\0"),
    "short intent": png_chunk(b"sRGB", b""),
    "damaged EXIF": png_chunk(b"eXIf", b"nonsense"),
    "EXIF with a wrong checksum": png_chunk(b"eXIf", b"nonsense")[:-1] + b"!",
    "short animation": png_chunk(b"acTL", b"\0"),
    "frames out of order": png_chunk(b"fcTL", bytes([0, 0, 0, 9]) + bytes(22)),
    "unknown": png_chunk(b"abCd", b"x"),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", METADATA)
def test_metadata_does_not_keep_pixels_from_being_read(name, place, seen):
    before, after = (METADATA[name], b"") if place == "before" else (b"", METADATA[name])
    contents = png_file(packed(range(8), 8), shape=(8, 8), before=before, after=after)
    assert seen(contents)[5, :, 0].tolist() == [*range(8)]


def test_metadata_that_would_become_large_never_does(monkeypatch):
    """Only text that may contain the orientation is decompressed, up to Pillow's limit."""
    decompressed = []
    real = zlib.decompressobj

    class Counted:
        def __init__(self):
            self.inner = real()

        def decompress(self, *arguments):
            decompressed.append(len(result := self.inner.decompress(*arguments)))
            return result

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    bomb = zlib.compress(bytes(20_000_000))
    chunks = [png_chunk(b"iCCP", b"p\0\0" + bomb), png_chunk(b"zTXt", b"Comment\0\0" + bomb)]
    plain = png_file(packed(range(8), 8), shape=(8, 8))
    assert without_metadata(png_file(packed(range(8), 8), shape=(8, 8), before=b"".join(chunks))) == plain
    assert decompressed == []
    chunks.append(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb))
    assert without_metadata(png_file(packed(range(8), 8), shape=(8, 8), before=b"".join(chunks))) == plain
    assert 0 < sum(decompressed) <= 2**20


def turned(place, chunk):
    contents = encoded(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), "PNG")
    end = -12 if place == "after" else 33
    return contents[:end] + chunk + contents[end:]


def exif_data():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    return exif.tobytes()


XMP = b'<x tiff:Orientation="3"/>'
HEX = b"\nexif\n%8d\n" % len(exif_data()) + exif_data().hex().encode() + b"\n"
TURNS = {
    "chunk": png_chunk(b"eXIf", exif_data().removeprefix(b"Exif\0\0")),
    "text": png_chunk(b"tEXt", b"Raw profile type exif\0" + HEX),
    "compressed text": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX)),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "compressed XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(XMP)),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", TURNS)
def test_an_image_is_turned_wherever_its_file_has_the_orientation(name, place, seen):
    assert seen(turned(place, TURNS[name]))[..., 0].flatten().tolist() == [*range(63, -1, -1)]


def test_a_chunk_before_the_header_does_not_matter(seen):
    contents = grey(4, 9, 5, 5)
    contents = contents[:8] + png_chunk(b"CgBI", bytes(4)) + contents[8:]
    assert seen(contents)[0, :, 0].tolist() == [153] * 4 + [255] * 4


def test_a_file_without_metadata_stays_as_it_is():
    contents = png_file(packed(range(8), 8), shape=(8, 8))
    assert without_metadata(contents) is contents


ROW = b"\0" + bytes([173] * 32)  # of the same colour as the mark, which must not matter
SHORT: dict[str, tuple[bytes, dict[str, Any]]] = {
    "grey": (ROW * 10, {}),
    "one row less": (ROW * 31, {}),
    "one bit": (b"\0\0\0\0\0" * 10, {"bits": 1}),
    "one bit, white": (b"\0\xff\xff\xff\xff" * 10, {"bits": 1}),
    "16 bits": ((b"\0" + bytes(64)) * 10, {"bits": 16}),
    "palette": (ROW * 10, {"colour_type": 3, "before": png_chunk(b"PLTE", bytes(768))}),
    "RGB": ((b"\0" + bytes(96)) * 10, {"colour_type": 2}),
    "RGB, 16 bits": ((b"\0" + bytes(192)) * 10, {"colour_type": 2, "bits": 16}),
    "with alpha": ((b"\0" + bytes(128)) * 10, {"colour_type": 6}),
    "grey with alpha": ((b"\0" + bytes(64)) * 10, {"colour_type": 4}),
    "interlaced": (bytes(5 * 4 + 5 * 4 + 9 * 4), {"interlaced": True}),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_file_with_fewer_rows_than_it_says_is_an_error(name, tmp_path):
    rows, options = SHORT[name]
    path = write(tmp_path / "short.png", png_file(rows, shape=(32, 32), **options))
    with pytest.raises(CorruptedData, match=r"short\.png cannot be read as an image: it is cut off: its pixels are"):
        decode(str(path), partial(middle_crop, size=32), size=32)


# Bytes of an image of 8 x 8 in 8 bits: of each pass its rows, each with a leading byte, by the figure in the standard.
ADAM7 = 2 + 2 + 3 + 2 * 3 + 2 * 5 + 4 * 5 + 4 * 9


@pytest.mark.parametrize("missing", [0, 1, 9, 40])
def test_an_interlaced_file_is_whole_with_all_bytes_of_its_passes(missing, seen):
    contents = png_file(bytes(ADAM7 - missing), shape=(8, 8), interlaced=True)
    if missing:
        with pytest.raises(CorruptedData, match=r"cut off|truncated"):
            seen(contents)
    else:
        assert (seen(contents) == 0).all()


@pytest.mark.parametrize(
    ("mode", "options"), [("L", {}), ("1", {}), ("RGB", {}), ("RGBA", {}), ("P", {}), ("I;16", {})]
)
@pytest.mark.parametrize("colour", [0, 173])
def test_whole_images_of_one_colour_are_read_whatever_it_is(colour, mode, options, seen):
    image = Image.new(
        mode, (8, 8), colour if len(Image.new(mode, (1, 1)).getbands()) == 1 else (173, 91, 47, 5)[: len(mode)]
    )
    seen(encoded(image, "PNG", **options))


def test_a_small_file_of_many_rows_is_decoded_for_its_error_only(tmp_path):
    """The header says 80 million pixels, and ten rows of them exist, in less than a hundred bytes."""
    contents = png_file(bytes(2 * 10), shape=(8, 10_000_000), bits=1)
    path = write(tmp_path / "tall.png", contents)
    assert len(contents) < 100
    with pytest.raises(CorruptedData, match="its pixels are 20,000,000 bytes, but it holds 20") as caught:
        decode(str(path), partial(middle_crop, size=8), size=8)
    assert "\n" not in str(caught.value)


def test_what_pillow_writes_is_read_as_pillow_reads_it(seen):
    image = picture(8, 8)
    assert np.array_equal(seen(encoded(image, "PNG", icc_profile=bytes(2_000_000))), np.asarray(image))
