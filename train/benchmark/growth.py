"""How memory grows with a size, from a few measurements: a polynomial through them, checked against one more."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.polynomial import Polynomial

Point = tuple[float, float]  # a size and bytes


@dataclass(frozen=True)
class Growth:
    """Bytes as a function of a size.

    Attributes:
        bytes_at: The fitted polynomial.
        error: Share by which the measurement that was left out lies above (positive) or below the polynomial.
    """

    bytes_at: Polynomial
    error: float

    def largest_within(self, budget: float, sizes: Sequence[int]) -> int | None:
        """Return the largest of the ascending `sizes` whose bytes do not exceed the budget; None if none does."""
        count = bisect_right(sizes, budget, key=self.bytes_at)
        return sizes[count - 1] if count else None


def fit_growth(points: Sequence[Point], check: Point) -> Growth:
    """Put a line through two points or a parabola through three, and compare it with a further measurement.

    A parabola that bends down would promise that larger networks need less. It is replaced by the line through the last
    two points, which lies above it from there on.

    Args:
        points: Measured, ascending in size.
        check: Measured, and not used for the fit.
    """
    polynomial = _through(points)
    if len(points) == 3 and polynomial.coef[-1] < 0:
        polynomial = _through(points[-2:])
    size, measured = check
    return Growth(polynomial, measured / polynomial(size) - 1)


def _through(points: Sequence[Point]) -> Polynomial:
    sizes, values = zip(*points, strict=True)
    degree = len(points) - 1
    coefficients = Polynomial.fit(sizes, values, degree).convert().coef
    return Polynomial([*coefficients, *[0] * (degree + 1 - len(coefficients))])
