"""Checkpoints that somebody has changed: the right result, or one line, and nothing is half restored."""

import math
import warnings

import pytest
import torch
from torch import nn

from tests.support.synthetic_runs import make_rows
from train.ema import ExponentialMovingAverage
from train.errors import DamagedFile, UserError
from train.optim import make_optimizer
from train.restore import restore
from train.run.checkpoint import Checkpoint, read_checkpoint
from train.step import Stepper

LR, MOMENTUM, WD = 0.1, 0.9, 1e-2
WEIGHT = "0.weight"  # (4, 3, 3, 3), in memory as channels_last


def make_network(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4))
    return network.to(memory_format=torch.channels_last)


def make_stepper(network, *, momentum=MOMENTUM, fp16=False):
    optimizer = make_optimizer(network.parameters(), lr=LR, momentum=momentum, wd=WD)
    scaler = torch.amp.GradScaler("cpu", enabled=fp16)
    return Stepper(network, optimizer, scaler, average=ExponentialMovingAverage(network, 0.9))


def make_content():
    """The content that a run of two epochs would have written."""
    network, chosen = make_network(1), make_network(2)
    stepper = make_stepper(network, fp16=True)
    generator = torch.Generator().manual_seed(3)
    for state in stepper.optimizer.state.values():
        state["momentum_buffer"].normal_(generator=generator)
    scaler = stepper.scaler.state_dict() | {"scale": 1024.0, "_growth_tracker": 7}
    ema = make_stepper(make_network(3)).average.state_dict() | {"steps": torch.tensor(5.0, dtype=torch.float64)}
    flags = {"seed": 1, "lr": 0.1}
    parts = network.state_dict(), stepper.optimizer.state_dict(), chosen.state_dict(), scaler, flags, ema
    return Checkpoint(make_rows(2), *(dict(part) for part in parts)).content()


# Tensors in the place of one: of the same numbers in another form, or of something that cannot take its place.
SAME = {
    "contiguous": lambda value: value.contiguous(),
    "channels first of a permutation": lambda value: value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "every second of more": lambda value: torch.stack([value, value + 1], dim=-1)[..., 0],
    "after others": lambda value: torch.cat([value + 1, value])[len(value) :],
    "flipped twice": lambda value: value.flip(0).flip(0),
    "parameter": nn.Parameter,
    "with gradient": lambda value: value.clone().requires_grad_(),
    "negative view": lambda value: torch._neg_view(-value),
    "with a name": lambda value: _with_attribute(value.clone()),
}
STRANGE = {
    "sparse": lambda value: value.to_sparse(),
    "sparse rows": lambda value: value.reshape(4, -1).to_sparse_csr(),
    "meta": lambda value: value.to("meta"),
    "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "nested": lambda value: torch.nested.nested_tensor([value[0], value[1]]),
    "complex": lambda value: value + 1j,
    "int64": lambda value: value.long(),
    "uint8": lambda value: value.to(torch.uint8),
    "bool": lambda value: value > 0,
    "float64": lambda value: value.double(),
    "float16": lambda value: value.half(),
    "bfloat16": lambda value: value.bfloat16(),
    "flat": lambda value: value.flatten(),
    "one more dimension": lambda value: value[None],
    "transposed shape": lambda value: value.transpose(0, 1),
    "larger": lambda value: torch.cat([value, value]),
    "empty": lambda value: value[:0],
    "a number in a tensor": lambda value: value.sum(),
    "expanded to more": lambda value: torch.zeros(1).expand(1 << 40),
    "NaN": lambda value: torch.full_like(value, math.nan),
    "one NaN": lambda value: value.index_fill(0, torch.tensor(2), math.nan),
    "infinite": lambda value: torch.full_like(value, math.inf),
    "minus infinity": lambda value: torch.full_like(value, -math.inf),
    "text": lambda value: "weights",
    "number": lambda value: 1.0,
    "list": lambda value: value.tolist(),
    "dict": lambda value: {"tensor": value},
    "nothing": lambda value: None,
}


def _with_attribute(value):
    value.note = "mine"
    return value


def put(place, value):
    """Put a value into a checkpoint."""

    def change(content):
        *way, last = place
        for step in way:
            content = content[step]
        content[last] = value(content[last]) if callable(value) else value

    return change


def remove(*place):
    def change(content):
        *way, last = place
        for step in way:
            content = content[step]
        del content[last]

    return change


PLACES = {
    "network": ("network", WEIGHT),
    "chosen": ("chosen", WEIGHT),
    "momentum": ("optimizer", "state", 0, "momentum_buffer"),
    "average": ("ema", WEIGHT),
}
GROUP = ("optimizer", "param_groups", 0)
ACCEPTED = {
    **{f"{kind} in {name}": put(place, make) for kind, make in SAME.items() for name, place in PLACES.items()},
    **{
        f"the optimizer has {setting} {value!r}": put((*GROUP, setting), value)
        for setting, values in {
            "momentum": (0.1, "much", None),
            "weight_decay": (5.0, -1, "x"),
            "fused": (False, None, "yes"),
            "dampening": (0.5, "x"),
            "nesterov": (False, "x"),
            "maximize": (True, []),
            "foreach": (True, 3),
            "lr": (1e9, "x"),
            "params": ([], [9, 9], "all"),
        }.items()
        for value in values
    },
    "the optimizer has no groups": put(GROUP[:2], []),
    "the groups are a text": put(GROUP[:2], "none"),
    "there are no groups": remove(*GROUP[:2]),
    "a state has more than momentum": lambda content: content["optimizer"]["state"][0].update(step=5),
    "a scaler that grows by a thousand": put(("scaler", "growth_factor"), 1000.0),
    "a scaler that never grows": put(("scaler", "growth_interval"), "never"),
    "a part that nobody knows": lambda content: content.update(more=[1]),
}
STATE = ("optimizer", "state")
VALID = ("rows", 1, "valid_loss")
REFUSED = {
    **{f"{kind} in {name}": put(place, make) for kind, make in STRANGE.items() for name, place in PLACES.items()},
    "a counter with a fraction": put(("network", "1.num_batches_tracked"), torch.tensor(0.5)),
    "a weight too few": remove("network", WEIGHT),
    "a chosen weight too few": remove("chosen", WEIGHT),
    "an average too few": remove("ema", WEIGHT),
    "the average is missing": remove("ema"),
    "the average has no steps": remove("ema", "steps"),
    "a weight too many": lambda content: content["network"].update(more=torch.ones(1)),
    "a chosen weight too many": lambda content: content["chosen"].update(more=torch.ones(1)),
    "weights without names": lambda content: content["network"].update({1: torch.ones(1)}),
    "the name of a weight is two lines": lambda content: content["network"].update({"a\nb": torch.ones(1)}),
    **{f"the states are {value!r}": put(STATE, value) for value in ("text", None, [], {}, 3, {"0": {}}, {True: 1})},
    "a state is a text": put((*STATE, 0), "text"),
    "a state is empty": put((*STATE, 0), {}),
    "a state is missing": remove(*STATE, 3),
    "a state is of no parameter": lambda content: content["optimizer"]["state"].update(
        {99: {"momentum_buffer": torch.ones(1)}}
    ),
    "there are no states": remove(*STATE),
    **{
        f"the scale is {value!r}": put(("scaler", "scale"), value)
        for value in ("much", None, 0.0, -1.0, math.nan, math.inf, 1e300, True, 1024, torch.ones(2))
    },
    **{
        f"the tracker is {value!r}": put(("scaler", "_growth_tracker"), value)
        for value in (-1, 1 << 40, 0.5, True, "x", None)
    },
    "the scaler is empty": put(("scaler",), {}),
    **{f"valid_loss is {value!r}": put(VALID, value) for value in (math.inf, -math.inf, math.nan, None, "0.5", -1.0)},
    "valid_loss is a tensor": put(VALID, torch.tensor(0.5)),
    "an error above 1": put(("rows", 0, "train_error"), 1.5),
    "an epoch is missing": remove("rows", 0),
    "an epoch is true": put(("rows", 0, "epoch"), True),
    "a loss is a whole number": put(("rows", 0, "train_loss"), 2),
    "a column is missing": remove("rows", 0, "train_loss"),
    "a column too many": lambda content: content["rows"][0].update({"more\nlines": 1}),
    "a test error in the middle": put(("rows", 0, "test_error"), 0.5),
    "a row is a list": put(("rows", 0), [1]),
    **{f"the rows are {value!r}": put(("rows",), value) for value in ([], {}, "rows", None, 3)},
    **{
        f"{part} is {value!r}": put((part,), value)
        for part in ("network", "optimizer", "chosen", "scaler", "flags", "ema")
        for value in ("text", [("a", 1)])
    },
    **{f"{part} is missing": remove(part) for part in ("rows", "network", "optimizer", "chosen", "scaler", "flags")},
    **{f"the format is {value!r}": put(("format",), value) for value in (None, 0, -1, True, "3", 3.0, 5, [3])},
    "the format is a tensor": put(("format",), torch.tensor([3, 3])),
    "a flag is a list": put(("flags", "seed"), [1]),
    "a flag is a tensor": put(("flags", "seed"), torch.tensor(1)),
    "a flag has no name": lambda content: content["flags"].update({1: 1}),
}


@pytest.fixture(scope="module")
def original():
    return make_content()


def copied(value):
    """A copy of a checkpoint with the strides of its tensors."""
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


def changed(content, change, path):
    content = copied(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these kinds of tensors are prototypes, others are going
        change(content)
        torch.save(content, path)
    return content


def state_of(network, stepper):
    buffers = [state["momentum_buffer"] for state in stepper.optimizer.state.values()]
    averages = stepper.average.state_dict().values()
    return [tensor.clone() for tensor in (*network.state_dict().values(), *buffers, *averages)]


def test_the_tables_have_more_than_150_checkpoints():
    assert len(ACCEPTED) + len(REFUSED) > 150


@pytest.mark.parametrize("change", REFUSED.values(), ids=[*REFUSED])
def test_it_is_one_line_and_nothing_is_restored(change, original, tmp_path):
    path = tmp_path / "checkpoint.pt"
    changed(original, change, path)
    network = make_network(0)
    stepper = make_stepper(network, fp16=True)
    before = state_of(network, stepper)
    with pytest.raises(UserError) as refusal:
        restore(network, stepper, read_checkpoint(path), tmp_path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300 + len(str(tmp_path))
    assert all(map(torch.equal, before, state_of(network, stepper)))
    assert stepper.scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()


@pytest.mark.parametrize("change", ACCEPTED.values(), ids=[*ACCEPTED])
def test_it_is_restored_by_its_numbers_and_the_next_step_is_that_of_the_formula(change, original, tmp_path):
    path = tmp_path / "checkpoint.pt"
    changed(original, change, path)
    network = make_network(0)
    stepper = make_stepper(network, fp16=True)
    checkpoint = read_checkpoint(path)
    restore(network, stepper, checkpoint, tmp_path)
    for name, value in network.state_dict().items():
        assert torch.equal(value, original["network"][name])
        assert torch.equal(stepper.average.state_dict().get(name, value), original["ema"].get(name, value))
        assert torch.equal(checkpoint.chosen[name], original["chosen"][name])
        assert type(checkpoint.chosen[name]) is torch.Tensor
        assert checkpoint.chosen[name].is_contiguous()
    assert stepper.average.state_dict()["steps"] == 5
    assert stepper.scaler.state_dict() == torch.amp.GradScaler("cpu").state_dict() | {
        "scale": 1024.0,
        "_growth_tracker": 7,
    }
    assert_nesterov_step(network, stepper.optimizer, original)


def assert_nesterov_step(network, optimizer, content):
    """One step of SGD as Sutskever et al. have it, in 64 bits, with the settings of the flags."""
    expected = {}
    for index, (name, parameter) in enumerate(network.named_parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.grad = (
            parameter.grad.to(memory_format=torch.channels_last) if parameter.dim() == 4 else parameter.grad
        )
        weight, buffer = content["network"][name].double(), content["optimizer"]["state"][index]["momentum_buffer"]
        gradient = parameter.grad.double() + WD * weight
        buffer = MOMENTUM * buffer.double() + gradient
        expected[name] = weight - LR * (gradient + MOMENTUM * buffer)
    optimizer.found_inf = torch.zeros(())
    for hook in [*optimizer._optimizer_step_pre_hooks]:  # that of fp16 wants a scaler's step
        optimizer._optimizer_step_pre_hooks.pop(hook)
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_a_buffer_that_is_one_number_is_not_written_beyond_it(original, tmp_path):
    """A file with one is refused. Without that, as many numbers would be written as the parameter has."""
    change = put(PLACES["momentum"], lambda value: torch.full((1,), 0.5).expand(value.shape))
    content = changed(original, change, tmp_path / "expanded.pt")
    with pytest.raises(DamagedFile, match=r"holds 'momentum_buffer', a tensor that is .*expanded"):
        read_checkpoint(tmp_path / "expanded.pt")
    changed(original, lambda content: None, tmp_path / "checkpoint.pt")
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pt")
    checkpoint.optimizer = content["optimizer"]
    network = make_network(0)
    stepper = make_stepper(network)
    restore(network, stepper, checkpoint, tmp_path)
    buffer = stepper.optimizer.state[network[0].weight]["momentum_buffer"]
    assert buffer.untyped_storage().nbytes() == 4 * 3 * 3 * 3 * 4
    assert buffer.stride() == network[0].weight.stride()
    assert_nesterov_step(network, stepper.optimizer, content)


@pytest.mark.parametrize("state", [{}, {0: {"momentum_buffer": None}}])
def test_plain_sgd_has_no_buffers(state, original, tmp_path):
    changed(original, put(STATE, state), tmp_path / "checkpoint.pt")
    network = make_network(0)
    restore(network, make_stepper(network, momentum=0), read_checkpoint(tmp_path / "checkpoint.pt"), tmp_path)
    assert torch.equal(network[0].weight, original["network"][WEIGHT])


def test_buffers_are_refused_where_the_run_has_no_momentum(original, tmp_path):
    changed(original, lambda content: None, tmp_path / "checkpoint.pt")
    network = make_network(0)
    with pytest.raises(UserError, match="of another optimizer"):
        restore(network, make_stepper(network, momentum=0), read_checkpoint(tmp_path / "checkpoint.pt"), tmp_path)
