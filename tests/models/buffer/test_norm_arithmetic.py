import pytest
import torch
from torch import Tensor, nn

from models.buffer.dropout import NO_DROPOUT
from models.buffer.feature_buffer import FeatureBuffer
from models.buffer.norms import ChannelNorm, RunningStatistics
from models.buffer.operations import affine_of, chunk_moments, join_moments, sums_of_products
from models.buffer.rows import as_rows
from models.buffer.workspace import Workspace

MAPS = torch.randn(3, 4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 3


def random_norm(**settings) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4, **settings).double()
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    nn.init.normal_(norm.bias)
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return norm


def through_the_buffer(norm: nn.BatchNorm2d) -> Tensor:
    """Normalise MAPS as a reader of all channels of a buffer does, which holds two more channels than these."""
    buffer = FeatureBuffer(MAPS, 6, torch.float64)
    moments = buffer.work.moments()
    moments.add(torch.randn(3 * 5 * 2, 2, dtype=torch.float64))
    moments.result(1e-5, out=buffer.append(2)[1])
    of_channels = ChannelNorm.over_buffer(norm, buffer.statistics, len(buffer.rows))
    move_running_statistics(norm, buffer.statistics.mean, buffer.statistics.unbiased)
    rows = normalised(buffer.rows[:, :4], of_channels)
    return rows.view(3, 5, 2, 4).permute(0, 3, 1, 2)


def normalised(rows: Tensor, norm: ChannelNorm) -> Tensor:
    scale, shift = affine_of(norm)
    return rows * scale + shift


def move_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
    running = RunningStatistics()
    running.note(norm, mean, unbiased)
    running.update()


def over_rows(rows: Tensor, norm: nn.BatchNorm2d) -> ChannelNorm:
    """Let a layer read rows as it reads a bottleneck, and update its running statistics."""
    statistics = join_moments([chunk_moments(rows)], norm.eps)
    move_running_statistics(norm, statistics.mean, statistics.unbiased)
    return ChannelNorm.over_rows(norm, statistics)


SETTINGS = {
    "usual": {},
    "large eps": {"eps": 0.5},
    "small eps": {"eps": 1e-12},
    "cumulative": {"momentum": None},
    "forgetful": {"momentum": 1.0},
    "without statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_reader_normalises_as_the_layer_does(name, training):
    expected, actual = (random_norm(**SETTINGS[name]).train(training) for _ in range(2))
    for _ in range(3):
        torch.testing.assert_close(through_the_buffer(actual), expected(MAPS), rtol=1e-10, atol=1e-10)
    for key, tensor in expected.named_buffers():
        torch.testing.assert_close(actual.get_buffer(key), tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_raw_rows_are_normalised_and_differentiated_as_by_the_layer(name, training):
    expected, actual = (random_norm(**SETTINGS[name]).train(training) for _ in range(2))
    maps = MAPS.clone().requires_grad_()
    result = expected(maps)
    grad = torch.randn(MAPS.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(result, (maps, expected.bias, expected.weight), grad)
    rows, grad_rows = as_rows(MAPS), as_rows(grad)
    with torch.no_grad():
        norm = over_rows(rows, actual)
        sums = sums_of_products(grad_rows, rows, norm.mean, norm.invstd)
        of_rows = Workspace(rows, (3, 5, 2), is_small=False).bottleneck_gradient(norm, *sums)(
            grad_rows, rows, NO_DROPOUT
        )
    torch.testing.assert_close(normalised(rows, norm), as_rows(result), rtol=1e-12, atol=1e-12)
    for key, tensor in expected.named_buffers():
        torch.testing.assert_close(actual.get_buffer(key), tensor, rtol=1e-12, atol=1e-12)
    of_maps, *of_parameters = gradients
    torch.testing.assert_close(of_rows, as_rows(of_maps), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sums, tuple(of_parameters), rtol=1e-10, atol=1e-10)


def test_a_layer_that_does_not_count_steps_is_the_same():
    expected, actual = random_norm(), random_norm()
    expected.num_batches_tracked = actual.num_batches_tracked = None
    expected(MAPS)
    over_rows(as_rows(MAPS), actual)
    torch.testing.assert_close(actual.running_mean, expected.running_mean, rtol=1e-12, atol=1e-12)


def test_a_layer_in_eval_mode_counts_no_step():
    norm = random_norm().eval()
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    move_running_statistics(norm, torch.ones(4), torch.ones(4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_layers_of_different_momentum_move_together_as_each_alone():
    momenta = [0.1, None, 0.7, 0.1]
    alone, together = ([random_norm(momentum=momentum) for momentum in momenta] for _ in range(2))
    for step in range(2):
        running = RunningStatistics()
        for number, norms in enumerate(zip(alone, together, strict=True)):
            statistics = torch.randn(2, 4, generator=torch.Generator().manual_seed(10 * step + number)).double()
            move_running_statistics(norms[0], *statistics)
            running.note(norms[1], *statistics)
        running.update()
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one.buffers(), other.buffers(), strict=True))


def test_maps_of_16_bits_have_statistics_of_32():
    maps = (torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0)) + 30).bfloat16()
    buffer = FeatureBuffer(maps, 16, torch.bfloat16)
    rows = as_rows(maps)
    assert torch.equal(buffer.rows, rows)
    expected = (rows.double().mean(0), rows.double().var(0), (rows.double().var(0, correction=0) + 1e-5).rsqrt())
    for found, exact in zip(buffer.statistics, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
