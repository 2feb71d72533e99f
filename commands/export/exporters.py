"""Two exporters: bytes from a module, and a function of tensors from the bytes.

Exporters note where in the code each operation comes from. Those notes are removed: they name folders of this machine,
and are of no use elsewhere.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn

INPUT, OUTPUT = "images", "logits"  # names in an ONNX file

# ONNX Runtime reads it since 1.14, and the exporter of every torch that this program runs with writes it as it is.
OPSET = 18


@dataclass(frozen=True)
class Exporter:
    """A format of exported networks.

    Attributes:
        kind: Says what the format is, and what reads it.
        write: Takes a module, a batch of images, and texts by name that are stored besides; returns the file's bytes.
            The number of images stays open.
        read: Takes the bytes and returns the function that they hold.
        tolerance: Largest difference to the module's own results, relative to the largest of them. Rounding makes less.
    """

    kind: Callable[[], str]
    write: Callable[[nn.Module, Tensor, Mapping[str, str]], bytes]
    read: Callable[[bytes], Callable[[Tensor], Tensor]]
    tolerance: float


def _write_torch(module: nn.Module, images: Tensor, metadata: Mapping[str, str]) -> bytes:
    program = torch.export.export(module, (images,), dynamic_shapes=_any_number())
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
        dynamic_shapes=_any_number(),
    )
    model = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    for name, text in metadata.items():
        model.metadata_props.add(key=name, value=text)
    return model.SerializeToString()


def _read_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # which --format torch does without

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


def _any_number() -> tuple[dict[int, torch.export.Dim]]:
    """The first dimension of the only input is open."""
    return ({0: torch.export.Dim("N")},)


EXPORTERS = {
    "torch": Exporter(lambda: f"torch.export of torch {version('torch')}", _write_torch, _read_torch, tolerance=1e-6),
    "onnx": Exporter(
        lambda: f"ONNX, opset {OPSET}, read back by ONNX Runtime {version('onnxruntime')}",
        _write_onnx,
        _read_onnx,
        tolerance=1e-4,
    ),
}
