"""The program on streams that are not Python's own, closed or unread, and in a place that is gone."""

import errno
import inspect
import io
import os
import subprocess
import sys

import pytest

import demo
from commands.line.bind import bind
from commands.line.flags import Command, Settings, flag, settings
from commands.line.help import NO_TEXT, docstring_of
from commands.provenance import VERSION
from commands.settings import TrainSettings
from tests.support.application import ROOT, SMALL, command, read_results, run_here
from tests.support.synthetic_images import encoded, picture, write
from train.run.run_folder import FILES

DRY = [*SMALL, "--n_epochs=1", "--limit_batches=1", "--save=dry"]
COMMANDS = {
    "train": DRY,
    "evaluate": ["evaluate", "--save=run"],
    "predict": ["predict", "--save=run", "a.png", "bad.png"],
    "compare": ["compare", "run"],
    "benchmark": ["benchmark", "--depth=10", "--growth_rate=2", "--batch_size=2", "--rounds=0"],
    "help": ["--help"],
}


def started(*words, line='"$@"', folder, **variables):
    """Start Python, or a line of the shell around it, in a process of its own."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    shell = ["sh", "-c", line, "sh", *words]
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_work_without_stdout_and_stderr(name, here, monkeypatch):
    write(here / "a.png", encoded(picture(32, 32), "PNG"))
    write(here / "bad.png", b"")
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert run_here(*COMMANDS[name]) == (1 if name == "predict" else 0)


def test_a_run_that_began_without_streams_leaves_what_it_should(tmp_path):
    result = started(*command(*DRY), line='"$@" <&- >&- 2>&-', folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {path.name for path in (tmp_path / "dry").iterdir()} == set(FILES)
    assert len(read_results(tmp_path / "dry")) == 1


def test_help_on_a_stream_that_is_not_python_s_own_is_the_same(tmp_path):
    program = (
        "import io, runpy, sys\n"
        "kept, sys.stdout = sys.stdout, io.StringIO()\n"
        f"sys.argv = ['demo.py', '--help']; sys.path.insert(0, {str(ROOT)!r})\n"
        f"try: runpy.run_path({str(ROOT / 'demo.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: kept.write(f'{end.code}\\n{sys.stdout.getvalue()}')\n"
    )
    result = started(sys.executable, "-c", program, folder=tmp_path)
    code, _, page = result.stdout.partition("\n")
    assert (code, result.stderr) == ("0", "")
    assert page == started(*command("--help"), folder=tmp_path).stdout


def test_help_needs_no_docstrings_and_no_path_of_the_program(tmp_path):
    line = [sys.executable, "-OO", str(ROOT / "demo.py"), "predict", "--help"]
    result = started(*line, folder=tmp_path, PYTHONSAFEPATH="1", COLUMNS="70")
    assert (result.returncode, result.stderr) == (0, "")
    assert {*inspect.getdoc(demo.COMMANDS["predict"].run).split()} <= {*result.stdout.split()}
    assert 60 < max(map(len, result.stdout.splitlines())) <= 70


def test_a_text_that_is_nowhere_is_said_to_be_missing(capsys):
    exec("def look(settings): pass", namespace := {})
    assert docstring_of(namespace["look"]) == NO_TEXT

    @settings
    class LookSettings(Settings):
        save: bool = flag("Whether to save.")

    with pytest.raises(SystemExit) as end:
        bind(Command(LookSettings, namespace["look"]), ["--help"], name="x")
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert "python -OO leaves it out" in page
    assert "--save=SAVE\n        Whether to save.\n        Required. Takes True or False." in page


@pytest.mark.parametrize("columns", ["60", "100"])
def test_help_is_as_wide_as_asked_for(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert run_here("--help") == 0
    assert int(columns) - 10 < max(map(len, capsys.readouterr().out.splitlines())) <= int(columns)


@pytest.mark.parametrize("words", [["--version"], ["evaluate", "--version"], ["--depth=43", "--version"]])
def test_the_version_is_that_of_the_code_and_of_torch(words, capsys):
    import torch

    assert run_here(*words) == 0
    out, error = capsys.readouterr()
    line = {"cwd": ROOT, "capture_output": True, "text": True}
    revision = subprocess.run(["git", "rev-parse", "HEAD"], **line).stdout.strip() or "not known"
    assert out.startswith(f"demo.py {VERSION}: git revision {revision}")
    assert f", torch {torch.__version__.partition('+')[0]}" in out
    assert (out.count("\n"), error) == (1, "")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--weight_decay=1"], "did you mean --wd?"),
        (["--learning-rate=1"], "did you mean --lr?"),
        (["--epochs=3"], "did you mean --n_epochs?"),
        (["--Batch-Size=3"], "did you mean --batch_size?"),
        (["--amp"], "did you mean --precision?"),
        (["--output=x"], "did you mean --save?"),
        (["--out=x"], "did you mean --save?"),
        (["--arch=x"], "did you mean --network?"),
        (["--dropout=0.2"], "did you mean --drop_rate?"),
        (["--optimizer=adam"], "the optimizer is SGD with Nesterov momentum; --lr, --momentum and --wd set it"),
        (["--opt=adam"], "the optimizer is SGD"),
        (["--device=cuda"], "the variable CUDA_VISIBLE_DEVICES chooses the GPUs"),
        (["--num-workers=4"], "as many threads read images as there are CPUs"),
        (["export", "--out=x"], "did you mean --output?"),
        (["evaluate", "--output=x"], "did you mean --csv?"),
        (["predict", "a", "--topk=3"], "did you mean --top?"),
    ],
)
def test_names_of_other_programs_get_a_hint(words, hint, capsys):
    assert run_here(*words) == 2
    error = capsys.readouterr().err
    assert "unknown flag " in error
    assert f"; {hint}" in error


def test_every_name_of_other_programs_is_of_a_flag_that_exists_and_is_none_itself():
    from commands.line.synonyms import NAMES, WITHOUT_FLAG

    assert NAMES.keys() <= {flag for command in demo.COMMANDS.values() for flag in command.settings.flags()}
    of_train = {*TrainSettings.flags()}
    others = {name for names in [*NAMES.values(), *WITHOUT_FLAG] for name in names.split()}
    assert others & of_train == set()


@pytest.mark.parametrize("words", [DRY, ["evaluate", "--save=run"], ["compare", "a", "b"]])
def test_a_working_directory_that_is_gone_is_one_line(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_here(*words) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "error: the working directory cannot be used: No such file or directory; change to a folder" in error
    assert run_here("--help") == 0


class Unread(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("name", ["evaluate", "compare", "benchmark", "train", "help"])
def test_output_that_nobody_reads_ends_every_command_without_a_word(name, here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Unread())
    assert run_here(*COMMANDS[name]) == 141
    assert capsys.readouterr().err == ""


# A package that the program imports before it is ready, in the place of Fire: Ctrl-C comes meanwhile.
INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"


def test_ctrl_c_during_the_imports_ends_without_a_traceback(tmp_path):
    write(tmp_path / "early/fire.py", INTERRUPTED.encode())
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'early')!r})"
    write(tmp_path / "early/sitecustomize.py", program.encode())
    for package in ("commands", "data", "models", "train"):
        (tmp_path / "early" / package).symlink_to(ROOT / package)
    write(tmp_path / "early/demo.py", (ROOT / "demo.py").read_bytes())
    line = '"$@"; echo $?'
    result = started(sys.executable, "early/demo.py", "--help", line=line, folder=tmp_path)
    assert (result.stdout, result.stderr.strip()) == ("130\n", "")
