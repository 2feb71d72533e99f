import pytest
import torch
from torch import Tensor, nn

from models.feature_buffer import FeatureBuffer
from models.norms import Norm, update_running_statistics

MAPS = torch.randn(3, 4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 3


def random_norm(**settings) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4, **settings).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return norm


def through_the_buffer(norm: nn.BatchNorm2d) -> Tensor:
    """Normalise MAPS as a reader of all channels of a buffer does, which holds two more channels than these."""
    buffer = FeatureBuffer(MAPS, 6, torch.float64)
    buffer.append(torch.zeros(3, 2, 5, 2, dtype=torch.float64))
    affine = Norm.of(norm).affine(norm.weight, norm.bias, buffer.statistics, len(buffer.rows))
    update_running_statistics(norm, buffer.statistics)
    rows = buffer.rows[:, :4] * affine.scale + affine.shift
    return rows.view(3, 5, 2, 4).permute(0, 3, 1, 2)


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
def test_maps_are_normalised_and_differentiated_as_by_the_layer(name, training):
    expected, actual = (random_norm(**SETTINGS[name]).train(training) for _ in range(2))
    maps = MAPS.clone().requires_grad_()
    result = expected(maps)
    grad = torch.randn(MAPS.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(result, (maps, expected.weight, expected.bias), grad)

    norm = Norm.of(actual)
    with torch.no_grad():
        out, *batch = norm.normalise(MAPS, actual.weight, actual.bias, update=actual)
    torch.testing.assert_close(out, result, rtol=1e-12, atol=1e-12)
    for key, tensor in expected.named_buffers():
        torch.testing.assert_close(actual.get_buffer(key), tensor, rtol=1e-12, atol=1e-12)
    again = norm.normalise_backward(grad, MAPS, actual.weight, *batch)
    torch.testing.assert_close(again, gradients, rtol=1e-10, atol=1e-10)


def test_a_second_computation_leaves_running_statistics_alone():
    norm = random_norm()
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with torch.no_grad():
        Norm.of(norm).normalise(MAPS, norm.weight, norm.bias)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_a_layer_that_does_not_count_steps_is_the_same():
    expected, actual = random_norm(), random_norm()
    expected.num_batches_tracked = actual.num_batches_tracked = None
    with torch.no_grad():
        result = expected(MAPS)
        out, *_ = Norm.of(actual).normalise(MAPS, actual.weight, actual.bias, update=actual)
    torch.testing.assert_close(out, result, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual.running_mean, expected.running_mean, rtol=1e-12, atol=1e-12)


def test_a_layer_in_eval_mode_counts_no_step():
    norm = random_norm().eval()
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    update_running_statistics(norm, FeatureBuffer(MAPS, 4, torch.float64).statistics)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
