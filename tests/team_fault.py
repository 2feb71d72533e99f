"""The application, where something is wrong in the second process only.

Started by torchrun with what is wrong in front of the command line.
"""

import sys

import data.datasets
import demo
from data.errors import MissingData
from train.team import here


def raising(error):
    """A function that can only fail."""

    def fail(*_, **__):
        raise error

    return fail


FAULTS = {"data": MissingData("there is no data on this machine"), "bug": ZeroDivisionError("a mistake")}

if __name__ == "__main__":
    _, fault, *words = sys.argv
    if here().rank == 1:
        data.datasets.load = raising(FAULTS[fault])
    demo.start(words)
