"""A limit on what several threads take at the same time."""

from threading import Condition, Lock
from typing import Self


class Budget:
    """An amount of something, as memory, of which threads take parts and give them back.

    Args:
        total: The amount, above 0.
    """

    def __init__(self, total: int):
        self.total = total
        self.taken = 0
        self.lock = Lock()
        self.changed = Condition(self.lock)

    def part(self) -> "Part":
        """A part of the budget that has not been taken yet, and is given back by a `with` block."""
        return Part(self)


class Part:
    """The amount of a budget that one thread has taken."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.amount = 0

    def take(self, amount: int) -> None:
        """Take an amount, 0 or more and once, and wait until it is free. One that is above the total is taken alone."""
        budget, amount = self.budget, min(amount, self.budget.total)
        with budget.lock:
            while budget.taken + amount > budget.total:
                budget.changed.wait()
            budget.taken += amount
            self.amount = amount

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self.budget.lock:
            self.budget.taken -= self.amount
            self.budget.changed.notify_all()
