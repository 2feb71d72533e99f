"""Whole command lines: what is bound, what is refused, and that a refused line does nothing."""

import functools
import inspect
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import demo
from commands.line.bind import HELP_WORDS, bind, choose
from commands.line.flags import Command
from commands.settings import TrainSettings
from tests.support.application import ROOT, command, run_apart

FIELDS = {name: command.settings.flags() for name, command in demo.COMMANDS.items()}
FLAGS = {name: [flag.name for flag in fields.values() if not flag.takes_words] for name, fields in FIELDS.items()}
WORDS = {name: [flag.name for flag in fields.values() if flag.takes_words] for name, fields in FIELDS.items()}


def required(command: str) -> set[str]:
    """Flags that a line must name, and words where the command takes some."""
    return {flag.name for flag in FIELDS[command].values() if flag.is_required}


def bound(*words: str) -> dict:
    return bind(demo.COMMANDS["train"], [*words], name="demo.py")


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
    assert bound(*words) == {"save": Path("s"), **expected}


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
    assert choose(demo.COMMANDS, words, name="demo.py") == expected


def test_save_is_a_path_whatever_it_looks_like():
    for name in ("123", "1e3", "True", "./None", "a=b"):
        assert bound(f"--save={name}") == {"save": Path(name)}


REFUSED = [
    ([], "--save is needed; see --help"),
    (["--save"], "--save needs a value: a path"),
    (["--save", "--depth", "10"], "--save needs a value: a path"),
    (["--save", ""], "--save is '', but must be a path"),
    (["--save", "None"], "--save is 'None', but must be a path"),
    (["--save=s", "--deph", "10"], "unknown flag '--deph'; did you mean --depth?"),
    (["--save=s", "--Depth", "10"], "unknown flag '--Depth'; did you mean --depth?"),
    (["--save=s", "--growth", "12"], "unknown flag '--growth'; did you mean --growth_rate?"),
    (["--save=s", "--xyzzy"], "unknown flag '--xyzzy'"),
    (["--save=s", "-d", "10"], "unknown flag '-d'"),
    (["--save=s", "-depth", "10"], "unknown flag '-depth'; did you mean --depth?"),
    (["--save=s", "--no-depth"], "unknown flag '--no-depth'; did you mean --depth?"),
    (["--save=s", "--no-efficient=True"], "--no-efficient takes no value; write --efficient=True or --efficient=False"),
    (["--save=s", "--no-efficient", "True"], "stray word 'True': values must follow a flag"),
    (["--save=s", "train"], "stray word 'train': values must follow a flag"),
    (["train", "s"], "stray word 's': values must follow a flag"),
    (["train", "train", "--save=s"], "stray word 'train': values must follow a flag"),
    (["s"], "unknown command 's'; the commands are train, "),
    (["", "--save=s"], "unknown command ''; the commands are train, "),
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
    (
        ["--save=s", "--dataset", "cifar"],
        "--dataset is 'cifar', but must be cifar10 | cifar100 | svhn | digits | folder",
    ),
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
    (["--save", "  "], "--save is '  ', but must be a path"),
    (["--save=s", "---depth=10"], "stray word '---depth=10'"),
    (["--save=s", "--depth="], "--depth is ''"),
    (["--save=s", "--depth", "10 "], "--depth is '10 '"),
    (["--save=s", "--depth", "1_000"], "--depth is '1_000'"),
    (["--save=s", "--depth", "\u0661\u0660"], "--depth is '"),
    (["--save=s", "--depth", "None"], "--depth is 'None'"),
    (["--save=s", "--depth", "True"], "--depth is 'True'"),
    (["--save=s", "--depth", "[10]"], "--depth is '[10]'"),
    (["--save=s", "--depth", "9" * 5000], "--depth is '999"),
    (["--save=s", "--depth", "10004"], "--depth is '10004'"),
    (["--save=s", "--n_epochs", "1000001"], "--n_epochs is '1000001'"),
    (["--save=s", "--lr", "1e999"], "--lr is '1e999'"),
    (["--save=s", "--lr", "0x1p3"], "--lr is '0x1p3'"),
    (["--save=s", "--lr", "0,1"], "--lr is '0,1'"),
    (["--save=s", "--wd", "inf"], "--wd is 'inf'"),
    (["--save=s", "--drop_rate", "20%"], "--drop_rate is '20%'"),
    (["--save=s", "--augment", "some"], "--augment is 'some', but must be True or False, or None"),
    (["--save=s", "--efficient", "bufer"], "did you mean buffer?"),
    (["--save=s", "--resume", "later"], "--resume is 'later'"),
    (["--save=s", "--download", "2"], "--download is '2'"),
    (["--save=s", "--no-resume", "--resume"], "--resume is given twice: 'False' and 'True'"),
    (["--save=s", "--data", "", "--dataset", "svhn"], "--data is ''"),
    (["--save=s", "--dataset", "svhn", "--data", "nowhere", "--no-download"], "folder nowhere does not exist"),
    (["--save=s", "--dataset=digits", "--seed=1.0"], "--seed is '1.0'"),
    (["--save=s", "--debug=loud"], "--debug is 'loud'"),
    (["--save=s", "--plot=p.png"], "unknown flag '--plot'"),
    (["--save=s", "\n"], "stray word '\\n'"),
    (["--save=s", "--dataset=folder"], "--dataset folder needs --data FOLDER, which holds train/ and test/"),
    (["--save=s", "--dataset=folder", "--data=nowhere"], "there is no folder nowhere"),
    (["--save=s", "--dataset=digits", "--image_size=64"], "--image_size is 64, but images of --dataset digits are 32"),
    (["--save=s", "--dataset=folder", "--image_size=7"], "--image_size is '7'"),
    (["predict", "--save=s"], "IMAGES is needed: a path, one or more"),
    (["predict", "a.png"], "--save or --weights is needed; see --help"),
    (["predict", "a.png", "--save=s", "--top=0"], "--top is '0'"),
    (["predict", "a.png", "--save=s", "--images=b.png"], "unknown flag '--images'"),
    (["predict", "a.png", "--save=s", "--csv=a.txt"], "--csv is 'a.txt', but must be a file name that ends in .csv"),
    (["benchmark", "--resume"], "unknown flag '--resume'"),
    (["benchmark", "train"], "stray word 'train'"),
    (["benchmark", "--depths"], "--depths needs a value"),
    (["benchmark", "--depths="], "--depths is ''"),
    (["benchmark", "--depths=[40,100]"], "--depths is '[40'"),
    (["benchmark", "--growth_rate=0"], "--growth_rate is '0'"),
    (["benchmark", "--batch_size=1e3"], "--batch_size is '1e3'"),
    (["benchmark", "--image_size=1025"], "--image_size is '1025'"),
    (["benchmark", "--drop_rate=1"], "--drop_rate is '1'"),
    (["benchmark", "--precision=FP32"], "did you mean fp32?"),
    (["benchmark", "--memory_format=channel_last"], "did you mean channels_last?"),
    (["benchmark", "--threads=1025"], "--threads is '1025'"),
    (["benchmark", "--rounds=1001"], "--rounds is '1001'"),
    (["benchmark", "--rounds=None"], "--rounds is 'None'"),
    (["benchmark", "--compile=maybe"], "--compile is 'maybe'"),
    (["benchmark", "--budget_gb=nan"], "--budget_gb is 'nan'"),
    (["benchmark", "--budget_gb=-1"], "--budget_gb is '-1'"),
    (["benchmark", "--plot="], "--plot is ''"),
    (["benchmark", "--plot=.png"], "--plot is '.png', but must be a file name that ends in .png"),
    (["benchmark", "--csv=/dev/null"], "--csv is '/dev/null', but must be a file name that ends in .csv"),
    (["benchmark", "--", "--rounds=0"], "'--' ends the flags"),
    (["export"], "--format is needed; see --help"),
    (["export", "--save=s"], "--format is needed; see --help"),
    (["export", "--format=onnx"], "--save or --weights is needed; see --help"),
    (
        ["export", "--save=s", "--format=ONNX"],
        "--format is 'ONNX', but must be torch | onnx | safetensors; did you mean onnx?",
    ),
    (["export", "--save=s", "--format"], "--format needs a value: torch | onnx | safetensors"),
    (["export", "--save=s", "--format=torch", "--output="], "--output is ''"),
    (["export", "--save=s", "--format=torch", "--depth=10"], "--depth is for --weights; the run in --save has its own"),
    (["export", "--save=s", "--format=torch"], "--save s does not exist"),
    (["export", "--save=/dev/null", "--format=torch"], "--save is '/dev/null', but must be a folder, not a file"),
    (["export", "--save=" + "x" * 300, "--format=torch"], "cannot be read: File name too long"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused_line_is_one_message_with_exit_code_2_and_no_work(words, message, tmp_path):
    result = run_apart(*words, folder=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    commands = "|".join(f" {name}" for name in demo.COMMANDS)
    assert re.fullmatch(rf"demo\.py({commands})?: error: [^\n]+\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--depth", "10", "--help"], ["--nonsense", "--help"]])
def test_help_is_shown_on_stdout_and_nothing_runs(words, tmp_path):
    result = run_apart(*words, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("NAME\n    demo.py - Train a DenseNet on images")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", demo.COMMANDS)
def test_help_holds_every_word_of_the_docstring_and_every_default(name):
    page = subprocess.run(command(name, "--help"), capture_output=True, text=True).stdout
    assert page.startswith(f"NAME\n    demo.py {name} - ")
    words = set(re.findall(r"\S+", page))
    texts = [inspect.getdoc(demo.COMMANDS[name].run), *(flag.help for flag in FIELDS[name].values())]
    assert {word for text in texts for word in text.split()} - words == set()
    for flag in FIELDS[name].values():
        assert flag.help
        assert (f"{flag.name.upper()} ..." if flag.takes_words else f"--{flag.name}={flag.name.upper()}") in page
        if not flag.is_required:
            assert f"Default {flag.default}." in page


def test_help_names_all_commands_with_their_first_lines():
    for words in (["--help"], ["benchmark", "--help"]):
        page = subprocess.run(command(*words), capture_output=True, text=True).stdout
        commands = " ".join(page.partition("\nCOMMANDS\n")[2].split())
        lines = [
            f"{name} [--help] {inspect.getdoc(command.run).splitlines()[0]}" for name, command in demo.COMMANDS.items()
        ]
        assert commands == " ".join([f"{lines[0]} The word may be left out.", *lines[1:]])


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
    for words in (
        ["--help"],
        ["--depth=43", "--save=s"],
        ["benchmark", "--help"],
        ["benchmark", "--depth=43"],
        ["export", "--save=s", "--format=onnx"],
    ):
        program = (
            "import sys, demo\n"
            f"try: demo.main({words!r})\n"
            "except SystemExit: pass\n"
            "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_a_run_imports_matplotlib_with_its_first_plot():
    """It takes a second, and memory in processes that draw nothing."""
    program = "import sys, commands.train.steps; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_defaults_are_those_of_the_mission():
    defaults = TrainSettings.defaults()
    expected = {"depth": 40, "growth_rate": 12, "n_epochs": 300, "batch_size": 256, "seed": None}
    expected |= {"lr": 0.1, "momentum": 0.9, "wd": 1e-4, "drop_rate": 0, "valid_size": None, "efficient": True}
    assert {name: defaults[name] for name in expected} == expected


def outcome(argv: list[str]) -> dict | int:
    """The values that a whole line is bound to, or the exit code. No command is called, whatever the line is."""
    try:
        name, words = choose(demo.COMMANDS, argv, name="demo.py")
        return bind(demo.COMMANDS[name], words, name="demo.py", commands=demo.COMMANDS)
    except SystemExit as stop:
        return stop.code


@given(st.data(), st.sampled_from([*demo.COMMANDS]), st.text(max_size=30), st.booleans())
def test_any_text_after_any_flag_is_bound_or_refused(data, command, text, joined):
    flag = data.draw(st.sampled_from(FLAGS[command]))
    words = [f"--{flag}={text}"] if joined else [f"--{flag}", text]
    others = required(command) - {flag}
    line = [name if name in WORDS[command] else f"--{name}=s" for name in others]
    result = outcome([command, *line, *words])
    if text in HELP_WORDS and not joined:
        assert result == 0
    else:
        assert result == 2 or set(result) == {flag, *others}


ANY_TEXT = st.text(st.characters(), max_size=20)  # half characters too, as names of files have them
FLAG_WORDS = st.sampled_from(sorted({f"--{flag}" for names in FLAGS.values() for flag in names}))
ANY_WORD = st.one_of(
    ANY_TEXT,
    FLAG_WORDS,
    st.builds("{}={}".format, FLAG_WORDS, ANY_TEXT),
    st.builds("--no-{}".format, st.sampled_from(["resume", "efficient", "depth", "no"])),
    st.builds("{}{}".format, st.sampled_from(["-", "--", "---"]), ANY_TEXT),
    st.sampled_from([*demo.COMMANDS, "10", "0.5", "True", "None", "digits", "40,100", "-h", "--", "-", "="]),
)


@given(st.lists(ANY_WORD, max_size=8))
def test_any_list_of_words_is_bound_or_refused(argv):
    result = outcome(argv)
    if any(word in HELP_WORDS for word in argv):
        assert result in (0, 2)
    elif result != 2:
        command = argv[0] if argv[0] in demo.COMMANDS else "train"
        assert required(command) <= set(result) <= {*FLAGS[command], *WORDS[command]}


@given(st.lists(ANY_WORD, max_size=8))
def test_any_list_of_words_runs_one_command_or_ends_with_exit_code_2(argv):
    called = []
    code = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "COMMANDS", {name: recording(it, called) for name, it in demo.COMMANDS.items()})
        try:
            demo.main(argv)
        except SystemExit as stop:
            code = stop.code
    assert (code, len(called)) in [(None, 1), (2, 0), (0, 0)]
    assert code != 0 or any(word in HELP_WORDS for word in argv)


def recording(command: Command, called: list) -> Command:
    """A command that does nothing but keep its settings."""

    @functools.wraps(command.run)
    def record(settings):
        called.append(settings)

    return replace(command, run=record)
