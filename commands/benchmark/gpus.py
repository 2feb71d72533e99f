"""GPUs that `--simulate` knows: figures of their data sheets, and guesses at what data sheets leave out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU. Everything above `memory_share` is from its data sheet, everything from there on is a guess.

    Attributes:
        title: Its full name.
        capability: CUDA compute capability.
        bandwidth: Of its memory, in GB/s.
        cache: Of the second level, in MB.
        multiprocessors: Their number.
        fp32: Rate of multiplications and additions in fp32, without tensor cores, in TFLOP/s.
        tf32: Rate of its tensor cores in TF32, in TFLOP/s; None if they have no such mode.
        half: Rate of its tensor cores in fp16, and in bf16 if they have it, with sums in fp32, in TFLOP/s.
        memory_share: Share of the bandwidth that a large copy reaches.
        cache_bandwidth: In GB/s.
        clock_share: Share of the clock that the rates assume and that the GPU sustains.
        gap: Microseconds from one kernel to the next, besides the time that bytes and products take.
        graph_gap: The same between kernels of a CUDA graph.
    """

    title: str
    capability: tuple[int, int]
    bandwidth: float
    cache: float
    multiprocessors: int
    fp32: float
    tf32: float | None
    half: float
    memory_share: float
    cache_bandwidth: float
    clock_share: float
    gap: float
    graph_gap: float

    def rate(self, precision: str) -> float | None:
        """Peak rate of products in a precision of the command line in TFLOP/s; None if the GPU does not have it."""
        if precision == "bf16" and self.capability < (8, 0):
            return None
        return {"fp32": self.fp32, "tf32": self.tf32, "bf16": self.half, "fp16": self.half}[precision]


# Dense rates, from NVIDIA's data sheets of T4, A100 and H100 and its white papers on the architectures Ampere GA102 and
# Ada. The white papers round; data sheets of the H100 give twice these rates for tensor cores, which is with sparsity.
# The guesses are those with which the model came closest to published times of DenseNets (see `simulate`).
GPUS = {
    "h100": Gpu("H100 SXM", (9, 0), 3350, 50, 132, 67.0, 495, 989, 0.90, 6500, 0.85, 2.3, 1.5),
    "a100": Gpu("A100 SXM 40 GB", (8, 0), 1555, 40, 108, 19.5, 156, 312, 0.88, 4500, 0.90, 2.5, 1.6),
    "4090": Gpu("GeForce RTX 4090", (8, 9), 1008, 72, 128, 82.6, 82.6, 165, 0.90, 4500, 0.90, 2.0, 1.3),
    "3090": Gpu("GeForce RTX 3090", (8, 6), 936, 6, 82, 35.6, 35.6, 71, 0.90, 2500, 0.85, 2.5, 1.6),
    "t4": Gpu("Tesla T4", (7, 5), 320, 4, 40, 8.1, None, 65, 0.75, 1000, 0.60, 3.0, 2.2),
}
