"""Depths of the networks for small images. Nothing here needs torch."""

from numbers import Integral
from typing import NamedTuple


class DepthRule(NamedTuple):
    """The depths L that a network of three blocks of m dense layers each can have.

    First convolution, two transitions and classifier make 4.

    Attributes:
        step: Weighted layers that one more dense layer in each block adds: L = step * m + 4.
    """

    step: int

    @property
    def smallest(self) -> int:
        """The depth with one dense layer in each block."""
        return self.step + 4

    @property
    def formula(self) -> str:
        """The rule for people, such as "6m + 4 with m >= 1"."""
        return f"{self.step}m + 4 with m >= 1"

    def block_config(self, depth: int) -> tuple[int, int, int]:
        """Return the number of dense layers in each block.

        Raises:
            ValueError: If no network has this depth.
        """
        is_whole = isinstance(depth, Integral) and not isinstance(depth, bool)
        if not is_whole or depth < self.smallest or (depth - 4) % self.step:
            examples = ", ".join(str(self.smallest + i * self.step) for i in range(3))
            raise ValueError(f"depth is {depth!r}, but must be {self.formula}: {examples}, ...")
        layers = (depth - 4) // self.step
        return layers, layers, layers


# Keys are the functions that build the networks. A bottleneck layer has two convolutions, a plain layer has one.
DEPTH_RULES = {"densenet_bc": DepthRule(6), "densenet_plain": DepthRule(3)}
