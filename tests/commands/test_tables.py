"""Tables as text and CSV, and texts short enough for them."""

from hypothesis import given
from hypothesis import strategies as st

from commands.tables import aligned, plain, to_csv


def test_the_first_column_is_aligned_to_the_left_and_others_to_the_right():
    assert aligned([["run", "error"], ["longer", "-"]]) == "run     error\nlonger      -"


@given(st.text(), st.integers(5, 30))
def test_plain_text_is_one_line_of_limited_length(text, longest):
    shown = plain(text, longest=longest)
    assert shown.isprintable()
    assert len(shown) <= longest
    if text.isprintable():
        assert len(shown) == min(len(text), longest)
        assert shown == text or (shown[0], shown[-1]) == (text[0], text[-1])


def test_a_lone_surrogate_that_is_no_byte_is_escaped():
    assert to_csv([{"a": "\ud800x\udcff", "b": None}]) == b"a,b\n\\ud800x\xff,\n"
    assert to_csv([], columns=["a", "b"]) == b"a,b\n"
