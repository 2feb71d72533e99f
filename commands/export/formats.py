"""Formats of exported networks. Unlike `exporters`, this module needs no torch, so that flags are checked quickly."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format of exported networks.

    Attributes:
        suffix: Ending of the file name.
        packages: Packages that are needed to write the format and to read it back, besides torch.
    """

    suffix: str
    packages: tuple[str, ...] = ()


FORMATS = {"torch": Format(".pt2"), "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"))}
