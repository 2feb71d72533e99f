"""Who reads which part of a batch where several processes train one network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One of several processes that read each batch together.

    Attributes:
        rank: Which of them this one is, from 0 to count - 1.
        count: How many there are.

    Raises:
        ValueError: If there is no such process.
    """

    rank: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank is {self.rank}, but must be 0 or more and below {self.count}, the count")

    def part(self, num_items: int) -> slice:
        """The places of a batch of `num_items` that belong to this process.

        The parts of all processes follow each other without a gap. They are as large as those of
        `torch.tensor_split`: sizes differ by at most 1, the larger ones come first, and some parts are empty where
        there are fewer items than processes.
        """
        size, larger = divmod(num_items, self.count)
        start = self.rank * size + min(self.rank, larger)
        return slice(start, start + size + (self.rank < larger))


ALONE = Share()  # the only process
