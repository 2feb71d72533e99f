import copy
import io
import pickle
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import DenseNet
from models import densenet as densenet_module
from models import recompute as recompute_module
from models.densenet import DenseBlock, DenseLayer, PlainLayer
from models.recompute import FrozenRunningStatistics
from tests.tensors import (
    LiveStorages,
    OperationCounts,
    assert_undisturbed_by_threads,
    bytes_saved_for_backward,
    naive_and,
    norms,
    random_images,
    record,
    second_differences,
    train,
    train_on_replicas_in_threads,
    unequal,
)

# The package gives this name to a function.

SMALL = {"growth_rate": 4, "block_config": (3, 2), "num_init_features": 8, "num_classes": 5}
PLAIN = SMALL | {"bn_size": None, "compression": 1}
CONFIGS = {"small": SMALL, "plain": PLAIN, "imagenet": SMALL | {"small_inputs": False}}
SIDE = {"small": 8, "plain": 8, "imagenet": 32}
DROPPING = {"drop_rate": 0.2, "drop_where": "convolutions"}
DROPOUTS = {"nothing": {}, "layers": {"drop_rate": 0.2}, "convolutions": DROPPING}
PRECISIONS = {"float32": nullcontext, "bf16": partial(torch.autocast, "cpu", dtype=torch.bfloat16)}


def naive_and_efficient(**config) -> tuple[DenseNet, DenseNet]:
    return naive_and("checkpoint", **(SMALL | config))


def assert_same_training(naive: nn.Module, efficient: nn.Module, images: Tensor, **kwargs) -> None:
    expected, actual = (train(network, images, **kwargs) for network in (naive, efficient))
    for step, (left, right) in enumerate(zip(expected, actual, strict=True)):
        assert unequal(left, right) == [], f"step {step}"
    assert unequal(expected[0], expected[-1]), "the steps changed nothing, so this comparison shows nothing"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("form", CONFIGS)
def test_training_is_the_same_bit_for_bit(form, dropout, memory_format, precision):
    networks = naive_and_efficient(**(CONFIGS[form] | DROPOUTS[dropout]))
    naive, efficient = (network.to(memory_format=memory_format) for network in networks)
    images = random_images(SIDE[form]).contiguous(memory_format=memory_format)
    assert_same_training(naive, efficient, images, precision=PRECISIONS[precision])


def test_training_is_the_same_bit_for_bit_on_two_threads():
    torch.set_num_threads(2)
    try:
        assert_same_training(*naive_and_efficient(), random_images(side=32, images=16))
    finally:
        torch.set_num_threads(1)


def test_cumulative_averages_are_the_same():
    networks = naive_and_efficient()
    for network in networks:
        for norm in norms(network):
            norm.momentum = None
    assert_same_training(*networks, random_images())


def test_norms_without_running_statistics_are_the_same():
    networks = naive_and_efficient()
    for network in networks:
        for norm in norms(network):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    assert_same_training(*networks, random_images())


def test_a_norm_in_eval_mode_inside_a_training_network_is_the_same():
    networks = naive_and_efficient()
    for network in networks:
        network.features.denseblock1.denselayer2.norm1.eval()
    assert_same_training(*networks, random_images())
    frozen = networks[1].features.denseblock1.denselayer2.norm1
    assert frozen.num_batches_tracked == 0
    assert networks[1].features.denseblock1.denselayer1.norm1.num_batches_tracked == 3


@pytest.mark.parametrize("input_gradient", [False, True])
@pytest.mark.parametrize(
    "trainable",
    [
        "features",
        "classifier",
        "features.denseblock2",
        "features.denseblock1.denselayer3",
        "features.denseblock1.denselayer2.norm1",
        "features.denseblock1.denselayer2.conv1",
        "features.denseblock1.denselayer2.conv2",
    ],
)
def test_training_a_part_is_the_same(trainable, input_gradient):
    networks = naive_and_efficient()
    for network in networks:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(trainable))
    assert_same_training(*networks, random_images(), input_gradient=input_gradient)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_accumulated_gradients_are_the_same(order):
    def accumulate(network: DenseNet) -> dict[str, Tensor]:
        losses = [network(part).square().sum() for part in random_images(images=6).split(3)]
        for index in order:
            losses[index].backward()
        return record(network)

    naive, efficient = map(accumulate, naive_and_efficient())
    assert unequal(naive, efficient) == []
    assert efficient["features.denseblock1.denselayer1.norm1.num_batches_tracked"] == 2


@pytest.mark.parametrize("config", [SMALL | DROPPING, PLAIN | DROPPING], ids=["bottlenecks", "plain"])
def test_a_retained_graph_gives_the_same_gradients_again(config):
    network = naive_and_efficient(**config)[1]
    loss = network(random_images()).square().sum()
    loss.backward(retain_graph=True)
    once = record(network)
    loss.backward()
    twice = record(network)
    gradients = [name for name in once if name.startswith("gradient of ")]
    assert unequal({name: 2 * once[name] for name in gradients}, {name: twice[name] for name in gradients}) == []
    assert unequal({name: once[name] for name in network.state_dict()}, network.state_dict()) == []


@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
def test_second_derivatives_are_the_same(config):
    def penalise(network: DenseNet) -> dict[str, Tensor]:
        images = random_images().double().requires_grad_()
        loss = network(images).square().sum()
        (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
        gradient.square().sum().backward()
        return record(network, images=images.grad)

    naive, efficient = (penalise(network.double()) for network in naive_and_efficient(**config))
    for name, tensor in naive.items():
        torch.testing.assert_close(efficient[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


LAYERS_THAT_DROP = {
    "bottleneck": lambda: DenseLayer(5, 2, bn_size=2, drop_rate=0.2, checkpoint=True, bottleneck_drop_rate=0.2),
    "plain": lambda: PlainLayer(5, 2, drop_rate=0.2, checkpoint=True),
}


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("kind", LAYERS_THAT_DROP)
def test_gradients_agree_with_finite_differences(kind, drops):
    torch.manual_seed(0)
    layer = LAYERS_THAT_DROP[kind]().double()
    if not drops:
        layer.drop_rate = layer.bottleneck_drop_rate = 0
    features = [torch.randn(3, channels, 3, 3, dtype=torch.float64, requires_grad=True) for channels in (3, 2)]

    def make(*tensors: Tensor) -> Tensor:
        torch.manual_seed(1)
        return layer(tensors[:2])

    assert torch.autograd.gradcheck(make, (*features, *layer.parameters()))


def test_the_comparison_catches_statistics_that_are_updated_twice(monkeypatch):
    monkeypatch.setattr(recompute_module, "FrozenRunningStatistics", lambda norm: nullcontext())
    naive, efficient = naive_and_efficient()
    expected, actual = (train(network, random_images(), steps=1)[0] for network in (naive, efficient))
    recomputed = {f"{name}." for name, _ in naive.named_modules() if name.endswith("norm1")}
    assert len(recomputed) == 5
    buffers = {name for name, _ in naive.named_buffers() if name.rpartition(".")[0] + "." in recomputed}
    assert len(buffers) == 15
    assert set(unequal(expected, actual)) == buffers
    assert actual["features.denseblock1.denselayer1.norm1.num_batches_tracked"] == 2


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_normalise_as_usual_and_touch_one_module_only(training):
    torch.manual_seed(0)
    frozen, other = (nn.BatchNorm2d(3).train(training) for _ in range(2))
    images = 2 + 3 * random_images()
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    with FrozenRunningStatistics(frozen):
        assert torch.equal(frozen(images), other(images))
    assert unequal(before, dict(frozen.named_buffers())) == []
    assert bool(unequal(before, dict(other.named_buffers()))) == training


def test_buffers_stay_the_same_registered_objects():
    network = naive_and_efficient()[1]
    before, names = dict(network.named_buffers()), list(network.state_dict())
    addresses = {name: buffer.data_ptr() for name, buffer in before.items()}
    train(network, random_images())
    after = dict(network.named_buffers())
    assert list(network.state_dict()) == names
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert {name: buffer.data_ptr() for name, buffer in after.items()} == addresses


def test_a_failing_recomputation_gives_the_buffers_back():
    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("out of memory")

    layer = DenseLayer(3, growth_rate=2, bn_size=2, drop_rate=0, checkpoint=True)
    loss = layer([random_images()]).sum()
    objects = dict(layer.named_buffers())
    values = {name: buffer.clone() for name, buffer in objects.items()}
    layer.relu1.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss.backward()
    after = dict(layer.named_buffers())
    assert all(after[name] is objects[name] for name in objects)
    assert unequal(values, after) == []


def test_a_copy_in_any_form_trains_on_as_the_original():
    network = naive_and_efficient(drop_rate=0.2)[1]
    train(network, random_images(), steps=1)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    loaded = DenseNet(**SMALL, drop_rate=0.2)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded]

    expected = train(network, random_images(), steps=2)
    for duplicate in copies:
        for left, right in zip(expected, train(duplicate, random_images(), steps=2), strict=True):
            assert unequal(left, right) == []


def refuse(*args: object, **kwargs: object) -> Tensor:
    raise AssertionError("recomputation was asked for")


def test_only_training_with_gradients_recomputes(monkeypatch):
    monkeypatch.setattr(densenet_module, "recompute_in_backward", refuse)
    network, images = naive_and_efficient()[1], random_images()
    with pytest.raises(AssertionError, match="recomputation was asked for"):
        network(images)
    with torch.no_grad():
        network(images)
    with torch.inference_mode():
        network(images)
    network.eval()(images).sum().backward()


def test_a_compiled_network_trains_the_same_and_keeps_less():
    naive, efficient = naive_and_efficient()
    efficient.compile(backend="aot_eager")
    images = random_images()
    kept = [
        bytes_saved_for_backward(partial(network, images), without=[*network.parameters(), *network.buffers()])
        for network in (naive, efficient)
    ]
    assert kept[1] < 0.9 * kept[0]
    expected, actual = (train(network, images) for network in (naive, efficient))
    for left, right in zip(expected, actual, strict=True):
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5, msg=name)


def test_naive_mode_never_recomputes(monkeypatch):
    monkeypatch.setattr(densenet_module, "recompute_in_backward", refuse)
    naive_and_efficient()[0](random_images()).sum().backward()


def test_statistics_without_gradients_are_the_same():
    naive, efficient = naive_and_efficient()
    with torch.no_grad():
        logits, efficient_logits = (network(random_images()) for network in (naive, efficient))
    assert torch.equal(logits, efficient_logits)
    assert unequal(naive.state_dict(), efficient.state_dict()) == []
    assert efficient.features.norm_final.num_batches_tracked == 1


# Memory and arithmetic of one block. Letters: m layers, k = GROWTH new channels each, C_i = START + i * k channels read
# by layer i = 0 ... m - 1, B = 4 * k channels of its bottleneck, MAP bytes of one channel of all images.

START, GROWTH, BOTTLENECK = 6, 8, 32
IMAGES, SIDES = 2, (5, 4)
MAP = 4 * IMAGES * SIDES[0] * SIDES[1]
STATISTICS = 4 + 4  # Each norm keeps mean and inverse standard deviation of a channel in float32.
LAYERS = (4, 8, 12, 16)


def block_and_input(num_layers: int, efficient: bool, bn_size: int | None = 4) -> tuple[DenseBlock, Tensor]:
    torch.manual_seed(0)
    block = DenseBlock(num_layers, START, GROWTH, bn_size, drop_rate=0, checkpoint=efficient)
    return block, torch.randn(IMAGES, START, *SIDES, requires_grad=True)


def kept_bytes(num_layers: int, efficient: bool, bn_size: int | None = 4) -> int:
    """Sum what is alive between forward and backward, besides the block's input, output, parameters and buffers.

    No garbage is collected before: what a reference cycle holds is in the way of the next layers, too.
    """
    block, x = block_and_input(num_layers, efficient, bn_size)
    with LiveStorages() as storages:
        y = block(x)
    return storages.live_bytes(without=[x, y, *block.parameters(), *block.buffers()])


def kept_bytes_behind_the_bottleneck() -> int:
    # norm2 keeps its input and its statistics; conv2 keeps its input, which the ReLU made in place of norm2's output.
    return 2 * BOTTLENECK * MAP + BOTTLENECK * STATISTICS


@pytest.mark.parametrize("num_layers", LAYERS)
def test_naive_bytes_kept_for_backward(num_layers):
    # norm1 keeps the concatenation and its statistics; conv1 keeps the normalised copy, rectified in place. The new
    # maps themselves are dropped, because each concatenation is a copy.
    channels = [START + i * GROWTH for i in range(num_layers)]
    bottlenecks = sum(2 * c * MAP + c * STATISTICS for c in channels)
    assert kept_bytes(num_layers, efficient=False) == bottlenecks + num_layers * kept_bytes_behind_the_bottleneck()


@pytest.mark.parametrize("num_layers", LAYERS)
def test_efficient_bytes_kept_for_backward(num_layers):
    # Of the inputs of all bottlenecks only the new maps are kept, once each. No layer reads the maps of the last one.
    new_maps = (num_layers - 1) * GROWTH * MAP
    assert kept_bytes(num_layers, efficient=True) == new_maps + num_layers * kept_bytes_behind_the_bottleneck()


@pytest.mark.parametrize("num_layers", LAYERS)
def test_bytes_kept_for_backward_without_bottlenecks(num_layers):
    # Naively norm1 keeps the concatenation and its statistics, and conv1 the normalised copy. Otherwise the new maps
    # are kept, once each, and nothing else.
    channels = [START + i * GROWTH for i in range(num_layers)]
    assert kept_bytes(num_layers, efficient=False, bn_size=None) == sum(2 * c * MAP + c * STATISTICS for c in channels)
    assert kept_bytes(num_layers, efficient=True, bn_size=None) == (num_layers - 1) * GROWTH * MAP


def test_bytes_saved_by_autograd_are_those_alive_in_naive_mode():
    block, x = block_and_input(6, efficient=False)
    saved = bytes_saved_for_backward(lambda: block(x), without=[x, *block.parameters(), *block.buffers()])
    assert saved == kept_bytes(6, efficient=False)


def test_kept_bytes_grow_linearly_when_efficient_and_quadratically_when_naive():
    efficient, naive = ([kept_bytes(m, mode) for m in LAYERS] for mode in (True, False))
    assert second_differences(efficient) == [0, 0]
    # The sum of all C_i has the quadratic term k m^2 / 2.
    step = LAYERS[1] - LAYERS[0]
    assert second_differences(naive) == 2 * [step**2 * GROWTH * (2 * MAP + STATISTICS)]


def peak_bytes_of_maps(num_layers: int, efficient: bool) -> int:
    """Measure the peak of live maps in forward and backward. Gradients of weights are no maps and are left out."""
    block, x = block_and_input(num_layers, efficient)
    with LiveStorages(counts=lambda tensor: tensor.dim() == 4 and tensor.shape[2:] == SIDES) as storages:
        block(x).sum().backward()
    return storages.peak_bytes


def test_peak_of_a_training_step_grows_linearly_when_efficient():
    # A further layer adds what it keeps, and k channels to each tensor of C channels that is alive in the backward
    # pass of the last bottleneck; as only one bottleneck is recomputed at a time, these are no more than 8.
    most_per_layer = (2 * BOTTLENECK + GROWTH + 8 * GROWTH) * MAP
    efficient, naive = ([peak_bytes_of_maps(m, mode) for m in (8, 16, 24, 32)] for mode in (True, False))
    assert all(after - before <= 8 * most_per_layer for before, after in pairwise(efficient))
    assert naive[-1] - naive[-2] > 3 * 8 * most_per_layer
    assert efficient[-1] < naive[-1] / 3


def operations(num_layers: int, efficient: bool, bn_size: int | None = 4) -> dict[str, int]:
    block, x = block_and_input(num_layers, efficient, bn_size)
    with OperationCounts() as mode:
        block(x).sum().backward()
    return dict(mode.counts)


def test_no_convolution_runs_twice():
    m = 5
    naive, efficient = (operations(m, mode) for mode in (False, True))
    convolutions = {name: count for name, count in efficient.items() if name.startswith("convolution")}
    # conv1 is the last step of the bottleneck: the recomputation stops as soon as it has conv1's input.
    assert convolutions == {name: m for name in convolutions}
    assert convolutions.keys() == {
        "convolution 1x1",
        "convolution 3x3",
        "convolution_backward 1x1",
        "convolution_backward 3x3",
    }
    assert (naive["cat"], efficient["cat"]) == (m + 1, 2 * m + 1)
    assert (naive["native_batch_norm"], efficient["native_batch_norm"]) == (2 * m, 3 * m)
    assert (naive["relu_"], efficient["relu_"]) == (2 * m, 3 * m)


def test_no_convolution_runs_twice_without_bottlenecks():
    m = 5
    naive, efficient = (operations(m, mode, bn_size=None) for mode in (False, True))
    convolutions = {name: count for name, count in efficient.items() if name.startswith("convolution")}
    assert convolutions == {"convolution 3x3": m, "convolution_backward 3x3": m}
    assert (naive["cat"], efficient["cat"]) == (m + 1, 2 * m + 1)
    assert (naive["native_batch_norm"], efficient["native_batch_norm"]) == (m, 2 * m)


@pytest.mark.parametrize("efficient", [False, True])
def test_dropout_draws_once(efficient):
    # Behind both convolutions of five layers and behind that of the transition.
    network = naive_and_efficient(**DROPPING)[efficient]
    with OperationCounts() as mode:
        network(random_images()).sum().backward()
    assert mode.counts["bernoulli_"] == 2 * 5 + 1


@pytest.mark.parametrize("efficient", [False, True])
def test_floating_point_operations_are_those_of_the_closed_form(efficient):
    m = 5
    block, x = block_and_input(m, efficient)
    with FlopCounterMode(display=False) as counter:
        block(x).sum().backward()
    pixels = IMAGES * SIDES[0] * SIDES[1]
    per_pixel = sum((START + i * GROWTH) * BOTTLENECK + BOTTLENECK * 9 * GROWTH for i in range(m))
    # A multiplication and an addition count as two; forward, gradient of the input, gradient of the weight.
    assert counter.get_total_flops() == 3 * 2 * pixels * per_pixel


@pytest.mark.parametrize("config", [SMALL | DROPPING, PLAIN | DROPPING], ids=["bottlenecks", "plain"])
def test_data_parallel_without_a_gpu_is_the_same(config):
    naive, efficient = map(nn.DataParallel, naive_and_efficient(**config))
    assert_same_training(naive, efficient, random_images())


@pytest.mark.parametrize(("config", "num_parameters"), [(SMALL, 38), (PLAIN, 23)], ids=["bottlenecks", "plain"])
def test_replicas_in_threads_are_the_same(config, num_parameters):
    naive, efficient = map(train_on_replicas_in_threads, naive_and_efficient(**config))
    assert unequal(naive, efficient) == []
    assert len([name for name in naive if name.startswith("gradient of ")]) == num_parameters
    assert efficient["features.denseblock2.denselayer1.norm1.num_batches_tracked"] == 1


def test_networks_trained_in_threads_do_not_disturb_each_other():
    networks = [copy.deepcopy(network) for network in naive_and_efficient()[1:] for _ in range(4)]
    assert_undisturbed_by_threads(networks, random_images())


@pytest.fixture
def deterministic_cuda(monkeypatch):
    """Choose cuDNN's repeatable algorithms, and the same ones each time: no benchmark picks them."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic_cuda")
def test_data_parallel_on_all_gpus_is_the_same():
    naive, efficient = (nn.DataParallel(network.cuda()) for network in naive_and_efficient(growth_rate=12))
    images = random_images(side=16, images=8 * torch.cuda.device_count()).cuda()
    assert_same_training(naive, efficient, images)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic_cuda")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_on_a_gpu_is_the_same(dtype, memory_format):
    networks = naive_and_efficient(growth_rate=12, **DROPPING)
    naive, efficient = (network.cuda().to(memory_format=memory_format) for network in networks)
    images = random_images(side=16, images=8).cuda().contiguous(memory_format=memory_format)
    precision = partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32)
    assert_same_training(naive, efficient, images, precision=precision)
