"""An exporter for each format: from a module to bytes, and from bytes back to a function of tensors.

torch and ONNX note for each operation which line of code it comes from. These notes are removed, because they name
folders of this machine and are of no use anywhere else.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn

from models import DenseNet, densenet_arguments, load_weights
from train.run.safetensors_files import metadata_in, serialize_safetensors

INPUT, OUTPUT = "images", "logits"  # names in an ONNX file

# ONNX Runtime has read it since version 1.14, and the exporters of all supported versions of torch write it without a
# conversion.
OPSET = 18


@dataclass(frozen=True)
class Exporter:
    """Writes and reads a format of exported networks.

    Attributes:
        describe: Returns the format and the program that reads it, with versions.
        write: Takes a `PixelNetwork`, a batch of images to trace it with, and metadata by name; returns the content of
            the file, which then takes any number of images.
        read: Takes the content of the file; returns the function it holds, from images to logits.
        tolerance: Largest allowed difference from the logits of the module, relative to the largest of these. Rounding
            causes less.
    """

    describe: Callable[[], str]
    write: Callable[[nn.Module, Tensor, Mapping[str, str]], bytes]
    read: Callable[[bytes], Callable[[Tensor], Tensor]]
    tolerance: float


def _write_torch(module: nn.Module, images: Tensor, metadata: Mapping[str, str]) -> bytes:
    program = torch.export.export(module, (images,), dynamic_shapes=_any_batch_size())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=dict(metadata))
    return file.getvalue()


def _read_torch(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(module: nn.Module, images: Tensor, metadata: Mapping[str, str]) -> bytes:
    program = torch.onnx.export(
        module,
        (images,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=_any_batch_size(),
    )
    assert program is not None  # it is None only without dynamo
    model = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    for name, text in metadata.items():
        model.metadata_props.add(key=name, value=text)
    return model.SerializeToString()


def _read_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # not needed, and possibly not installed, for the format of torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


def _write_safetensors(module: nn.Module, images: Tensor, metadata: Mapping[str, str]) -> bytes:
    return serialize_safetensors(module.get_submodule("network").state_dict(), metadata)


def _read_safetensors(content: bytes) -> Callable[[Tensor], Tensor]:
    """Build the network from nothing but the file."""
    from safetensors.torch import load

    weights, metadata = load(content), metadata_in(content)
    network = DenseNet(**densenet_arguments(weights)).eval()
    load_weights(network, weights)
    mean, std = (torch.tensor(json.loads(metadata[name])).view(-1, 1, 1) for name in ("mean", "std"))
    return lambda images: network((images - mean) / std)


def _any_batch_size() -> tuple[dict[int, torch.export.Dim]]:
    """Dynamic shapes of the only input: its first dimension may have any size."""
    return ({0: torch.export.Dim("N")},)


def _describe_torch() -> str:
    return f"torch.export of torch {version('torch')}"


def _describe_onnx() -> str:
    return f"ONNX, opset {OPSET}, read back by ONNX Runtime {version('onnxruntime')}"


def _describe_safetensors() -> str:
    return f"safetensors {version('safetensors')}"


EXPORTERS = {
    "torch": Exporter(_describe_torch, _write_torch, _read_torch, tolerance=1e-6),
    "onnx": Exporter(_describe_onnx, _write_onnx, _read_onnx, tolerance=1e-4),
    "safetensors": Exporter(_describe_safetensors, _write_safetensors, _read_safetensors, tolerance=1e-6),
}
