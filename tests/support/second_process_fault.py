"""The application, where something is wrong in the second process only.

Started by torchrun with what is wrong in front of the command line.
"""

import dataclasses
import sys

import data.datasets
import demo
from data.errors import MissingData
from train.processes import current_group


def raising(error):
    """A function that can only fail."""

    def fail(*_, **__):
        raise error

    return fail


def with_other_classes(*words, read=data.datasets.load, **flags):
    """The data set, where two classes have each other's name."""
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
