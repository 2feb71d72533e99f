"""The instruments of the benchmark against hand counts."""

import pytest
import torch
from torch import nn

from commands.benchmark import measure
from commands.benchmark.agreement import observe
from commands.benchmark.measure import memory_of, memory_of_step, paired_seconds
from commands.benchmark.step import Step
from models.features import DenseBlock
from tests.support.benchmark_cases import CPU, SMALL, variant

# All counts are of float32, 4 bytes each.


def test_peak_and_rest_of_a_function_with_known_temporaries():
    def function():
        kept = torch.zeros(1000)
        temporary = torch.zeros(500)
        del temporary
        return kept, torch.zeros(250)

    result, memory = memory_of(function, CPU)
    assert len(result) == 2
    assert (memory.peak, memory.kept) == (4 * 1500, 4 * 1250)


def test_memory_that_was_there_before_does_not_count():
    before = [torch.zeros(1000), memory_of(lambda: torch.zeros(1000), CPU)[0]]
    assert memory_of(before.clear, CPU)[1] == measure.Memory(peak=0, kept=0)


def test_a_temporary_inside_an_operator_counts():
    # A product that cannot be written where it belongs is made elsewhere and copied.
    left, right = torch.ones(40, 30), torch.ones(30, 20)
    out = torch.empty(20, 40, 2)[:, :, 0].t()
    memory = memory_of(lambda: torch.mm(left, right, out=out), CPU)[1]
    assert (memory.peak, memory.kept) == (4 * 40 * 20, 0)


def test_what_a_custom_function_hides_from_autograd_counts_as_kept():
    class Hiding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hidden = torch.zeros(1000)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    x = torch.zeros(10, requires_grad=True)
    y, memory = memory_of(lambda: Hiding.apply(x), CPU)
    assert y.requires_grad
    assert memory.kept == 4 * (10 + 1000)


class Chain(nn.Module):
    """A product, exp and sine of 100 values for each image; the first two are logits."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(100))

    def forward(self, images):
        return (images * self.scale).exp().sin()[:, :2]


def test_memory_of_a_step_is_that_of_a_hand_count():
    step = Step(Chain(), torch.ones(50, 100), torch.zeros(50, dtype=torch.int64))
    one_map, number = 4 * 50 * 100, 4
    # Backward needs what exp returned (for exp and for the sine), and of the loss the logarithms (50, 2) and the sum of
    # weights. The product is free after exp, the sine after the loss. The loss itself is returned.
    memory = memory_of_step(step)
    assert memory.kept == one_map + 4 * 50 * 2 + 2 * number
    # The most is alive when the sine goes backward: what exp returned, the gradient of the sine, the cosine and the
    # product of these two; and the loss and its gradient, 1.
    assert memory.peak == 4 * one_map + 2 * number


@pytest.mark.parametrize("num_layers", [1, 4, 8])
def test_kept_bytes_of_a_naive_block_are_those_of_the_closed_form(num_layers):
    start, growth, bottleneck, pixels = 6, 8, 32, 2 * 5 * 4
    torch.manual_seed(0)
    block = DenseBlock(num_layers, start, growth, bn_size=4, drop_rate=0)
    x = torch.randn(2, start, 5, 4, requires_grad=True)
    y, memory = memory_of(lambda: block(x), CPU)
    # Each norm keeps its input and two statistics of each channel, each convolution its input; y is not needed.
    channels = [start + i * growth for i in range(num_layers)] + [bottleneck] * num_layers
    assert memory.kept - y.nbytes == sum(4 * (2 * count * pixels + 2 * count) for count in channels)


def test_gradients_and_batch_are_not_memory_of_a_step():
    step = variant("naive").step(SMALL)
    before = {name: parameter.grad for name, parameter in step.network.named_parameters()}
    result, memory = memory_of(step, CPU)
    assert memory.kept == result.nbytes
    assert all(parameter.grad is before[name] for name, parameter in step.network.named_parameters())


def test_a_second_step_has_the_gradients_of_the_first():
    step = variant("naive").step(SMALL)
    step.network.eval()  # running statistics do not change the outputs then
    first = observe(step)
    assert all(torch.equal(tensor, first[name]) for name, tensor in observe(step).items())


def test_variants_take_turns_and_every_second_round_goes_backwards(monkeypatch):
    steps = [variant("naive").step(SMALL) for _ in range(3)]
    seen = []

    def note(step, device):
        seen.append(steps.index(step))
        return float(len(seen))

    monkeypatch.setattr(measure, "seconds_of", note)
    assert paired_seconds(steps, rounds=3) == [[1, 6, 7], [2, 5, 8], [3, 4, 9]]
    assert seen == [0, 1, 2, 2, 1, 0, 0, 1, 2]


@pytest.mark.gpu
def test_memory_on_a_gpu_is_counted_by_its_allocator():
    device = torch.device("cuda", 0)
    before = torch.zeros(1024, device=device)

    def function():
        temporary = torch.zeros(1024, device=device)
        del temporary
        return before + 1

    result, memory = memory_of(function, device)
    assert (memory.peak, memory.kept) == (result.nbytes, result.nbytes)
    assert memory.reserved >= 2 * result.nbytes
