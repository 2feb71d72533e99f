"""Exported files are read back and compared with the network; a failure of an exporter is one line and no file."""

import logging
import os
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from commands.export.exporters import EXPORTERS
from commands.export.network import PixelNetwork, largest_difference
from tests.support.application import assert_refused, run_here

EXPORT = ["export", "--save=run", "--format=torch"]


def replace_exporter(monkeypatch, **others):
    """Replace functions of the exporter for torch.export."""
    monkeypatch.setitem(EXPORTERS, "torch", replace(EXPORTERS["torch"], **others))


def reading_with(change):
    """Read a file back as a function with other results."""
    return lambda content: lambda pixels: change(EXPORTERS["onnx"].read(content)(pixels))


def fail(*_):
    raise RuntimeError("first line\nsecond line") from OSError("the reason\nand advice")


def chatter_and_fail(*_):
    chatter()
    fail()


def chatter():
    print("chatter")
    print("chatter", file=sys.stderr)
    os.write(1, b"chatter")
    os.write(2, b"chatter")
    logging.getLogger("exporter").error("chatter")
    warnings.warn("chatter", stacklevel=1)


@pytest.fixture(scope="module")
def onnx_content(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert run_here("export", f"--save={finished}", "--format=onnx", f"--output={path}") == 0
    return path.read_bytes()


FAILING = {
    "a little": (
        lambda logits: logits + 3e-5 * logits.abs().max(),
        "differ from the network's own by 3.0e-05 of the larg",
    ),
    "not a number": (lambda logits: logits * float("nan"), "differ from the network's own by nan of the largest"),
    "in one batch": (lambda logits: logits * (len(logits) != 3), "differ from the network's own by 1.0e+00"),
    "in shape": (
        lambda logits: logits[:, :9],
        "the exported file cannot be read back, and run/model.pt2 is not written: ValueError: logits",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_file_with_other_logits_is_not_left(case, here, onnx_content, monkeypatch, capsys):
    change, message = FAILING[case]
    replace_exporter(monkeypatch, write=lambda *_: onnx_content, read=reading_with(change))
    assert_refused(*EXPORT, message=message, folder=here, capture=capsys, code=1)


def test_the_tolerance_allows_rounding(here, onnx_content, monkeypatch):
    replace_exporter(monkeypatch, write=lambda *_: onnx_content, read=EXPORTERS["onnx"].read)
    assert run_here(*EXPORT) == 0
    assert (here / "run/model.pt2").read_bytes() == onnx_content


@pytest.mark.parametrize("part", ["write", "read"])
def test_an_exporter_that_fails_is_one_line_without_its_chatter(part, here, onnx_content, monkeypatch, capfd):
    parts = {"write": lambda *_: onnx_content} | {part: chatter_and_fail}
    replace_exporter(monkeypatch, **parts)
    message = {"write": "--format torch failed, and", "read": "the exported file cannot be read back, and"}[part]
    message += " run/model.pt2 is not written: OSError: the reason\n"
    assert_refused(*EXPORT, message=message, folder=here, capture=capfd, code=1)


def test_chatter_of_an_exporter_is_dropped(here, onnx_content, monkeypatch, capfd):
    def write(*_):
        chatter()
        return onnx_content

    replace_exporter(monkeypatch, write=write, read=EXPORTERS["onnx"].read)
    assert run_here(*EXPORT) == 0
    out, error = capfd.readouterr()
    assert (len(out.splitlines()), error) == (2, "")
    assert "chatter" not in out


def test_a_file_created_by_another_program_in_the_meantime_stays(here, onnx_content, monkeypatch, capsys):
    def write(*_):
        (here / "run/model.pt2").write_text("mine")
        return onnx_content

    replace_exporter(monkeypatch, write=write, read=EXPORTERS["onnx"].read)
    assert run_here(*EXPORT) == 1
    assert "run/model.pt2 was created by another program in the meantime" in capsys.readouterr().err
    assert (here / "run/model.pt2").read_text() == "mine"
    assert not [path for path in (here / "run").iterdir() if path.name.endswith(".tmp")]


def test_equal_zeros_do_not_differ():
    zeros = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    for parameter in zeros.parameters():
        torch.nn.init.zeros_(parameter)
    network = PixelNetwork(zeros, (0.5,) * 3, (0.5,) * 3)
    assert largest_difference(network, network, 32) == 0
