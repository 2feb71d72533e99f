"""One temperature for all logits, so that probabilities fit to how often a network is right.

References:
    Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2 (arXiv:1706.04599).
"""

import math

from scipy.optimize import brentq
from torch import Tensor

from commands.calibration import HIGHEST, LOWEST


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T at which the likelihood of the labels, with logits / T, is largest.

    The negative log likelihood is convex in 1 / T, so there is one minimum at most. Where the likelihood only grows
    towards one side, as it does towards T = 0 if all images are classified correctly, T is the end of the range.

    Args:
        logits: Finite (N, C) on the CPU, N 1 or more.
        labels: int64 (N,).

    Returns:
        T, from `LOWEST` to `HIGHEST`.
    """
    logits = logits.double()
    differences = logits - logits.gather(1, labels[:, None])  # to the logit of the label

    def slope(log_inverse: float) -> float:
        """The derivative by 1 / T of the average negative log likelihood, logsumexp(differences / T)."""
        probabilities = (differences * math.exp(log_inverse)).softmax(1)
        return (probabilities * differences).sum(1).mean().item()

    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    if slope(high) <= 0:
        return LOWEST
    if slope(low) >= 0:
        return HIGHEST
    return math.exp(-brentq(slope, low, high, xtol=1e-12))
