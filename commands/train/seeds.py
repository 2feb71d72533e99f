"""One training run for each of several seeds, one after the other, each in a folder of its own: --seeds.

`--save runs/a --seeds 1,2` makes `runs/a/seed-1` and `runs/a/seed-2`. Each is the run that `--seed` makes there, to the
last bit, and can be used as such. Nothing else records that they belong together.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands.settings import TrainSettings
from commands.spread import Spread, in_percent
from commands.train.folder import training_folder
from train.errors import NumericalFailure, UserError
from train.run.config import CONFIG, FILES
from train.signals import stop_before
from train.terminal import say, warn

MOST_BY_NUMBER = 1000  # a larger number alone is a seed, and not a number of seeds


def require_seeds(seeds: tuple[int, ...], *, seed: int | None) -> None:
    """Make sure that --seeds can be used.

    Args:
        seeds: Its numbers.
        seed: The value of --seed; None if the line does not name it.

    Raises:
        UserError: If --seed is given as well, a number alone is below 2 or above 1,000, or a seed is named twice.
    """
    if seed is not None:
        raise UserError(f"--seed {seed} does not go with --seeds, which names the seeds of all runs")
    if len(seeds) == 1 and not 2 <= seeds[0] <= MOST_BY_NUMBER:
        raise UserError(
            f"--seeds is {seeds[0]}, which alone is a number of seeds and must be from 2 to {MOST_BY_NUMBER:,}; "
            f"several seeds have commas between them, and --seed {seeds[0]} makes a single run"
        )
    twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None)
    if twice is not None:
        raise UserError(f"--seeds names {twice} twice, but all seeds must differ")


def named_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the seeds that --seeds names: a number alone, N, stands for 0 to N - 1."""
    return tuple(range(seeds[0])) if len(seeds) == 1 else seeds


def runs_of(settings: TrainSettings) -> list[TrainSettings]:
    """Return the settings of each run that a command line asks for: a single one, or one for each seed."""
    if settings.seeds is None:
        return [settings]
    return [
        replace(settings, seeds=None, seed=seed, save=settings.save / f"seed-{seed}")
        for seed in named_seeds(settings.seeds)
    ]


def folder_to_continue(given: Mapping[str, Any]) -> Path:
    """Return the folder whose flags a resumed run has: --save, or with --seeds the first run below it if there is one.

    Args:
        given: Typed and checked values of the command line by name.
    """
    save: Path = given["save"]
    return next(iter(_folders_of_seeds(save)), save) if given.get("seeds") is not None else save


def require_one_kind_of_run(settings: TrainSettings) -> None:
    """Make sure that a folder holds either a run or, below it, the runs of several seeds.

    Raises:
        UserError: If it holds the other kind.
    """
    save = settings.save
    with suppress(OSError):  # a folder that cannot be looked into is reported when it is acquired
        if settings.seeds is not None:
            found = [name for name in FILES if (save / name).exists()]
            if found:
                raise UserError(
                    f"--save {save} holds a run of its own ({', '.join(found)}), and --seeds makes a folder for each "
                    "seed; choose another folder"
                )
        elif not (save / CONFIG).exists() and (runs := _folders_of_seeds(save)):
            raise UserError(
                f"--save {save} holds the runs of several seeds ({', '.join(run.name for run in runs)}); continue them "
                f"with --seeds and --resume True, one of them with --save {runs[0]}, or choose another folder"
            )


def _folders_of_seeds(save: Path) -> list[Path]:
    return [path.parent for path in sorted(save.glob(f"seed-*/{CONFIG}"))]


def train_seeds(settings: TrainSettings, train_run: Callable[[TrainSettings], float]) -> None:
    """Train a run for each seed of --seeds, and print their test errors with mean and standard deviation.

    A run that ends in a numerical failure does not keep the others from being trained.

    Args:
        settings: Checked settings, which name several seeds.
        train_run: Trains a run, or finds it finished, and returns its test error.

    Raises:
        UserError: If one of the folders cannot be used, before anything is trained.
        NumericalFailure: After all other runs, if one of them has failed.
        RunError: If a run ends for another reason.
        Stopped: If a signal has come.
    """
    runs = runs_of(settings)
    for run in runs:
        with training_folder(run):
            pass  # it can be written, and holds no other run
    errors: dict[Path, float] = {}
    for number, run in enumerate(runs, start=1):
        say(f"Seed {run.seed}, run {number} of {len(runs)}, in {run.save}:")
        try:
            errors[run.save] = train_run(run)
        except NumericalFailure as failure:
            warn(f"{run.save} has failed: {failure}")
            if stop := stop_before(failure):
                raise stop from failure
        _release_memory()
    say(*(f"{folder}: test error {error:.2%}" for folder, error in errors.items()))
    if errors:
        spread = in_percent(Spread.of(errors.values()))
        say(f"Test error (%), mean ± standard deviation over seeds: {spread}")
    failed = [str(run.save) for run in runs if run.save not in errors]
    if failed:
        raise NumericalFailure(f"{len(failed)} of {len(runs)} runs have failed: {', '.join(failed)}")


def _release_memory() -> None:
    from train import runtime  # torch takes seconds to import

    runtime.release_memory()


def words_of_seeds(settings: TrainSettings) -> list[str]:
    """Return the word of a command line that names the seeds again; none if there are not several."""
    return [] if settings.seeds is None else [f"--seeds={','.join(map(str, settings.seeds))}"]
