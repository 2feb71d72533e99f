"""Tables as text, Markdown, LaTeX and CSV, and texts short enough for them."""

import re
import string

from hypothesis import example, given, settings
from hypothesis import strategies as st

from commands.tables import aligned, latex, markdown, plain, to_csv

# What LaTeX sets for these, apart from commands of one special character.
IN_LATEX = {
    "textbackslash{}": "\\",
    "textasciitilde{}": "~",
    "textasciicircum{}": "^",
    "textless{}": "<",
    "textgreater{}": ">",
    "textbar{}": "|",
}
cells = st.text(string.ascii_letters + string.digits + string.punctuation, min_size=1, max_size=12)


def set_by_latex(text):
    """The characters that LaTeX sets for the text of a cell; fails where one would have another meaning."""
    text = text.replace("$\\pm$", "±")
    command = r"\\(text[a-z]+\{\}|[&%$#_{}])|\{([\[*]?)\}|([^\\&%$#_{}~^<>|])"
    parts = list(re.finditer(command, text))
    assert "".join(part[0] for part in parts) == text
    assert "--" not in text
    return "".join(IN_LATEX.get(part[1], part[1]) if part[1] else (part[2] or part[3] or "") for part in parts)


@settings(max_examples=100, deadline=None)
@given(st.lists(cells, min_size=2, max_size=2))
@example(["---lr--", "[*]"])
@example(["4.69 ± 0.10", r"\n\\"])
def test_latex_sets_the_characters_of_each_cell(row):
    begin, _, _, _, line, _, end = latex([["run", "error"], row])
    assert (begin, end) == (r"\begin{tabular}{lr}", r"\end{tabular}")
    first, second = re.split(r"(?<!\\) ?& ?(?!$)", line.strip().removesuffix(r" \\"))
    assert [set_by_latex(first), set_by_latex(second)] == row
    assert not first.startswith(("[", "*"))  # after the end of a row these are its arguments


@settings(max_examples=100, deadline=None)
@given(st.lists(cells, min_size=2, max_size=2))
@example(["a\\", "|b|"])
def test_markdown_shows_the_characters_of_each_cell(row):
    heading, rule, line = markdown([["run", "error"], row])
    assert (heading, rule) == ("| run | error |", "| :--- | ---: |")
    shown = re.findall(r"(?<=\| )((?:\\.|[^\\|`*_<>\[\]~&$#!])+)(?= \|)", line)
    assert [re.sub(r"\\(.)", r"\1", cell) for cell in shown] == row


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
