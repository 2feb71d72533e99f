"""The table of `--simulate`: what a step takes on a GPU that need not be there, as a model predicts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from commands.benchmark.count import training_bytes
from commands.benchmark.gpus import Gpu
from commands.benchmark.simulate import ABSOLUTE_ERROR, Prediction, middle_of, predict
from commands.benchmark.step import MB, Case
from commands.benchmark.traffic import trace_step
from commands.benchmark.variants import Variant, without_second_naive
from commands.memory import GB
from commands.tables import aligned, to_csv
from train.terminal import progress

HEADER = ["", "GB moved", "launches", "peak MB", "ms", "(low - high)", "ratio", "(low - high)"]
HEADER_OF_GRAPH = ["ms graph", "ratio", "(low - high)"]


@dataclass(frozen=True)
class Row:
    """The prediction for a variant.

    Attributes:
        name: Of the variant.
        bytes_moved: Bytes that the kernels of a step read and write.
        num_launches: Calls that give the GPU work.
        peak: The most bytes alive in a step.
        prediction: The time of a step.
    """

    name: str
    bytes_moved: int
    num_launches: int
    peak: int
    prediction: Prediction

    def cells(self, naive: "Row") -> list[str]:
        """The row as it is printed."""
        time, naive_time = self.prediction.time, naive.prediction.time
        low, high = self.prediction.interval
        cells = [self.name, f"{self.bytes_moved / GB:,.2f}", f"{self.num_launches:,}", f"{self.peak / MB:,.1f}"]
        cells += [f"{time.eager:,.1f}", f"({low:,.1f} - {high:,.1f})"]
        draws = list(zip(self.prediction.draws, naive.prediction.draws, strict=True))
        cells += _cells_of_ratio(time.eager / naive_time.eager, [one.eager / other.eager for one, other in draws])
        cells += [f"{time.graph:,.1f}"]
        return cells + _cells_of_ratio(time.graph / naive_time.graph, [one.graph / other.graph for one, other in draws])

    def record(self) -> dict[str, object]:
        """The row for CSV."""
        low, high = self.prediction.interval
        return {
            "variant": self.name,
            "gb_moved": round(self.bytes_moved / GB, 4),
            "launches": self.num_launches,
            "peak_mb": round(self.peak / MB, 4),
            "ms": round(self.prediction.time.eager, 4),
            "ms_graph": round(self.prediction.time.graph, 4),
            "ms_low": round(low, 4),
            "ms_high": round(high, 4),
        }


def _cells_of_ratio(ratio: float, drawn: list[float]) -> list[str]:
    low, high = middle_of(drawn)
    return [f"{ratio:.2f}", f"({min(low, ratio):.2f} - {max(high, ratio):.2f})"]


@dataclass(frozen=True)
class Predictions:
    """The predictions for all variants; the first is naive.

    Attributes:
        case: The network and the batch.
        gpu: The GPU.
        rows: One for each variant.
    """

    case: Case
    gpu: Gpu
    rows: list[Row]

    def as_text(self) -> str:
        """The table with its title and its legend."""
        title = f"PREDICTION, not measured: {self.case.title}, {self.case.precision}, on an NVIDIA {self.gpu.title}"
        rows = aligned([HEADER + HEADER_OF_GRAPH, *(row.cells(self.rows[0]) for row in self.rows)])
        return "\n".join([title, "", rows, "", *self._legend()])

    def _legend(self) -> list[str]:
        lines = [
            "A model computed this from a count of the step's operations. No step ran, and no GPU was used.",
            "step: forward, loss and backward, without the optimizer",
            "GB moved: 10^9 bytes that all kernels read and write; launches: calls that give the GPU something to do",
            "peak: most bytes alive in a step, above parameters, buffers, gradients and the batch, without workspaces",
            "ms: one of many steps, launched from Python; ms graph: the same in a CUDA graph",
            "ratio: to naive, both launched from Python or both in a CUDA graph",
            "(low - high): 80 % of the results when the guesses in the model are drawn at random; for ms it reaches at "
            f"least {ABSOLUTE_ERROR:.0%} to each side",
        ]
        if self.case.network.drop_rate:
            lines.append("dropout that PyTorch runs counts as three calls; on a GPU it is one")
        return [*lines, f"torch {version('torch')}, torchvision {version('torchvision')}"]

    def as_csv(self) -> bytes:
        """A line for each variant."""
        return to_csv([row.record() for row in self.rows])


def predict_all(variants: Sequence[Variant], case: Case, gpu: Gpu) -> Predictions:
    """Predict the step of all variants on a GPU.

    Args:
        variants: The first two are naive in both memory formats; the second is left out. None is compiled.
        case: The network, the batch and a precision that the GPU has; its device does not matter.
        gpu: The GPU.
    """
    rows = [_row(variant, case, gpu) for variant in progress(without_second_naive(variants), "count")]
    return Predictions(case, gpu, rows)


def _row(variant: Variant, case: Case, gpu: Gpu) -> Row:
    trace = trace_step(variant, case, gpu.capability)
    peak = training_bytes(variant, case, gpu.capability).peak
    return Row(variant.name, trace.bytes_moved, trace.num_launches, peak, predict(trace, gpu, case.precision))
