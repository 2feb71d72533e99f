"""Kinds of files that are mistaken for weights of PyTorch, recognised by their first bytes."""

import shlex
import struct
from pathlib import Path

# How files of torch.save began before it wrote archives (PyTorch 1.5 and earlier): a pickled number, the same in all.
BEFORE_ARCHIVES = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
HEAD = 512  # bytes by which a kind is recognised
LONGEST_HEADER = 100_000_000  # bytes, of safetensors

CONVERT = "convert it with TensorFlow and torch.save"
BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras writes", CONVERT),
    b"\x1f\x8b": ("packed by gzip", "unpack it first: gunzip"),
    b"version https://git-lfs": ("a pointer of Git LFS in place of the file", "fetch the file: git lfs pull"),
    b"\x93NUMPY": ("an array of NumPy", "save a dict of tensors by torch.save"),
}
SHELL = set('"$`\\!')  # what a shell reads in double quotes
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
# Ends of the names of members of archives. Those of torch.save have a data.pkl and none of these.
MEMBERS = {
    "/constants.pkl": ("a TorchScript archive", "save its weights alone: {line}"),
    "/archive_format": ("a program of torch.export", "name the file of weights that it was made from"),
    "model.weights.h5": ("a model of Keras", CONVERT),
    ".npy": ("an archive of NumPy arrays", "save a dict of tensors by torch.save"),
}


def kind_of(path: Path, head: bytes) -> str | None:
    """Say which kind of file, not of torch.save, it is and what to do; return None if its first bytes do not show it.

    Args:
        path: The file, for the command lines in the advice.
        head: Its first `HEAD` bytes, or all of them if it has fewer.
    """
    if not head:
        return "is damaged: it is empty"
    if head.lstrip().lower().startswith(PAGES):
        return "is a web page, as a failed download leaves it; download it again"
    for beginning, (kind, advice) in BEGINNINGS.items():
        if head.startswith(beginning):
            return f"is {kind}; {advice}"
    if is_safetensors(head):
        return "is a safetensors file, which only --init_weights and --weights take"
    if head.startswith(BEFORE_ARCHIVES):
        return "is in the form of PyTorch before 1.6, which has no checksums; only --init_weights and --weights take it"
    if head.startswith(b"\x80") and len(head) > 1 and head[1] <= 5:  # the version of a pickle
        line = python_line(path, "c", load="__import__('pickle').load(open({}, 'rb'))")
        return f"is a pickle that torch.save did not write; if you trust its author, save it by torch.save: {line}"
    if head.lstrip().startswith((b"{", b"[")):
        return "is JSON, which holds no weights; name the file of weights"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it first: tar -xf"
    if head[0] == 8 and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x3a"):  # a version; its writer, or a graph
        return "is an ONNX file, which has a network and no state_dict; name the file of weights that it was made from"
    return None


def kind_of_archive(path: Path, names: list[str]) -> str | None:
    """Say which kind of archive it is, by the names of its members; return None for an archive of torch.save."""
    line = python_line(path, "c.state_dict()", load="torch.jit.load({}, 'cpu')")
    for end, (kind, advice) in MEMBERS.items():
        if any(name.endswith(end) for name in names):
            return f"is {kind}; {advice.replace('{line}', line)}"
    if not names or any(name.endswith("/data.pkl") for name in names):
        return None
    return "is an archive, but not one of torch.save; unpack it if the file of weights is inside"


def model_in(folder: Path) -> str:
    """Advise naming a file of weights that is in a folder; return an empty text if there is none."""
    models = sorted(path for path in folder.glob("*.*") if path.suffix in (".pt", ".pth", ".safetensors"))
    return f"; name a file in it, as {models[-1]}" if models else ""


def is_safetensors(head: bytes) -> bool:
    """Return whether a file begins as safetensors do: with the length of a header, and a header of JSON."""
    return len(head) > 8 and struct.unpack("<Q", head[:8])[0] <= LONGEST_HEADER and head[8:9] == b"{"


def python_line(path: Path, expression: str, *, load: str = "torch.load({}, 'cpu', weights_only=False)") -> str:
    """Return a command line that saves part of a file as a new file.

    Args:
        path: The file.
        expression: The part to save, where the whole content is called `c`.
        load: The call that reads the content, with {} in place of the path.
    """
    new = path.with_name(f"{path.stem}.weights.pt")
    loaded = load.format(repr(str(path)))
    # "x" refuses a file that exists.
    code = f"import torch; c = {loaded}; f = open({str(new)!r}, 'xb'); torch.save({expression}, f); f.close()"
    return f'python -c "{code}"' if not SHELL & set(code) else f"python -c {shlex.quote(code)}"
