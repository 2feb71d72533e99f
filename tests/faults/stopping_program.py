"""The application, which gets a signal while it takes a step; in fp16 its scale changes every few steps.

python -m tests.faults.stopping_program SIGUSR1:17 <words of demo.py>

Under torchrun, the last process gets the signal. With step 0, none comes.
"""

import signal
import sys

import demo
from tests.support.stops import restless_scale, signal_in_step
from train.processes import current_group


def main(spec: str, words: list[str]) -> None:
    name, _, step = spec.partition(":")
    processes = current_group()
    at = int(step) if processes.rank == processes.world_size - 1 else 0
    with restless_scale(), signal_in_step(signal.Signals[name], at):
        demo.start(words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
