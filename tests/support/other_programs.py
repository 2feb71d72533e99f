"""DenseNets with the modules and names of other programs, written from descriptions of these, in plain PyTorch.

Each takes images (N, 3, H, W). Norms have random statistics, so that a module in a wrong place changes the logits.
"""

from collections import OrderedDict

import torch
from torch import nn

from tests.support.perturbed_weights import with_random_norms


class Joined(nn.Module):
    """The input followed by what `self.new` makes of it."""

    def forward(self, x):
        return torch.cat([x, self.new(x)], 1)


def norm_relu_conv(channels, made, size):
    return nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, made, size, padding=size // 2, bias=False)


class VeitLayer(Joined):
    def __init__(self, channels, growth_rate, has_bottleneck):
        super().__init__()
        if has_bottleneck:
            self.bn1, _, self.conv1 = norm_relu_conv(channels, 4 * growth_rate, 1)
            self.bn2, _, self.conv2 = norm_relu_conv(4 * growth_rate, growth_rate, 3)
        else:
            self.bn1, _, self.conv1 = norm_relu_conv(channels, growth_rate, 3)

    def new(self, x):
        x = self.conv1(self.bn1(x).relu())
        return self.conv2(self.bn2(x).relu()) if hasattr(self, "conv2") else x


class Veit(nn.Module):
    """`conv1`, `block1.layer.0.bn1`, `trans1.conv1`, `bn1`, `fc`: three blocks, for 32x32 images."""

    def __init__(self, *, layers=2, growth_rate=4, reduction=0.5, has_bottleneck=True, num_classes=10):
        super().__init__()
        channels = 2 * growth_rate
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for i in (1, 2, 3):
            block = nn.Module()
            block.layer = nn.Sequential(
                *(VeitLayer(channels + j * growth_rate, growth_rate, has_bottleneck) for j in range(layers))
            )
            setattr(self, f"block{i}", block)
            channels += layers * growth_rate
            if i < 3:
                transition = nn.Module()
                transition.bn1, _, transition.conv1 = norm_relu_conv(channels, int(channels * reduction), 1)
                setattr(self, f"trans{i}", transition)
                channels = int(channels * reduction)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        for block, transition in ((self.block1, self.trans1), (self.block2, self.trans2)):
            x = block.layer(x)
            x = nn.functional.avg_pool2d(transition.conv1(transition.bn1(x).relu()), 2)
        return self.fc(self.bn1(self.block3.layer(x)).relu().mean((2, 3)))


def preactivated(channels, made, size):
    """pytorchcv's convolution with the norm and ReLU before it."""
    return nn.Sequential(OrderedDict(zip(("bn", "activ", "conv"), norm_relu_conv(channels, made, size), strict=True)))


class CvUnit(Joined):
    def __init__(self, channels, growth_rate, has_bottleneck):
        super().__init__()
        if has_bottleneck:
            self.conv1 = preactivated(channels, 4 * growth_rate, 1)
            self.conv2 = preactivated(4 * growth_rate, growth_rate, 3)
        else:
            self.conv = preactivated(channels, growth_rate, 3)

    def new(self, x):
        return self.conv2(self.conv1(x)) if hasattr(self, "conv2") else self.conv(x)


class PyTorchCv(nn.Module):
    """`features.init_block`, `features.stage1.unit1.conv1.bn`, `features.stage2.trans2.conv.conv`, `output`."""

    def __init__(self, *, blocks, growth_rate=4, is_small=True, has_bottleneck=True, num_classes=10):
        super().__init__()
        channels = 2 * growth_rate
        self.features = nn.Sequential()
        if is_small:
            self.features.init_block = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        else:
            self.features.init_block = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
                    bn=nn.BatchNorm2d(channels),
                    activ=nn.ReLU(),
                    pool=nn.MaxPool2d(3, stride=2, padding=1),
                )
            )
        for i, layers in enumerate(blocks, start=1):
            stage = nn.Sequential()
            if i > 1:
                transition = nn.Sequential(OrderedDict(conv=preactivated(channels, channels // 2, 1)))
                transition.pool = nn.AvgPool2d(2)
                stage.add_module(f"trans{i}", transition)
                channels //= 2
            for j in range(1, layers + 1):
                stage.add_module(f"unit{j}", CvUnit(channels, growth_rate, has_bottleneck))
                channels += growth_rate
            self.features.add_module(f"stage{i}", stage)
        self.features.post_activ = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(channels), activ=nn.ReLU()))
        self.output = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.output(self.features(x).mean((2, 3)))


class MonaiLayer(Joined):
    def __init__(self, channels, growth_rate):
        super().__init__()
        names = ("norm1", "relu1", "conv1", "norm2", "relu2", "conv2")
        parts = (
            *norm_relu_conv(channels, 4 * growth_rate, 1),
            *norm_relu_conv(4 * growth_rate, growth_rate, 3),
        )
        self.layers = nn.Sequential(OrderedDict(zip(names, parts, strict=True)))

    def new(self, x):
        return self.layers(x)


class Monai(nn.Module):
    """torchvision's names, but `denselayer1.layers.norm1` and `class_layers.out`."""

    def __init__(self, *, blocks, growth_rate=4, num_classes=10):
        super().__init__()
        channels = 2 * growth_rate
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
                norm0=nn.BatchNorm2d(channels),
                relu0=nn.ReLU(),
                pool0=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        for i, layers in enumerate(blocks, start=1):
            block = nn.Sequential()
            for j in range(layers):
                block.add_module(f"denselayer{j + 1}", MonaiLayer(channels + j * growth_rate, growth_rate))
            self.features.add_module(f"denseblock{i}", block)
            channels += layers * growth_rate
            if i < len(blocks):
                names = ("norm", "relu", "conv", "pool")
                parts = (*norm_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2))
                self.features.add_module(f"transition{i}", nn.Sequential(OrderedDict(zip(names, parts, strict=True))))
                channels //= 2
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.class_layers = nn.Sequential(
            OrderedDict(
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                out=nn.Linear(channels, num_classes),
            )
        )

    def forward(self, x):
        return self.class_layers(self.features(x))


def small_veit(**others) -> nn.Module:
    """A network of the layout of andreasveit/densenet-pytorch, the same as `densenet_bc(16, 4)`."""
    torch.manual_seed(3)
    return with_random_norms(Veit(**others)).eval()


OTHER_NETWORKS = {
    "andreasveit": Veit,
    "andreasveit, plain": lambda: Veit(has_bottleneck=False, layers=3, reduction=1.0),
    "andreasveit, another reduction": lambda: Veit(reduction=0.7, growth_rate=3),
    "pytorchcv for small images": lambda: PyTorchCv(blocks=(2, 2, 2)),
    "pytorchcv, plain": lambda: PyTorchCv(blocks=(3, 3, 3), has_bottleneck=False),
    "pytorchcv for ImageNet": lambda: PyTorchCv(blocks=(2, 1, 3, 12), is_small=False),
    "MONAI": lambda: Monai(blocks=(1, 2, 11, 2)),
}
