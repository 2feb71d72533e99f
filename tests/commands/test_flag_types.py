"""One flag: how its text becomes a value."""

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from fire.core import FireError
from hypothesis import given
from hypothesis import strategies as st

from commands.line.types import Addresses, Fractions, Range, describe, did_you_mean, parse

COUNT = Annotated[int, Range(1, 100)]
SHARE = Annotated[float, Range(0, 1, open_high=True)]
DEPTH = Annotated[int, Range(10, 1000, step=6, rule="6m + 4")]
DEPTHS = tuple[DEPTH, ...]
ADDRESSES = Annotated[str, Addresses()]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (bool, "True", True),
        (bool, "true", True),
        (bool, "1", True),
        (bool, "no", False),
        (bool, "FALSE", False),
        (COUNT, "12", 12),
        (COUNT, "+12", 12),
        (COUNT | None, "None", None),
        (COUNT | None, "7", 7),
        (SHARE, "0.5", 0.5),
        (SHARE, ".5", 0.5),
        (SHARE, "1e-3", 1e-3),
        (SHARE, "0", 0.0),
        (DEPTH, "40", 40),
        (DEPTHS, "40", (40,)),
        (DEPTHS, "100,40", (100, 40)),
        (DEPTHS, "40, 100", (40, 100)),
        (Path, "123", Path("123")),
        (Path, "1e3", Path("1e3")),
        (Path, "a#b", Path("a#b")),
        (Path, "[1]", Path("[1]")),
        (Path | None, "none", None),
        (Literal["svhn", "digits"], "svhn", "svhn"),
        (ADDRESSES, "https://a.org", "https://a.org"),
        (ADDRESSES, "HTTP://[::1]:8000/~me/a%20b/,https://b", "HTTP://[::1]:8000/~me/a%20b/,https://b"),
        (Fractions, "0.5", "0.5"),
        (Fractions, ".3, 0.60,8e-1", "0.3,0.6,0.8"),
    ],
)
def test_text_becomes_the_value_that_a_user_means(annotation, text, value):
    result = parse("flag", annotation, text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (bool, "maybe"),
        (ADDRESSES, ""),
        (ADDRESSES, "a.org/data"),
        (ADDRESSES, "ftp://a.org"),
        (ADDRESSES, "file:///data"),
        (ADDRESSES, "https://"),
        (ADDRESSES, "https:///folder"),
        (ADDRESSES, "https://a.org:x/"),
        (ADDRESSES, "https://a.org:99999/"),
        (ADDRESSES, "https://[a/"),
        (ADDRESSES, "https://me:secret@a.org/"),
        (ADDRESSES, "https://a.org/?file=1"),
        (ADDRESSES, "https://a.org/#top"),
        (ADDRESSES, "https://a.org/a b"),
        (ADDRESSES, "https://a.org/\n"),
        (ADDRESSES, "https://a.org,"),
        (bool, ""),
        (COUNT, "0"),
        (COUNT, "101"),
        (COUNT, "12.0"),
        (COUNT, "1e2"),
        (COUNT, "None"),
        (COUNT, "True"),
        (COUNT, "1_000"),
        (COUNT, "9" * 5000),
        (SHARE, "1"),
        (SHARE, "-0.1"),
        (SHARE, "nan"),
        (SHARE, "inf"),
        (SHARE, "1e999"),
        (Path, ""),
        (Path, "a\0b"),
        (Literal["svhn", "digits"], "mnist"),
        (Fractions, ""),
        (Fractions, "0.5,"),
        (Fractions, "0.5 0.75"),
        (Fractions, "0.75,0.5"),
        (Fractions, "0.5,0.5"),
        (Fractions, "0,0.5"),
        (Fractions, "0.5,1"),
        (Fractions, "150,225"),
        (Fractions, "nan"),
        (Fractions, "0.5,x"),
    ],
)
def test_refusal_names_flag_text_and_what_is_allowed(annotation, text):
    with pytest.raises(FireError) as refusal:
        parse("flag", annotation, text)
    message = str(refusal.value)
    assert message.startswith(f"--flag is {text!r}, but must be {describe(annotation)}")


def test_refused_step_names_the_nearest_values_on_both_sides():
    with pytest.raises(FireError, match="the nearest are 40 and 46"):
        parse("depth", DEPTH, "43")


@pytest.mark.parametrize("text", ["", "40,", "40 100", "(40, 100)", "40,43", "None"])
def test_refused_list_names_the_part_that_is_wrong(text):
    with pytest.raises(FireError) as refusal:
        parse("depths", DEPTHS, text)
    wrong = next(part.strip() for part in text.split(",") if part.strip() not in ("40", "100"))
    assert str(refusal.value).startswith(f"--depths is {wrong!r}, but must be {describe(DEPTH)}")


def test_a_list_is_described_by_its_parts():
    assert describe(DEPTHS) == "a whole number, 6m + 4; several with commas between them"
    assert describe(DEPTHS | None) == "a whole number, 6m + 4; several with commas between them, or None"


def test_refused_choice_names_the_nearest_one():
    with pytest.raises(FireError, match=r"did you mean svhn\?"):
        parse("dataset", Literal["svhn", "digits"], "SVNH")


def test_no_name_is_suggested_where_none_is_near():
    assert did_you_mean("xyzzy", ["depth", "save"]) == ""


@given(st.text())
def test_any_text_is_a_value_in_range_or_refused(text):
    for annotation in (COUNT, SHARE, DEPTH, DEPTHS):
        try:
            value = parse("flag", annotation, text)
        except FireError:
            continue
        for number in value if annotation is DEPTHS else (value,):
            assert math.isfinite(number)
            assert 0 <= number <= 1000


@given(st.integers(1, 100))
def test_numbers_survive_the_way_through_text(number):
    assert parse("flag", COUNT, str(number)) == number
    assert parse("flag", SHARE, repr(number / 101)) == number / 101
