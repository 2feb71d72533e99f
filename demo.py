"""Train memory-efficient DenseNets on CIFAR-10, CIFAR-100 and SVHN, or on handwritten digits that need no download.

A first run, the run that most people come for, a cell of the paper's table, a check of all images, the evaluation of a
run, several runs side by side, classes of images, the network as a file for other programs, memory and time of a
training step, and all flags:

    python demo.py --dataset digits --depth 10 --n_epochs 30 --batch_size 32 --save runs/digits
    python demo.py --efficient True --data <folder> --save <folder>
    python demo.py --recipe densenet-bc-100-12-c10+ --data <folder> --save <folder>
    python demo.py check --dataset folder --data <folder>
    python demo.py evaluate --save <folder>
    python demo.py compare <folder> <folder>
    python demo.py predict <image> --save <folder>
    python demo.py export --save <folder> --format onnx
    python demo.py benchmark
    python demo.py --help
"""

if __name__ == "__main__":
    # During the imports Ctrl-C ends the program without a traceback. The module signal takes a while to import itself.
    import _signal

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import sys
from pathlib import Path

if __name__ == "__main__" and sys.flags.safe_path:  # PYTHONSAFEPATH: the packages beside this file are not found
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import signal
from typing import Any, NoReturn

from commands import check
from commands.benchmark import command as benchmark
from commands.compare import command as compare
from commands.evaluate import command as evaluate
from commands.export import command as export
from commands.line.bind import choose, end
from commands.line.flags import Command
from commands.outputs import is_output_error
from commands.predict import command as predict
from commands.program import how_to_continue, is_heard, read_settings, say_traceback
from commands.settings import TrainSettings
from commands.train.checks import checked
from commands.train.complete import complete
from commands.train.folder import training_folder
from commands.train.seeds import train_seeds
from data.errors import DataError
from train import signals
from train.errors import RunError, UserError
from train.processes import connected, current_group
from train.program_name import NAME
from train.terminal import leave, open_streams, say


def train(settings: TrainSettings) -> None:
    """Train a DenseNet on images and leave logs and weights in a folder.

    All visible GPUs are used (CUDA_VISIBLE_DEVICES decides), or the CPU if there is none; "torchrun" in front of the
    program gives each GPU a process of its own. The folder --save holds results.csv, curves.png, model.pt (the chosen
    weights), checkpoint.pt and config.json after every epoch, and results.json at the end. With --seeds there is such a
    folder for each seed.
    """
    settings = checked(settings)
    if settings.seeds is None:
        train_run(settings)
    else:
        train_seeds(settings, train_run)


def train_run(settings: TrainSettings) -> float:
    """Train a single run, or find it finished, and return its test error.

    Args:
        settings: Checked settings.

    Raises:
        UserError: If the folder, the data or the weights cannot be used.
        RunError: If the run cannot go on.
        Stopped: If a signal has come.
    """
    with training_folder(settings) as folder:
        from commands.train import steps  # torch takes seconds to import

        settings = steps.choose(settings, folder)
        steps.add_writers(settings, folder)
        checkpoint = folder.load(n_epochs=settings.n_epochs)
        if checkpoint.is_finished(settings.n_epochs):
            folder.write_products(checkpoint)
            done = f"The run in {settings.save} is finished after epoch {settings.n_epochs}"
            say(f"{done}; test error {checkpoint.test_error:.2%}.")
            assert checkpoint.test_error is not None, "it is measured at the end"
            return checkpoint.test_error

        is_new = checkpoint.is_empty
        inputs = steps.read_inputs(settings, is_new=is_new)
        network = steps.build_network(inputs, is_new=is_new)
        replicas = steps.place(network, inputs)
        test_error = steps.fit(replicas, inputs, folder, checkpoint)
        say(f"Test error {test_error:.2%} (accuracy {1 - test_error:.2%}); everything is in {settings.save}")
        return test_error


COMMANDS: dict[str, Command[Any]] = {
    "train": Command(TrainSettings, train, complete, in_processes=True),
    "check": check.COMMAND,
    "evaluate": evaluate.COMMAND,
    "predict": predict.COMMAND,
    "compare": compare.COMMAND,
    "export": export.COMMAND,
    "benchmark": benchmark.COMMAND,
}


def main(argv: list[str]) -> None:
    """Run a command line: the words after the program's name."""
    word, name = "train", NAME
    settings: Any = None
    try:
        with signals.immediate_stop(), connected():
            # Only the main process reads the line: another one could end them all before the error is printed.
            on_main = current_group().on_main
            word, words = on_main(choose, COMMANDS, argv, name=NAME)
            name = NAME if words == argv else f"{NAME} {word}"
            settings = on_main(read_settings, COMMANDS[word], words, name=name, commands=COMMANDS)
            COMMANDS[word].run(settings)
    except (UserError, RunError, DataError) as error:
        if settings and settings.debug:
            say_traceback()
        end(f"error: {error}", name=name, exit_code=error.exit_code, is_heard=is_heard(error))
    except signals.Stopped as stop:
        hint = f"; {how_to_continue(settings)}" if word == "train" else ""
        end(f"{stop}{hint}", name=name, exit_code=stop.exit_code, is_heard=current_group().is_main)
    except BrokenPipeError:  # as in `demo.py compare ... | head`
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if not is_output_error(error):
            raise
        end(f"error: cannot write the output: {error.strerror}", name=name, exit_code=1)


def start(argv: list[str]) -> NoReturn:
    """Run a command line, and end this process with its exit code."""
    open_streams()
    signals.begin()
    try:
        main(argv)
    except SystemExit as stop:
        leave(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
    except Exception:
        say_traceback()  # a mistake of this program; Python's own way to end could wait for other processes
        leave(1)
    leave(0)


if __name__ == "__main__":
    start(sys.argv[1:])
