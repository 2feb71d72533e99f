"""The convolutional part of a DenseNet, a backbone of its own: images to the normalised maps of the last block."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .buffer.eligible import why_call, why_call_block, why_call_reader, why_not_from
from .buffer.function import read_block
from .buffer.network import bottlenecks_kept, has_statistics, is_buffer_wanted
from .buffer.sizes import Stage
from .calls import call_in_order
from .recompute import recompute_in_backward
from .tracing import warn
from .unmodified import are_unwatched, register, why_classes_modified, why_modified


class Features(nn.Sequential):
    """A stem, then dense blocks with a transition after each but the last, which a norm layer follows.

    Maps images (N, 3, H, W) to maps (N, C, H', W'), which no ReLU follows yet. With a buffer strategy, each block and
    the module after it run over one feature buffer in training; a slice of the modules keeps the strategy.

    Args:
        modules: By name, in their order.
        strategy: How the backward pass finds what the forward pass computed; see `DenseNet`.
    """

    def __init__(self, modules: OrderedDict[str, nn.Module], *, strategy: str = "naive"):
        super().__init__(modules)
        self.strategy = strategy

    def __getitem__(self, index: int | slice) -> nn.Module:
        """One of the modules, or some of them as features of the same strategy."""
        part = super().__getitem__(index)
        if isinstance(index, slice):
            part.strategy = self.strategy
        return part

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to maps (N, C, H', W')."""
        if is_buffer_wanted(self.strategy, images, training=self.training):
            return run_over_buffers(self, images, strategy=self.strategy, averages=False)
        return call_in_order(self, images)


def averages_of(features: nn.Module, images: Tensor, *, strategy: str, training: bool) -> Tensor:
    """Compute ReLU and the average over all pixels of `features(images)`: (N, 3, H, W) to (N, C).

    Args:
        features: `Features`, or another module in their place.
        images: (N, 3, H, W).
        strategy: How the backward pass finds what the forward pass computed; see `DenseNet`.
        training: Whether the network is in training mode.
    """
    if is_buffer_wanted(strategy, images, training=training):
        reason = why_modified("features", features) or why_classes_modified([features])
        if not reason:
            return run_over_buffers(features, images, strategy=strategy, averages=True)
        if not isinstance(features, Features):  # which use buffers when they are called, too
            warn(reason)
    return average(features(images), inplace=are_unwatched(features) and may_overwrite(*features.children()))


def average(maps: Tensor, *, inplace: bool = False) -> Tensor:
    """ReLU, then the average over all pixels: (N, C, H, W) to (N, C). With `inplace` the maps are overwritten."""
    return F.adaptive_avg_pool2d(F.relu(maps, inplace=inplace), 1).flatten(1)


def run_over_buffers(features: nn.Sequential, images: Tensor, *, strategy: str, averages: bool) -> Tensor:
    """Call a stem, and run each dense block with the module that reads it over one feature buffer.

    Modules of a stage are not called: only their parameters, buffers and settings are read. Where that would lose
    something, they are called instead, a block over a buffer of its own if it can, and a warning says why.

    Args:
        features: A stem, then dense blocks with a transition after each but the last, which a norm layer follows.
        images: (N, 3, H, W).
        strategy: "buffer" or "buffer_fast".
        averages: Whether ReLU and the average over all pixels follow.

    Returns:
        (N, C) with `averages`, otherwise (N, C, H', W').
    """
    stem, stages = _parts_of(features)
    if not stages:
        warn("its features have been rearranged")
        return _finished(call_in_order(features, images), *features.children(), averages=averages)
    maps = _run_stem(stem, images)
    if not has_statistics(maps):
        maps = call_in_order([module for stage in stages for module in stage], maps)
        return _finished(maps, stages[-1][1], averages=averages)
    over_buffer = [_may_share_buffer(stage, maps) for stage in stages]
    counts = bottlenecks_kept(maps, stages, over_buffer, strategy=strategy)
    for (block, reader), is_over_buffer, count in zip(stages, over_buffer, counts, strict=True):
        if is_over_buffer and has_statistics(maps) and not why_not_from(block, maps):
            maps = read_block(maps, block, reader, num_bottlenecks=count, averages=averages)
        else:
            maps = reader(block(maps))
    return _finished(maps, stages[-1][1], averages=averages)


def _finished(maps: Tensor, *modules: nn.Module, averages: bool) -> Tensor:
    """Average maps (N, C, H, W) of some modules if that is wanted and has not been done yet."""
    return average(maps, inplace=may_overwrite(*modules)) if averages and maps.dim() == 4 else maps


def may_overwrite(*modules: nn.Module) -> bool:
    """Whether the result of modules that were called one after the other may be overwritten: nobody else has it."""
    return bool(modules) and isinstance(modules[-1], nn.BatchNorm2d) and are_unwatched(modules[-1])


def _may_share_buffer(stage: Stage, maps: Tensor) -> bool:
    """Whether a block and the module that reads it may run over one buffer; if not, a warning says why.

    A block whose own layers have to be called says so itself when it is called.
    """
    block, reader = stage
    reason = why_modified("", block) or why_classes_modified([block]) or why_call_reader(reader, maps)
    of_layers = why_call_block(block, maps)
    if reason and not of_layers:
        warn(reason)
    return not (reason or of_layers)


def _parts_of(features: nn.Sequential) -> tuple[list[nn.Module], list[Stage]]:
    """Stem, and each block with what reads it; no blocks if the order of modules is not this network's."""
    names = [name.rstrip("0123456789") for name, _ in features.named_children()]
    modules = list(features.children())
    first = names.index("denseblock") if "denseblock" in names else len(names)
    expected = ["denseblock", "transition"] * (len(names[first:]) // 2 - 1) + ["denseblock", "norm_final"]
    if names[first:] != expected:
        return [], []
    return modules[:first], list(zip(modules[first::2], modules[first + 1 :: 2], strict=True))


def _run_stem(modules: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Norm, ReLU and pooling of the ImageNet form are computed again in the backward pass."""
    maps, rest = call_in_order(modules[:1], images), nn.Sequential(*modules[1:])
    is_own = [type(module) for module in rest] == [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    if not is_own or why_call(rest, maps):
        return call_in_order(rest, maps)
    return recompute_in_backward(partial(call_in_order, rest), maps, norm=rest[0])


register(Features)
