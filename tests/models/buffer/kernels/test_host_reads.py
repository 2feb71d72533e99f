"""A step by kernels never reads a value on the host, which would wait for the device."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from models import DenseNet
from tests.support.kernel_networks import CAPABILITIES, FUSED, TINY, by_kernels
from tests.support.network_pairs import KINDS
from tests.support.tensor_measurements import OperationCounts, norms
from tests.support.triton_interpreter import MARKS

pytestmark = MARKS

# Operations whose results, or their shapes, have to be known on the host.
READS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip


def operations_of(capability, strategy, config):
    """Names of the operations of a step and of its launches, on fake tensors."""
    with torch.device("meta"):
        network = DenseNet(**(TINY | config), efficient=strategy)
    for norm in list(norms(network))[::2]:
        norm.momentum = None  # the number of steps decides how running statistics change
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, by_kernels(capability) as launches, OperationCounts() as operations:
        network.to_empty(device="cpu")
        images, labels = torch.empty(2, 3, 9, 7), torch.empty(2, dtype=torch.long)
        F.cross_entropy(network(images), labels).backward()
    return {name.partition(" ")[0] for name in operations.counts}, {launch.name for launch in launches}


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [*(("buffer", kind) for kind in KINDS), ("buffer_fast", "dropping"), ("buffer_small", "dropping")],
)
@CAPABILITIES
def test_no_value_is_read(capability, strategy, kind):
    config = {name: KINDS[kind][name] for name in KINDS[kind].keys() - TINY.keys()}
    operations, launches = operations_of(capability, strategy, config)
    assert operations & READS == set()
    assert {"sums_of_norm", "join_reader"} <= launches
    assert ("backward_3x3" in launches) == (capability == FUSED and config.get("bn_size", 4) is not None)


def test_a_value_that_is_read_would_be_seen():
    with OperationCounts() as operations:
        torch.ones(1).item()
    assert READS & set(operations.counts) == {"_local_scalar_dense"}
