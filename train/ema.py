"""An exponential moving average of the weights of a network, on its device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """The average of the weights of a network over the steps of training, and of its running statistics.

    After step t every value becomes `decay * average + (1 - decay) * value`. The decay begins low, so that the initial
    weights are soon forgotten in a short run too: it is (1 + t) / (10 + t), or `decay` where that is lower. Running
    statistics are averaged as weights are; computing them anew would take another pass over the training images.

    A step that is skipped changes nothing in the average. Everything is in tensors on the device that are changed in
    place, so that a CUDA graph can repeat it. The average takes the memory of a second copy of the weights, and of a
    third one during an update.

    Args:
        network: A network on its device. The average begins with its weights.
        decay: The highest decay, above 0 and below 1.

    References:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
        Morales-Brotons et al., Exponential Moving Average of Weights in Deep Learning, 2024 (arXiv:2411.18704).
        The growing decay is that of TensorFlow's ExponentialMovingAverage; averaged running statistics are those of
            timm's ModelEmaV3 and of torchvision's training program.
    """

    def __init__(self, network: nn.Module, decay: float):
        # A state_dict refers to the memory of the weights. Counters of batches are whole numbers, and no average.
        self._weights = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
        self._averages = {name: value.clone() for name, value in self._weights.items()}
        self._buffers = {name for name, _ in network.named_buffers()} & self._averages.keys()
        self._smallest_gain = 1 - decay
        first = next(iter(self._averages.values()))
        self._steps = torch.zeros((), dtype=torch.float64, device=first.device)  # those that were not skipped

    def update(self, skipped: Tensor) -> None:
        """Add the weights after a step.

        Args:
            skipped: 1 if the step was skipped, and 0 if it was taken; float () on the device.
        """
        averages, weights = list(self._averages.values()), list(self._weights.values())
        self._steps += 1 - skipped
        gain = (9 / (10 + self._steps)).clamp(min=self._smallest_gain) * (1 - skipped)
        changes = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(changes, gain.to(averages[0].dtype))
        torch._foreach_add_(averages, changes)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Put the average in the place of the network's weights, and these back at the end of the with statement."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, average in zip(self._weights.values(), self._averages.values(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def buffers(self) -> dict[str, Tensor]:
        """The averages of running statistics, by name."""
        return {name: average for name, average in self._averages.items() if name in self._buffers}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that lasts from one step to the next: the number of steps, and averages by name.

        The tensors are those that `update` changes; what is copied into them is what it continues with.
        """
        return {"steps": self._steps, **self._averages}
