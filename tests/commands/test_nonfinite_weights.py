"""Weights that are NaN, infinite or impossible: every command says so in one line."""

import math

import pytest
import torch
from PIL import Image

from models import densenet_bc, require_finite
from tests.support.application import SMALL, assert_refused, everything_in, run_here
from tests.support.synthetic_images import encoded, write
from train.run.files import load_tensors, serialize

COMMANDS = {
    "evaluate": ["evaluate", "--save=run", "--csv=new.csv"],
    "predict": ["predict", "image.png", "--save=run", "--csv=new.csv"],
    "export": ["export", "--save=run", "--format=torch"],
}
CONV0, MEAN, VARIANCE = "features.conv0.weight", "features.norm_final.running_mean", "features.norm_final.running_var"
FAULTS = {
    "NaN": (CONV0, math.nan, f"'{CONV0}' is NaN or infinite"),
    "infinite": ("classifier.bias", -math.inf, "'classifier.bias' is NaN or infinite"),
    "statistics": (MEAN, math.inf, f"'{MEAN}' is NaN or infinite"),
    "negative variance": (VARIANCE, -1e-3, f"'{VARIANCE}' is negative"),
}


@pytest.fixture
def with_image(here):
    write(here / "image.png", encoded(Image.new("RGB", (32, 32), "red"), "PNG"))
    return here


def put(folder, name, value):
    """Change the first number of a tensor in model.pt, which stays an intact file."""
    weights = load_tensors(folder / "run/model.pt")
    weights[name].view(-1)[0] = value
    (folder / "run/model.pt").write_bytes(serialize(weights))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_weights_that_are_not_finite_are_named_in_one_line(command, fault, with_image, capsys):
    name, value, message = FAULTS[fault]
    put(with_image, name, value)
    line = f"run/model.pt cannot be used: its tensor {message}\n"
    assert_refused(*COMMANDS[command], message=line, folder=with_image, capture=capsys, code=1)


@pytest.mark.parametrize("fault", ["NaN", "negative variance"])
def test_no_run_starts_from_them(fault, with_image, capsys):
    name, value, message = FAULTS[fault]
    put(with_image, name, value)
    before = everything_in(with_image)
    assert run_here(*SMALL, "--init_weights=run/model.pt", "--save=new") == 2
    line = f"demo.py: error: --init_weights run/model.pt cannot be used: its tensor {message}\n"
    assert capsys.readouterr() == ("", line)
    assert everything_in(with_image) == before


SAYS = {
    "evaluate": "the test loss is NaN or infinite",
    "predict": "the network's output for image.png is NaN or infinite",
}
SAYS["export"] = "the network's logits are NaN or infinite"


@pytest.mark.parametrize("command", COMMANDS)
def test_finite_weights_with_logits_that_are_not_finite_are_one_line_too(command, with_image, capsys):
    """3e38 times any average above 1.2 is more than float32 holds."""
    weights = load_tensors(with_image / "run/model.pt")
    weights["classifier.weight"].fill_(3e38)
    weights["features.norm_final.bias"].fill_(9)
    (with_image / "run/model.pt").write_bytes(serialize(weights))
    assert_refused(*COMMANDS[command], message=SAYS[command], folder=with_image, capture=capsys, code=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_weights_of_every_type_are_checked(dtype):
    weights = {name: value.to(dtype) for name, value in densenet_bc(10, 2).state_dict().items() if value.dim()}
    require_finite(weights | {"empty": torch.zeros(0), "count": torch.tensor(-1)})
    weights[MEAN][0] = math.nan
    with pytest.raises(ValueError, match=f"^its tensor '{MEAN}' is NaN or infinite$"):
        require_finite(weights)
