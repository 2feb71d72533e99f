"""Text that may come from anybody, on whatever the environment gives for a terminal."""

import ast
import errno
import io
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.application import ROOT
from train import terminal
from train.processes import ProcessGroup
from train.terminal import Bar, is_terminal, printable, progress, say, say_error, warn, width


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, é, 日本", "plain text, é, 日本"),
        ("a\x1b[2J\x1b]0;title\x07b", r"a\x1b[2J\x1b]0;title\x07b"),
        ("nl\nerror: fake.png", r"nl\nerror: fake.png"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("caf\udce9", r"caf\udce9"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("one\x85two\u2028three\u200b", r"one\x85two\u2028three\u200b"),
        ("\U000e0041", r"\U000e0041"),
        (r"back\slash 'quoted'", r"back\slash 'quoted'"),
    ],
)
def test_what_is_not_printable_is_escaped_as_in_python(text, expected):
    assert printable(text) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters()), max_size=4))
def test_any_texts_are_as_many_lines_that_a_terminal_only_shows(capsys, texts):
    for speak, stream in ((say, "out"), (say_error, "err")):
        speak(*texts)
        *lines, end = getattr(capsys.readouterr(), stream).split("\n")
        assert (len(lines), end) == (len(texts), "")
        assert all(line.isprintable() for line in lines)


class Least:
    """As little of a stream as can be written to."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Failing(Least):
    """A stream that takes nothing."""

    def __init__(self, number=errno.EIO):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def test_lines_go_to_whatever_can_be_written_to(monkeypatch):
    for stream, name in ((Least(), "stdout"), (Least(), "stderr")):
        monkeypatch.setattr(sys, name, stream)
    say("one", "two")
    say_error("three")
    assert (sys.stdout.text, sys.stderr.text) == ("one\ntwo\n", "three\n")


def test_what_an_encoding_lacks_is_escaped(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, "latin-1", errors="strict"))
    say("é 日 \udce9")
    assert content.getvalue() == rb"\xe9 \u65e5 \udce9".replace(rb"\xe9", b"\xe9") + b"\n"


@pytest.mark.parametrize("stream", [None, closed()])
def test_without_a_stream_nothing_is_said(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    say("one")
    say_error("two")
    terminal.alert("three")
    with Bar("four", 5) as bar:
        bar.advance(1)
        bar.note("five")


def test_output_that_fails_is_an_error_and_a_warning_that_fails_is_none(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing())
    monkeypatch.setattr(sys, "stderr", Failing())
    say_error("a warning")
    with pytest.raises(OSError, match="Input/output error"):
        say("a result")


def test_a_signal_can_be_noted_where_the_terminal_has_gone(monkeypatch):
    tried = []

    def gone(descriptor, content):
        tried.append((descriptor, content))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    terminal.alert("SIGHUP\x1b")
    assert tried == [(2, b"\nSIGHUP\\x1b\n")]


def test_only_an_open_stream_that_says_so_is_a_terminal():
    class Terminal(Least):
        def isatty(self):
            return True

    for stream in (None, object(), io.StringIO(), closed(), io.BytesIO()):
        assert is_terminal(stream) is False
    assert is_terminal(Terminal()) is True


def test_only_the_first_process_of_several_prints_results_and_bars(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    say("a result")
    list(progress([1, 2], "a bar"))
    say_error("an error of this process alone")
    assert capsys.readouterr() == ("", "an error of this process alone\n")


def test_lines_stand_on_their_own_while_a_bar_is_shown(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    items = []
    for item in progress((i for i in range(3)), "name\x1b[2J", total=3):
        items.append(item)
        say_error(f"line {item}")
    error = capsys.readouterr().err
    assert items == [0, 1, 2]
    assert r"name\x1b[2J:" in error
    for item in items:
        assert f"\rline {item}\n" in error  # what is before it on the line has been cleared
    say_error("after the bar")
    assert capsys.readouterr().err == "after the bar\n"


@pytest.mark.parametrize(("columns", "expected"), [("30", 60), ("77", 77), ("500", 100), ("", 100)])
def test_text_is_as_wide_as_the_terminal_within_limits(columns, expected, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "__stdout__", None)
    assert width() == expected


CLOSED = """
import os, sys
from train.terminal import open_streams
open_streams()
assert None not in (sys.stdin, sys.stdout, sys.stderr)
file = open("new", "wb", buffering=0)
assert file.fileno() > 2, file.fileno()
for descriptor in (1, 2):
    os.write(descriptor, b"from a library")
print("more")
print("more", file=sys.stderr)
assert sys.stdin.read() == ""
assert os.system("true") == 0
file.write(b"mine")
"""


@pytest.mark.parametrize("closing", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_stream_that_was_closed(closing, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    line = ["sh", "-c", f'"$0" -c "$1" {closing}', sys.executable, CLOSED]
    streams = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    result = subprocess.run(line, cwd=tmp_path, env=environment, **streams)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "new").read_bytes() == b"mine"


STREAMS = {"stdin", "stdout", "stderr"}
PRINTING = {"print", "print_exc", "print_exception", "print_stack"}
SOURCES = [path for folder in ("commands", "train", "data") for path in sorted((ROOT / folder).rglob("*.py"))]
PRINTS: dict[str, set[str]] = {}  # files that may print by themselves


def ways_to_print(source):
    """How a source reaches a stream past `train.terminal`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in PRINTING:
                yield name
            case ast.Call(func=ast.Attribute(attr="write"), args=[ast.Constant(value=1 | 2), *_]):
                yield "write"
            case ast.Attribute(value=ast.Name(id="sys"), attr=name) if name in STREAMS:
                yield name
            case ast.Import() | ast.ImportFrom() if "tqdm" in ast.unparse(node):
                yield "tqdm"


def test_ways_to_print_are_seen():
    source = "import tqdm\nprint(1)\nsys.stdout.flush()\nos.write(2, b'')\nos.write(lock, b'')\ntraceback.print_exc()"
    assert sorted(ways_to_print(source)) == ["print", "print_exc", "stdout", "tqdm", "write"]


@pytest.mark.parametrize("path", [ROOT / "demo.py", *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_but_the_terminal_module_prints(path):
    ways = set(ways_to_print(path.read_text()))
    if path == ROOT / "train/terminal.py":
        assert ways == {"write", "tqdm", "stdout", "stderr"}
    else:
        assert ways <= PRINTS.get(str(path.relative_to(ROOT)), set())


def test_a_warning_is_a_line_of_the_first_process(capsys, monkeypatch):
    warn("the disk is slow\x1b[2J")
    monkeypatch.setattr("train.terminal.current_group", lambda: ProcessGroup(rank=1, world_size=2))
    warn("another one")
    assert capsys.readouterr() == ("", "warning: the disk is slow\\x1b[2J\n")
