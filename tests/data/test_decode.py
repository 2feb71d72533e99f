"""Decoding one file, compared with torchvision's transforms of one image, and files with any damage."""

import contextlib
import functools
import io
import struct
import threading
import warnings
from importlib import resources
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torchvision import transforms
from torchvision.transforms import functional as transform

from data import decode as module
from data.crops import Crop, middle_crop, random_crop
from data.decode import TURNS, decode, prepare, suffixes
from data.errors import CorruptedData, DataError
from data.images import read_images
from data.threads import Budget
from tests.support.synthetic_images import bad_files, encoded, picture, write

generated = settings(deadline=None, derandomize=True, max_examples=25)


@pytest.fixture(autouse=True)
def prepared():
    prepare()


@pytest.fixture
def file(tmp_path):
    """A function that writes an image and returns its path."""

    def write_image(image, image_format="PNG", **options):
        return str(write(tmp_path / f"file.{image_format}", encoded(image, image_format, **options)))

    return write_image


def middle(path, size, **options):
    return decode(path, functools.partial(middle_crop, size=size), size=size, **options)


def whole(width, height):
    return Crop((0, 0, width, height))


def difference(ours, theirs):
    """Return the largest and the mean difference of two images, in steps of 255."""
    apart = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))
    return apart.max(), apart.mean()


@pytest.mark.parametrize("size", [8, 32, 64, 96, 224])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (32, 32), (40, 300), (7, 5), (257, 256)])
def test_evaluation_images_are_those_of_torchvision(size, shape, file):
    image = picture(*shape)
    shorter = size if size <= 64 else round(size * 256 / 224)
    usual = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size)])
    assert difference(middle(file(image), size), usual(image))[0] <= 2  # which rounds once more


@generated
@given(st.integers(0, 2**63 - 1), st.integers(80, 400), st.integers(80, 400))
def test_random_crops_are_cropped_and_resized_as_torchvision_does_it(seed, width, height):
    image, path = picture(width, height), "/made/up.png"
    left, top, right, bottom = random_crop(width, height, seed=seed).box
    expected = transform.resized_crop(image, top, left, bottom - top, right - left, [96, 96])
    if random_crop(width, height, seed=seed).flip:
        expected = ImageOps.mirror(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_read", lambda path: encoded(image, "PNG"))
        ours = decode(path, functools.partial(random_crop, seed=seed), size=96)
    assert difference(ours, expected)[0] == 0


def test_an_image_of_the_right_size_keeps_its_pixels(file):
    image = picture(32, 32)
    assert np.array_equal(middle(file(image), 32), np.asarray(image))
    assert middle(file(image), 32).dtype == np.uint8


def test_grey_removes_colours(file):
    image = picture(32, 32)
    ours = middle(file(image), 32, grey=True)
    assert ours.shape == (32, 32, 3)
    assert np.array_equal(ours[..., 0], np.asarray(image.convert("L")))
    assert (ours == ours[..., :1]).all()


# Corners of an image with 2 columns and 3 rows, clockwise from the top left, as each orientation shows them: the
# EXIF standard says which sides of the stored image are the top and the left side of the shown one.
SHOWN = {1: "ABCD", 2: "BADC", 3: "CDAB", 4: "DCBA", 5: "ADCB", 6: "DABC", 7: "CBAD", 8: "BCDA"}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_are_turned_as_their_exif_data_says(orientation, image_format, file):
    values = {"A": 250, "B": 170, "C": 90, "D": 10}
    grid = [["A", "B"], ["D", "C"]]
    stored = Image.new("L", (32, 48))
    for y in range(48):
        for x in range(32):
            stored.putpixel((x, y), values[grid[y >= 24][x >= 16]])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 100, "exif": exif} if image_format in ("JPEG", "WEBP") else {"exif": exif}
    seen = []

    def choose(width, height):
        seen.append((width, height))
        return whole(width, height)

    pixels = decode(file(stored.convert("RGB"), image_format, **options), choose, size=32)[..., 0].astype(int)
    assert seen == [(32, 48) if orientation < 5 else (48, 32)]
    corners = [pixels[4, 4], pixels[4, 27], pixels[27, 27], pixels[27, 4]]
    assert [min(values, key=lambda name: abs(values[name] - corner)) for corner in corners] == [*SHOWN[orientation]]


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff"])
def test_invalid_exif_data_turns_nothing(exif, file):
    image = picture(32, 32)
    assert difference(middle(file(image, "JPEG", quality=95, exif=exif), 32), image)[1] < 10


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", [(640, 480), (643, 481), (1111, 999)])
@pytest.mark.parametrize("size", [32, 64])
def test_a_jpeg_that_is_decoded_small_looks_like_one_that_is_not(shape, size, orientation, file, monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = file(picture(*shape), "JPEG", quality=92, exif=exif)
    choices = [middle_crop_of(size), *(functools.partial(random_crop, seed=seed) for seed in range(4))]
    small = [decode(path, choose, size=size) for choose in choices]
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    monkeypatch.setattr(module, "MARGIN", 10**6)
    full = [decode(path, choose, size=size) for choose in choices]
    for ours, exact in zip(small, full, strict=True):
        largest, mean = difference(ours, exact)
        assert largest <= 8
        assert mean < 1


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [32, 64])
def test_photos_that_are_decoded_small_look_like_photos(name, size, monkeypatch):
    """Real edges, from the two photos inside scikit-learn: a mean error of less than one step of 255."""
    path = str(resources.files("sklearn.datasets") / "images" / name)
    small = decode(path, middle_crop_of(size), size=size)
    monkeypatch.setattr(module, "MARGIN", 10**6)
    largest, mean = difference(small, decode(path, middle_crop_of(size), size=size))
    assert 0 < largest <= 20
    assert mean < 0.7


def middle_crop_of(size):
    return functools.partial(middle_crop, size=size)


@pytest.mark.parametrize(
    ("shape", "size", "divisor"),
    [
        ((640, 480), 32, 4),
        ((640, 511), 32, 4),
        ((640, 512), 32, 8),
        ((127, 300), 32, 1),
        ((128, 300), 32, 2),
        ((500, 375), 224, 1),
        ((4000, 3000), 224, 4),
    ],
)
def test_a_jpeg_is_decoded_no_smaller_than_twice_the_result(shape, size, divisor, file, monkeypatch):
    decoded = []
    to_rgb = module.to_rgb

    def note(image):
        decoded.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(module, "to_rgb", note)
    middle(file(Image.new("RGB", shape), "JPEG"), size)
    assert decoded == [tuple(-(-side // divisor) for side in shape)]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpegs_of_all_modes_are_decoded_small(mode, options, file):
    image = Image.new("RGB", (300, 280), (200, 200, 200)).convert(mode)
    pixels = middle(file(image, "JPEG", quality=95, **options), 32)
    assert np.abs(pixels.astype(int) - 200).max() <= 1


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_images_in_a_file_is_decoded(image_format, file):
    first, second = Image.new("RGB", (32, 32), "black"), Image.new("RGB", (32, 32), "white")
    assert middle(file(first, image_format, save_all=True, append_images=[second]), 32).max() == 0


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_one_error_that_names_it(name, tmp_path):
    path = write(tmp_path / name, bad_files()[name])
    with pytest.raises(CorruptedData) as caught:
        middle(str(path), 32)
    assert str(caught.value).startswith(f"{path} cannot be read as an image: ")
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_image_above_pillows_limit_says_so_and_one_below_does_not(tmp_path, file, monkeypatch):
    with pytest.raises(CorruptedData, match="it has more than 89,478,485 pixels; make it smaller"):
        middle(str(write(tmp_path / "bomb.png", bad_files()["bomb.png"])), 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1023)  # of which Pillow only warns
    with pytest.raises(CorruptedData, match="it has more than 1,023 pixels"):
        middle(file(picture(32, 32)), 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024)
    middle(file(picture(32, 32)), 32)


def test_warnings_of_pillow_are_not_shown(file):
    cut_off = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\0\0\0\xff\xff\0\0"  # a text beyond the end
    path = file(picture(32, 32), "JPEG", exif=cut_off)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        Image.open(path).getexif()
        assert len(shown) >= 1
        shown.clear()
        prepare()
        middle(path, 32)
    assert shown == []


def tiff_of(height, strips, rows_per_strip=4):
    """Return a grey TIFF file of 8 columns and some strips, by the specification; its header says `height`."""
    pixels = bytes(8 * rows_per_strip * strips)
    entries = [(256, 8), (257, height), (258, 8), (259, 1), (262, 1), (273, None), (277, 1), (278, rows_per_strip)]
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    lists = struct.pack(
        f"<{2 * strips}I",
        *range(start + 8 * strips, start + 8 * strips + len(pixels), 8 * rows_per_strip),
        *[8 * rows_per_strip] * strips,
    )
    body = struct.pack("<H", len(entries) + 1)
    for tag, value in [*entries, (279, None)]:
        place = {273: start, 279: start + 4 * strips}.get(tag, value)
        body += struct.pack("<HHII", tag, 4, strips if value is None else 1, place)
    return b"II*\0\x08\0\0\0" + body + bytes(4) + lists + pixels


@pytest.mark.parametrize("strips", [2, 3, 5])
def test_a_file_without_all_of_its_strips_is_an_error(strips, tmp_path):
    path = str(write(tmp_path / "strips.tiff", tiff_of(20, strips)))
    if strips == 5:
        assert (middle(path, 8) == 0).all()
        return
    with pytest.raises(CorruptedData, match="it is cut off: some of its strips or tiles are missing"):
        middle(path, 8)


class Slow:
    """An image whose decoding records how many pixels are being decoded at that moment, in all threads."""

    info: ClassVar[dict[str, object]] = {}
    format = "BMP"
    now, most, lock = 0, 0, threading.Lock()

    def __init__(self, contents):
        self.width = self.height = int(contents)
        self.size = (self.width, self.height)

    def load(self):
        with Slow.lock:
            Slow.now += self.width * self.height
            Slow.most = max(Slow.most, Slow.now)
        threading.Event().wait(0.002)  # others come in between
        with Slow.lock:
            Slow.now -= self.width * self.height

    def getexif(self):
        return {}


@pytest.mark.parametrize("with_budget", [True, False])
def test_images_that_threads_decode_together_stay_within_a_budget(with_budget, tmp_path, monkeypatch):
    """Images of 10 to 200 pixels a side: no more than 20,000 pixels at a time, or a single larger image."""
    total = 20_000 * module.BYTES_PER_PIXEL if with_budget else 10**12
    monkeypatch.setattr(module, "MEMORY", Budget(total))
    monkeypatch.setattr(Image, "open", lambda file, **_: Slow(file.read()))
    monkeypatch.setattr(module, "to_rgb", lambda image: Image.new("RGB", (image.width, image.height)))
    monkeypatch.setattr("data.images.count_threads", lambda: 8)
    monkeypatch.setattr(Slow, "most", 0)
    sides = [b"100", b"10", b"100", b"90", b"200", b"10", b"100", b"100"] * 3
    paths = [str(write(tmp_path / f"{i:02}.bmp", side)) for i, side in enumerate(sides)]
    (batch,) = read_images(
        paths,
        image_size=8,
        grey=False,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        batch_size=99,
        device=torch.device("cpu"),
    )
    assert (len(batch.paths), batch.errors) == (len(paths), [])
    assert (Slow.most == 200 * 200) == with_budget  # which is above the budget, and so alone
    assert module.MEMORY.reserved == 0


@pytest.mark.parametrize(
    ("image_format", "options", "pixels", "coefficients"),
    [("PNG", {}, 640 * 480, 0), ("JPEG", {}, 160 * 120, 0), ("JPEG", {"progressive": True}, 160 * 120, 640 * 480)],
)
def test_an_image_reserves_its_bytes_in_the_budget(image_format, options, pixels, coefficients, file, monkeypatch):
    """A JPEG file is decoded at a quarter of both sides; a progressive one is held whole, in 6 bytes a pixel."""
    taken = []
    reserve = Budget.reserve

    def note(self, amount):
        taken.append(amount)
        return reserve(self, amount)

    monkeypatch.setattr(Budget, "reserve", note)
    middle(file(picture(640, 480), image_format, **options), 60)
    assert taken == [24 * pixels + 6 * coefficients]


def test_files_that_cannot_be_opened_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png cannot be read: No such file"):
        middle(str(tmp_path / "nothing.png"), 32)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        middle(str(tmp_path), 32)


def test_memory_that_runs_out_is_no_fault_of_the_file(file, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        middle(file(picture(32, 32)), 32)


def test_suffixes_belong_to_formats_that_can_be_decoded():
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"} <= suffixes()
    assert not suffixes() & {".eps", ".ps", ".pdf", ".hdf", ".mpg", ".txt", ""}


@generated
@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"]), st.data())
def test_any_damage_gives_pixels_or_one_error(noise, image_format, data):
    contents = bytearray(encoded(picture(12, 9), image_format))
    start = data.draw(st.integers(0, len(contents)))
    contents[start : start + len(noise)] = noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_read", lambda path: bytes(contents))
        with contextlib.suppress(CorruptedData):
            assert middle("file", 8).shape == (8, 8, 3)


def test_every_turn_is_known_to_pillow():
    """The same turns by Pillow's own function."""
    image = picture(6, 4)
    for orientation, turn in TURNS.items():
        tagged = Image.open(io.BytesIO(encoded(image, "PNG", exif=exif_with(orientation))))
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(tagged)), np.asarray(image.transpose(turn)))


def exif_with(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_pixels_can_become_a_tensor(file):
    assert torch.from_numpy(np.stack([middle(file(picture(40, 32)), 32)])).shape == (1, 32, 32, 3)
