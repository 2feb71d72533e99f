"""Every damage to a file of tensors is found, wherever in the file it is."""

import io
import random
import struct
import zipfile

import pytest
import torch

from tests.support.application import assert_same_run, run_here
from train.run.files import DamagedFile, load_tensors

FLIPS, TRUNCATIONS = 200, 50
SEAL_BYTES = 7 + 64


def flipped(contents, bit):
    changed = bytearray(contents)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def assert_damaged(path, contents):
    """A file with these contents is refused as damaged, in one line."""
    path.write_bytes(contents)
    with pytest.raises(DamagedFile, match=f"^{path} is damaged") as refusal:
        load_tensors(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.previous.pt", "model.pt"])
def test_any_flipped_bit_is_found(name, finished, tmp_path):
    contents = (finished / name).read_bytes()
    generator = random.Random(f"flips in {name}")
    load_tensors(finished / name)
    for _ in range(FLIPS):
        assert_damaged(tmp_path / name, flipped(contents, generator.randrange(8 * len(contents))))


def test_any_flipped_bit_at_the_end_is_found(finished, tmp_path):
    """The directory of the archive and the digest, which two hundred bits of a file seldom hit."""
    contents = (finished / "model.pt").read_bytes()
    generator = random.Random("flips at the end")
    for position in range(len(contents) - 300, len(contents)):
        assert_damaged(tmp_path / "model.pt", flipped(contents, 8 * position + generator.randrange(8)))


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.previous.pt", "model.pt"])
def test_any_truncation_is_found(name, finished, tmp_path):
    contents = (finished / name).read_bytes()
    generator = random.Random(f"truncations of {name}")
    near_the_end = [len(contents) - lost for lost in range(1, 2 * SEAL_BYTES)]
    for length in [0, 1, *generator.sample(range(len(contents)), TRUNCATIONS), *near_the_end]:
        assert_damaged(tmp_path / name, contents[:length])


def test_what_is_appended_is_found(finished, tmp_path):
    contents = (finished / "model.pt").read_bytes()
    for more in (b"\0", b"\0\0", b"x" * 1000, contents):
        assert_damaged(tmp_path / "model.pt", contents + more)
    assert_damaged(tmp_path / "model.pt", b"x" + contents)


def tensor_bytes(contents):
    """The positions of all bytes of tensors in an archive."""
    with zipfile.ZipFile(io.BytesIO(contents)) as archive:
        members = [member for member in archive.infolist() if "/data/" in member.filename]
    for member in members:
        name_and_extra = struct.unpack_from("<HH", contents, member.header_offset + 26)
        start = member.header_offset + 30 + sum(name_and_extra)
        yield from range(start, start + member.file_size)


def test_without_our_digest_a_flipped_bit_of_a_tensor_is_found(finished, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.load(finished / "model.pt", weights_only=True), path)
    contents = path.read_bytes()
    load_tensors(path)
    generator = random.Random("flips in tensors")
    for position in generator.sample([*tensor_bytes(contents)], 100):
        assert_damaged(path, flipped(contents, 8 * position + generator.randrange(8)))
        torch.load(path, weights_only=True)  # does not see it


DAMAGES = {
    "bit": lambda contents: flipped(contents, random.Random(1).randrange(8 * len(contents))),
    "half": lambda contents: contents[: len(contents) // 2],
    "digest": lambda contents: contents[:-SEAL_BYTES],
    "nothing": lambda contents: b"",
}


def damage(path, name):
    path.write_bytes(DAMAGES[name](path.read_bytes()))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_goes_on_from_the_checkpoint_before_with_a_warning(name, copy, finished, capsys):
    damage(copy / "checkpoint.pt", name)
    assert run_here(f"--save={copy}", "--resume") == 0
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {copy / 'checkpoint.pt'} is damaged")
    assert "going on from checkpoint.previous.pt" in error
    assert error.count("\n") == 1
    assert_same_run(copy, finished)


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("previous", ["damaged", "missing"])
def test_a_run_without_a_whole_checkpoint_is_one_line(name, previous, copy, capsys):
    damage(copy / "checkpoint.pt", name)
    damage(copy / "checkpoint.previous.pt", name)
    if previous == "missing":
        (copy / "checkpoint.previous.pt").unlink()
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert run_here(f"--save={copy}", "--resume") == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"demo.py: error: {copy / 'checkpoint.pt'} is damaged")
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_run_that_has_lost_its_checkpoints_does_not_start_over(copy, capsys):
    (copy / "checkpoint.pt").unlink()
    (copy / "checkpoint.previous.pt").unlink()
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert run_here(f"--save={copy}", "--resume") == 2
    error = capsys.readouterr().err
    assert "but no checkpoint.pt, so it cannot be continued" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_damaged_weights_are_made_again_from_the_checkpoint(copy, finished):
    damage(copy / "model.pt", "bit")
    assert run_here(f"--save={copy}", "--resume") == 0
    assert (copy / "model.pt").read_bytes() == (finished / "model.pt").read_bytes()
