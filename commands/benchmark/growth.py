"""How memory grows with a size, from a few measurements: a polynomial through them, checked against one more."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.polynomial import Polynomial

Point = tuple[float, float]  # a size and bytes
LARGEST_ERROR = 0.1  # share; answers of a fit that misses its check by more are called uncertain


@dataclass(frozen=True)
class Growth:
    """Bytes as a function of a size.

    Attributes:
        bytes_at: The fitted polynomial.
        error: Share by which the measurement that was left out lies above (positive) or below the polynomial that was
            fitted without it.
        checked_size: The size of that measurement.
    """

    bytes_at: Polynomial
    error: float
    checked_size: int

    @property
    def is_uncertain(self) -> bool:
        """Whether the fit missed its check by more than LARGEST_ERROR."""
        return abs(self.error) > LARGEST_ERROR

    def largest_within(self, budget: float, sizes: Sequence[int]) -> int | None:
        """Return the largest of the ascending `sizes` whose bytes do not exceed the budget; None if none does."""
        count = bisect_right(sizes, budget, key=self.bytes_at)
        return sizes[count - 1] if count else None


def fit_growth(points: Sequence[Point], check: Point, *, known: Polynomial | None = None) -> Growth:
    """Put a line through two points or a parabola through three, and compare it with a further measurement.

    A fit that said less than was measured would promise too much, the more so the further it is followed. It is
    replaced by one through the last points, the check among them. One that said more is cautious, and stays.

    Args:
        points: Measured, ascending in size.
        check: Measured, at a larger size.
        known: A part of all bytes that need not be fitted; None if there is none.
    """
    known = Polynomial([0]) if known is None else known
    *points, check = ((size, measured - known(size)) for size, measured in (*points, check))
    polynomial = _cautious(points)
    size, measured = check
    error = (measured - polynomial(size)) / (polynomial(size) + known(size))
    if error > 0:
        polynomial = _cautious([*points[1:], check])
    return Growth(polynomial + known, error, size)


def _cautious(points: Sequence[Point]) -> Polynomial:
    """A polynomial through points.

    A parabola that bends down would promise that larger networks need less. It is replaced by the line through the last
    two points, which lies above it from there on.
    """
    polynomial = polynomial_through(points)
    return polynomial_through(points[-2:]) if len(points) == 3 and polynomial.coef[-1] < 0 else polynomial


def polynomial_through(points: Sequence[Point]) -> Polynomial:
    """The polynomial of the lowest degree through points."""
    sizes, values = zip(*points, strict=True)
    degree = len(points) - 1
    coefficients = Polynomial.fit(sizes, values, degree).convert().coef
    return Polynomial([*coefficients, *[0] * (degree + 1 - len(coefficients))])
