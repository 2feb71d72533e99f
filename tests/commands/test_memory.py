"""Memory that runs out: which errors say so, and the line that each command makes of them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from commands.export.exporters import EXPORTERS
from commands.memory import advice_for_training, memory_explained, smaller_batch
from commands.settings import TrainSettings
from data import images, loader
from data.splits import Split
from tests.support.application import SMALL, assert_refused, everything_in, run_here
from tests.support.synthetic_images import encoded, write
from train import engine, replicas, runtime
from train.errors import RunError
from train.out_of_memory import is_out_of_memory

EXPORT = ["export", "--save=run", "--format=torch"]
IMPOSSIBLE = 10**15  # numbers, more than the addresses of a process reach


def take_all(*_, **__):
    """Raise the error of PyTorch for a host without more memory."""
    torch.empty(IMPOSSIBLE)


def take_all_in_numpy(*_, **__):
    np.empty(IMPOSSIBLE)


@pytest.mark.parametrize("take", [take_all, take_all_in_numpy])
def test_a_lack_of_memory_is_recognised(take):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        take()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_other_errors_are_none(error, expected):
    assert is_out_of_memory(error) is expected


def test_other_failures_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), memory_explained(smaller_batch(4)):
        raise RuntimeError("shapes differ")


ADVICE = "memory ran out with --batch_size 64; try a smaller --batch_size"
FORWARD = (replicas.InPrecision, "forward")


@pytest.mark.parametrize(("owner", "name"), [(loader, "normalise"), FORWARD, (Split, "to")])
def test_evaluate_says_what_to_try(owner, name, here, monkeypatch, capsys):
    monkeypatch.setattr(owner, name, take_all)
    words = ["evaluate", "--save=run", "--batch_size=64"]
    assert_refused(*words, message=ADVICE, folder=here, capture=capsys, code=1)


@pytest.mark.parametrize(("owner", "name"), [(images, "normalise"), (images, "as_batch"), FORWARD])
def test_predict_says_what_to_try(owner, name, here, monkeypatch, capsys):
    write(here / "image.png", encoded(Image.new("RGB", (32, 32)), "PNG"))
    monkeypatch.setattr(owner, name, take_all_in_numpy if name == "as_batch" else take_all)
    words = ["predict", "image.png", "--save=run", "--batch_size=64"]
    assert_refused(*words, message=ADVICE, folder=here, capture=capsys, code=1)


def test_a_batch_of_one_gets_no_advice_to_make_it_smaller(here, monkeypatch, capsys):
    monkeypatch.setattr(*FORWARD, take_all)
    message = "memory ran out with --batch_size 1; use a machine with more memory\n"
    words = ["evaluate", "--save=run", "--batch_size=1"]
    assert_refused(*words, message=message, folder=here, capture=capsys, code=1)


OF_NETWORK = [["evaluate", "--save=run"], ["predict", "image.png", "--save=run"], EXPORT]


@pytest.mark.parametrize("words", OF_NETWORK, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("owner", "name", "message"),
    [
        (torch, "load", "memory ran out while run/model.pt was read\n"),
        (torch.nn.Module, "to_empty", "memory ran out; use a machine with more memory\n"),
    ],
)
def test_a_network_that_does_not_fit_gets_no_advice_about_batches(
    owner, name, message, words, here, monkeypatch, capsys
):
    write(here / "image.png", encoded(Image.new("RGB", (32, 32)), "PNG"))
    monkeypatch.setattr(owner, name, take_all)
    assert_refused(*words, message=message, folder=here, capture=capsys, code=1)


def test_an_exporter_without_memory_is_one_line(here, monkeypatch, capsys):
    monkeypatch.setitem(EXPORTERS, "torch", replace(EXPORTERS["torch"], write=take_all))
    assert_refused(*EXPORT, message="memory ran out; use a machine", folder=here, capture=capsys, code=1)


OF_RUN = "demo.py: error: memory ran out with --efficient True and --batch_size 128; "
TRY = (
    "try --accum_steps above 1 or a smaller --batch_size; what fits is printed by: python demo.py benchmark --network "
)
TRY += "densenet_bc --depth 10"


@pytest.mark.parametrize(("owner", "name"), [(Split, "to"), (runtime, "placed"), (replicas, "replicate")])
def test_a_run_that_does_not_begin_says_what_to_try_and_leaves_nothing(owner, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(owner, name, take_all)
    assert run_here(*SMALL, f"--save={tmp_path / 'run'}") == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith(OF_RUN + TRY)
    assert everything_in(tmp_path) == {}


def test_a_run_that_has_begun_says_where_it_stands_too(tmp_path, monkeypatch, capsys):
    assert run_here(*SMALL, f"--save={tmp_path}", "--n_epochs=1") == 0
    monkeypatch.setattr(engine, "evaluate", take_all)
    capsys.readouterr()
    assert run_here(f"--save={tmp_path}", "--resume", "--n_epochs=2") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{OF_RUN}{tmp_path} stands at its last checkpoint; {TRY}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"efficient": "buffer"}, "; try --accum_steps above 2 or a smaller --batch_size; what fits "),
        (
            {"efficient": False},
            "; try --efficient buffer, which mostly takes the least, --accum_steps above 2 or ",
        ),
        ({"network": "densenet", "image_size": 96}, "benchmark --network densenet --depth 40 .* --image_size 96"),
    ],
)
def test_the_advice_is_of_the_run(changed, advice, tmp_path):
    settings = TrainSettings(save=tmp_path, image_size=32, batch_size=8, accum_steps=2)
    advice_of_run = partial(advice_for_training, replace(settings, **changed))
    with pytest.raises(RunError, match=advice), memory_explained(advice_of_run):
        take_all()
