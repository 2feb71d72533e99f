"""Formats of exported networks. Unlike `exporters`, this module needs no torch, so that flags are checked quickly."""

from dataclasses import dataclass

CARD = "README.md"  # a model card, under the name by which a model hub finds it


@dataclass(frozen=True)
class Format:
    """A format of exported networks.

    Attributes:
        suffix: Ending of the file name.
        packages: Packages that are needed to write the format and to read it back, besides torch.
        has_card: Whether a model card is written beside the file.
    """

    suffix: str
    packages: tuple[str, ...] = ()
    has_card: bool = False


FORMATS = {
    "torch": Format(".pt2"),
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "safetensors": Format(".safetensors", ("safetensors",), has_card=True),
}
