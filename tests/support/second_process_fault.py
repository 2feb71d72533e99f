"""The application with a fault in the second process only.

torchrun starts it with the name of the fault in front of the command line.
"""

import dataclasses
import sys

import data.datasets
import demo
from data.errors import MissingData
from train.processes import current_group


def raising(error):
    """Return a function that raises an error whatever it is given."""

    def fail(*_, **__):
        raise error

    return fail


def with_other_classes(*words, read=data.datasets.load, **flags):
    """Read the data set, and reverse the names of its classes."""
    source = read(*words, **flags)
    return dataclasses.replace(source, classes=source.classes[::-1])


FAULTS = {
    "data": raising(MissingData("there is no data on this machine")),
    "bug": raising(ZeroDivisionError("a mistake")),
    "other data": with_other_classes,
}

if __name__ == "__main__":
    _, fault, *words = sys.argv
    if current_group().rank == 1:
        data.datasets.load = FAULTS[fault]
    demo.start(words)
