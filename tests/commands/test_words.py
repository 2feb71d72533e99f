"""Commands that take words beside their flags, as names of files."""

from pathlib import Path

import pytest

from commands.line.bind import bind
from commands.line.flags import Command, Settings, flag, settings, words


@settings
class LookSettings(Settings):
    images: tuple[Path, ...] = words("Files or folders.")
    save: Path = flag("The run.")
    top: int = flag("Number of classes.", default=5)


def look(settings: LookSettings) -> None:
    """Look at images.

    One after the other.
    """


LOOK = Command(LookSettings, look)


@pytest.mark.parametrize("argv", [["a", "--save=r", "b"], ["--save", "r", "a", "b"], ["a", "b", "--save", "r"]])
def test_words_keep_their_order_wherever_they_stand(argv):
    expected = LookSettings(images=(Path("a"), Path("b")), save=Path("r"), top=5)
    assert LookSettings(**bind(LOOK, argv, name="x")) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--save=r"], "IMAGES is needed: a path, one or more; see --help"),
        (["a"], "--save is needed; see --help"),
        (["", "--save=r"], "IMAGES is '', but must be a path"),
        (["a", "--save=r", "--images=b"], "unknown flag '--images'"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bind(LOOK, argv, name="x")
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"x: error: {message}\n")


def test_help_names_the_words(capsys):
    with pytest.raises(SystemExit):
        bind(LOOK, ["--help"], name="x")
    page = capsys.readouterr().out
    assert "python x IMAGES ... --save SAVE [--flag value ...]" in page
    assert "WORDS\n    IMAGES ...\n        Files or folders.\n        Required. Takes a path, one or more." in page
