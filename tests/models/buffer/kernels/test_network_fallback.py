"""Where kernels cannot be used, blocks run as on a CPU."""

from unittest.mock import patch

import pytest

from models.buffer.kernels import check
from tests.support.kernel_networks import CAPABILITIES, by_kernels, few_images, naive_and_buffer, step
from tests.support.network_pairs import DROPPING, ROUNDING
from tests.support.tensor_measurements import largest_difference
from tests.support.triton_interpreter import MARKS

pytestmark = MARKS


@CAPABILITIES
def test_float64_is_computed_by_pytorch(capability):
    naive, buffer = (network.double() for network in naive_and_buffer(**DROPPING))
    with by_kernels(capability) as launches:
        expected, actual = (step(network, few_images().double()) for network in (naive, buffer))
    assert launches == []
    assert largest_difference(actual, expected) <= ROUNDING


@pytest.mark.parametrize("capability", [(7, 0), (6, 1)])
def test_gpus_that_are_too_old_have_no_kernels(capability):
    naive, buffer = naive_and_buffer(**DROPPING)
    with by_kernels(capability) as launches:
        expected, actual = (step(network, few_images()) for network in (naive, buffer))
    assert launches == []
    assert largest_difference(actual, expected) < 3e-5


@CAPABILITIES
def test_kernels_that_are_wrong_are_not_used_and_one_warning_says_so(capability):
    naive, buffer = naive_and_buffer(**DROPPING)
    with by_kernels(capability) as launches, patch.object(check, "_difference", return_value="they are wrong"):
        expected = step(naive, few_images())
        with pytest.warns(UserWarning, match="slower operations take the place of kernels, they are wrong") as told:
            actual = step(buffer, few_images())
        assert len(told) == 1
        step(buffer, few_images())  # another warning would be an error
    assert launches == []
    assert largest_difference(actual, expected) < 3e-5
