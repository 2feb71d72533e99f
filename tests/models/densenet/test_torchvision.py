"""Training steps and logits are those of torchvision's network with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import DenseNet as TorchvisionDenseNet

from models import DenseNet


def torchvision_name(name: str) -> str:
    return name.replace("norm_final", "norm5")


def torchvision_twins(small_inputs: bool, drop_rate: float, efficient: bool) -> tuple[nn.Module, nn.Module]:
    """Build our network and torchvision's with the same random weights and statistics, in float64."""
    torch.manual_seed(0)
    block_config = (2, 3, 2) if small_inputs else (2, 3, 2, 2)
    theirs = TorchvisionDenseNet(8, block_config, num_init_features=16, drop_rate=drop_rate, num_classes=10)
    if small_inputs:
        theirs.features.conv0 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        del theirs.features.norm0, theirs.features.relu0, theirs.features.pool0
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.5)
                module.running_mean.normal_(std=0.5)
                module.running_var.uniform_(0.5, 1.5)
    ours = DenseNet(
        8,
        block_config,
        num_init_features=16,
        drop_rate=drop_rate,
        small_inputs=small_inputs,
        efficient=efficient,
    )
    state = theirs.state_dict()
    ours.load_state_dict({name: state[torchvision_name(name)] for name in ours.state_dict()})
    return ours.double(), theirs.double()


def training_step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images = images.clone().requires_grad_()
    logits = network(images)
    F.cross_entropy(logits, labels).backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"logits": logits, "gradient of images": images.grad, **gradients, **dict(network.named_buffers())}


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("drop_rate", [0, 0.2])
@pytest.mark.parametrize("small_inputs", [True, False])
def test_training_step_and_evaluation_agree_with_torchvision(small_inputs, drop_rate, efficient):
    ours, theirs = torchvision_twins(small_inputs, drop_rate, efficient)
    images = torch.randn(4, 3, *((16, 16) if small_inputs else (64, 64)), dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 9])

    step, their_step = (training_step(network, images, labels) for network in (ours, theirs))
    assert {torchvision_name(name) for name in step} == their_step.keys()
    for name, tensor in step.items():
        expected = their_step[torchvision_name(name)]
        torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)
        assert tensor.abs().sum() > 0, name

    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-9, atol=1e-12)
