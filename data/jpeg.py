"""Remove metadata that Pillow may refuse from JPEG files: segments in front of the pixels."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

START = b"\xff\xd8"
KIND_AND_LENGTH = struct.Struct(">HH")  # the length counts itself
APP0, APP1, APP14, APP15 = 0xFFE0, 0xFFE1, 0xFFEE, 0xFFEF
START_OF_SCAN = 0xFFDA

# The shortest bodies of the JFIF and Adobe segments, which say how colours are coded. Decoders ignore shorter ones.
SHORTEST = {APP0: 14, APP14: 12}


class Segment(NamedTuple):
    """A segment of a JPEG file: its kind, and the positions of its start, its body and its end."""

    kind: int
    start: int
    body: int
    end: int


def is_jpeg(contents: bytes) -> bool:
    """Return whether a file has the signature of a JPEG file."""
    return contents.startswith(START)


def without_metadata(contents: bytes) -> bytes:
    """Return a file without the segments that do not affect its pixels: if some are damaged, Pillow refuses the file.

    EXIF data and XMP stay, since they may contain the orientation.
    """
    parts, start = [], 0
    for segment in _segments(contents):
        if not _is_needed(segment):
            parts.append(contents[start : segment.start])
            start = segment.end
    return b"".join([*parts, contents[start:]]) if parts else contents


def _segments(contents: bytes) -> Iterator[Segment]:
    """Yield the segments in front of the pixels, up to the first that is not valid."""
    start = len(START)
    while start + KIND_AND_LENGTH.size <= len(contents):
        kind, length = KIND_AND_LENGTH.unpack_from(contents, start)
        if kind == 0xFFFF:  # a byte of padding
            start += 1
            continue
        if not 0xFFC0 <= kind < 0xFFFF or kind == START_OF_SCAN:
            return
        end = start + 2 + max(length, 2)
        yield Segment(kind, start, start + KIND_AND_LENGTH.size, end)
        start = end


def _is_needed(segment: Segment) -> bool:
    if not APP0 <= segment.kind <= APP15 or segment.kind == APP1:
        return True
    return segment.kind in SHORTEST and segment.end - segment.body >= SHORTEST[segment.kind]
