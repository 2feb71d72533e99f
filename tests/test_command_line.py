"""Whole command lines: what is bound, what is refused, and that a refused line does nothing."""

import inspect
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import demo
from tests.application import ROOT, command, run_apart
from train import flags


def bind(*words: str) -> dict:
    return flags.bind(demo.train, [*words], name="demo.py")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--save", "s"], {}),
        (["--save=s", "--depth", "100"], {"depth": 100}),
        (["--save=s", "--efficient", "False"], {"efficient": False}),
        (["--save=s", "--efficient", "false"], {"efficient": False}),
        (["--save=s", "--efficient=0"], {"efficient": False}),
        (["--save=s", "--efficient"], {"efficient": True}),
        (["--save=s", "--no-efficient"], {"efficient": False}),
        (["--save=s", "--noefficient"], {"efficient": False}),
        (["--save=s", "--no_resume", "--depth=16"], {"resume": False, "depth": 16}),
        (["--save=s", "--growth-rate", "24"], {"growth_rate": 24}),
        (["--save=s", "--data", "folder#1"], {"data": Path("folder#1")}),
        (["--save=s", "--data", "(1, 2)"], {"data": Path("(1, 2)")}),
        (["--save=s", "--seed", "None"], {"seed": None}),
        (["--save=s", "--augment", "None"], {"augment": None}),
        (["--save=s", "--lr", "1e-2", "--wd=0"], {"lr": 0.01, "wd": 0.0}),
    ],
)
def test_line_is_bound_as_a_user_means_it(words, expected):
    assert bind(*words) == {"save": Path("s"), **expected}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("train", [])),
        (["--save", "s"], ("train", ["--save", "s"])),
        (["train", "--save", "s"], ("train", ["--save", "s"])),
        (["benchmark", "--depth", "10"], ("benchmark", ["--depth", "10"])),
        (["--save", "benchmark"], ("train", ["--save", "benchmark"])),
        (["-"], ("train", ["-"])),
    ],
)
def test_the_first_word_chooses_the_command_unless_it_is_a_flag(words, expected):
    assert flags.choose(demo.COMMANDS, words, name="demo.py") == expected


def test_save_is_a_path_whatever_it_looks_like():
    for name in ("123", "1e3", "True", "None", "a=b"):
        assert bind(f"--save={name}") == {"save": Path(name)}


REFUSED = [
    ([], "--save is needed; see --help"),
    (["--save"], "--save needs a value: a path"),
    (["--save", "--depth", "10"], "--save needs a value: a path"),
    (["--save", ""], "--save is '', but must be a path"),
    (["--save=s", "--deph", "10"], "unknown flag '--deph'; did you mean --depth?"),
    (["--save=s", "--Depth", "10"], "unknown flag '--Depth'; did you mean --depth?"),
    (["--save=s", "--growth", "12"], "unknown flag '--growth'; did you mean --growth_rate?"),
    (["--save=s", "--xyzzy"], "unknown flag '--xyzzy'"),
    (["--save=s", "-d", "10"], "unknown flag '-d'"),
    (["--save=s", "-depth", "10"], "unknown flag '-depth'; did you mean --depth?"),
    (["--save=s", "--no-depth"], "unknown flag '--no-depth'; did you mean --depth?"),
    (["--save=s", "--no-efficient=True"], "--no-efficient takes no value; write --efficient=True or --efficient=False"),
    (["--save=s", "--no-efficient", "True"], "stray word 'True': values belong behind a flag"),
    (["--save=s", "train"], "stray word 'train': values belong behind a flag"),
    (["train", "s"], "stray word 's': values belong behind a flag"),
    (["train", "train", "--save=s"], "stray word 'train': values belong behind a flag"),
    (["s"], "unknown command 's'; the commands are train and benchmark"),
    (["", "--save=s"], "unknown command ''; the commands are train and benchmark"),
    (["trian", "--save=s"], "unknown command 'trian'; did you mean train?"),
    (["Benchmark", "--help"], "unknown command 'Benchmark'; did you mean benchmark?"),
    (["--save=s", "-"], "stray word '-'"),
    (["--save=s", "--efficient", "maybe"], "--efficient is 'maybe', but must be True or False"),
    (["--save=s", "--depth", "43"], "--depth is '43', but must be a whole number, 6m + 4 with m >= 1"),
    (["--save=s", "--depth", "43"], "the nearest are 40 and 46"),
    (["--save=s", "--depth", "4"], "--depth is '4', but must be a whole number, 6m + 4 with m >= 1"),
    (["--save=s", "--depth", "-2"], "--depth is '-2'"),
    (["--save=s", "--depth", "forty"], "--depth is 'forty'"),
    (["--save=s", "--depth", "40.0"], "--depth is '40.0'"),
    (["--save=s", "--depth", "10", "--depth", "16"], "--depth is given twice: '10' and '16'"),
    (["--save=s", "--n_epochs", "1e2"], "--n_epochs is '1e2', but must be a whole number, 1 or more"),
    (["--save=s", "--n_epochs", "0"], "--n_epochs is '0'"),
    (["--save=s", "--growth_rate", "0"], "--growth_rate is '0'"),
    (["--save=s", "--batch_size", "0"], "--batch_size is '0'"),
    (["--save=s", "--drop_rate", "1"], "--drop_rate is '1', but must be a number, 0 or more and below 1"),
    (["--save=s", "--lr", "0"], "--lr is '0', but must be a number, above 0"),
    (["--save=s", "--lr", "nan"], "--lr is 'nan'"),
    (["--save=s", "--momentum", "1"], "--momentum is '1'"),
    (["--save=s", "--wd", "-1"], "--wd is '-1', but must be a number, 0 or more"),
    (["--save=s", "--valid_size", "-1"], "--valid_size is '-1'"),
    (["--save=s", "--seed", "-1"], "--seed is '-1'"),
    (["--save=s", "--seed", str(2**63)], f"--seed is '{2**63}'"),
    (["--save=s", "--dataset", "cifar"], "--dataset is 'cifar', but must be cifar10 | cifar100 | svhn | digits"),
    (["--save=s", "--dataset", "CIFAR10"], "did you mean cifar10?"),
    (["--save=s", "--", "--efficient", "False"], "'--' ends the flags, and what follows would be ignored"),
    (["--save=s", "--", "--trace"], "'--' ends the flags, and what follows would be ignored"),
    (["--save=s", "--dataset", "cifar10"], "--dataset cifar10 needs --data FOLDER"),
    (["--save=s", "--data", "nowhere", "--download", "False"], "the data folder nowhere does not exist"),
    (
        ["--save=s", "--dataset", "digits", "--valid_size", "1442"],
        "--valid_size is 1442, but must be 0 or more and below",
    ),
    (["--save=/dev/null", "--dataset", "digits"], "--save is '/dev/null', but must be a folder, not a file"),
    (["--save=/dev/null/s", "--dataset", "digits"], "--save /dev/null/s cannot be written: Not a directory"),
    (["--save=" + "x" * 300, "--dataset", "digits"], "cannot be written: File name too long"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused_line_is_one_message_with_exit_code_2_and_no_work(words, message, tmp_path):
    result = run_apart(*words, folder=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert re.fullmatch(r"demo\.py( train)?: error: [^\n]+\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--depth", "10", "--help"], ["--nonsense", "--help"]])
def test_help_is_shown_on_stdout_and_nothing_runs(words, tmp_path):
    result = run_apart(*words, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("NAME\n    demo.py - Train a DenseNet-BC")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", demo.COMMANDS)
def test_help_holds_every_word_of_the_docstring_and_every_default(name):
    page = subprocess.run(command(name, "--help"), capture_output=True, text=True).stdout
    assert page.startswith(f"NAME\n    demo.py {name} - ")
    words = set(re.findall(r"\S+", page))
    documented = inspect.getdoc(demo.COMMANDS[name]).replace("Args:\n", "")
    documented = re.sub(r"(?m)^    \w+: ", "", documented)
    assert set(re.findall(r"\S+", documented)) - words == set()
    for flag, parameter in inspect.signature(demo.COMMANDS[name]).parameters.items():
        assert f"--{flag}={flag.upper()}" in page
        if parameter.default is not inspect.Parameter.empty:
            default = "40,100,190,250" if flag == "depths" else parameter.default
            assert f"Default {default}." in page


def test_help_names_all_commands_with_their_first_lines():
    for words in (["--help"], ["benchmark", "--help"]):
        page = subprocess.run(command(*words), capture_output=True, text=True).stdout
        commands = " ".join(page.partition("\nCOMMANDS\n")[2].split())
        train, benchmark = (inspect.getdoc(function).splitlines()[0] for function in demo.COMMANDS.values())
        expected = f"train [--help] {train} The word may be left out. benchmark [--help] {benchmark}"
        assert commands == expected


def test_help_is_narrow_and_uses_no_pager_on_a_terminal():
    leader, terminal = pty.openpty()
    process = subprocess.Popen(command("--help"), stdout=terminal, stderr=terminal, stdin=terminal)
    os.close(terminal)
    page = b""
    while chunk := _read(leader):
        page += chunk
    os.close(leader)
    assert process.wait(timeout=20) == 0
    lines = page.decode().splitlines()
    assert any("--resume=RESUME" in line for line in lines)
    assert max(len(line) for line in lines) <= 100


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other side has closed
        return b""


def test_torch_is_not_imported_before_the_line_is_known_to_be_good():
    for words in (["--help"], ["--depth=43", "--save=s"], ["benchmark", "--help"], ["benchmark", "--depth=43"]):
        program = (
            "import sys, demo\n"
            f"try: demo.main({words!r})\n"
            "except SystemExit: pass\n"
            "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_defaults_are_those_of_the_mission():
    defaults = {name: parameter.default for name, parameter in inspect.signature(demo.train).parameters.items()}
    expected = {"depth": 40, "growth_rate": 12, "n_epochs": 300, "batch_size": 256, "seed": None}
    expected |= {"lr": 0.1, "momentum": 0.9, "wd": 1e-4, "drop_rate": 0, "valid_size": None, "efficient": True}
    assert {name: defaults[name] for name in expected} == expected


@given(st.sampled_from([*inspect.signature(demo.train).parameters]), st.text(max_size=30), st.booleans())
def test_any_text_behind_any_flag_is_bound_or_refused(flag, text, joined):
    words = [f"--{flag}={text}"] if joined else [f"--{flag}", text]
    others = [] if flag == "save" else ["--save=s"]
    if text in flags.HELP_WORDS:
        return
    try:
        bound = bind(*others, *words)
    except SystemExit as stop:
        code = stop.code
    else:
        code = 0 if flag in bound else None
    assert code in (0, 2)
