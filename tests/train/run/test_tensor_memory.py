"""Tensors that take more memory than the file has bytes for them are refused, whoever wrote it."""

import json
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from PIL import Image

from models import densenet_bc
from tests.support.application import SMALL, assert_refused, everything_in, run_here
from tests.support.synthetic_images import encoded, write
from train.errors import DamagedFile, RunError
from train.run.files import load_tensors, serialize
from train.run.legacy_weights import load_legacy_weights

FORMS = {"archive": {}, "before archives": {"_use_new_zipfile_serialization": False}}
pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors", "ignore:Sparse .* tensor support is in beta", "ignore:torch.quantize"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pt"


def base() -> torch.Tensor:
    return torch.arange(24.0)


# Ways in which torch.save writes tensors that are views of others.
VIEWS = {
    "transposed": base().view(2, 3, 4).permute(2, 0, 1),
    "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "a slice": base()[5:9],
    "every second": base().view(4, 6)[1:, ::2],
    "a column": base().view(4, 6)[:, 2],
    "a diagonal": torch.rand(5, 5).diagonal(),
    "a diagonal of three": torch.rand(3, 2, 3).diagonal(dim1=0, dim2=2),
    "one number": torch.tensor(1.5),
    "one number of many": base()[7],
    "dimensions of one": base().view(1, 24, 1).expand(1, 24, 1),
    "unsqueezed": base()[None, :, None],
    "empty": torch.zeros(0, 3),
    "empty, expanded": torch.zeros(1, 0).expand(7, 0),
    "a parameter": torch.nn.Parameter(torch.rand(3)),
    "half": torch.rand(3).half()[1:],
    "bfloat16": torch.rand(3).bfloat16(),
    "bool": torch.tensor([True, False]),
    "complex": torch.rand(3) * 1j,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_view_comes_back(form, path):
    tied = torch.rand(2, 2)
    views = {**VIEWS, "tied": tied, "tied again": tied, "tied and transposed": tied.T}
    if form == "archive":  # torch itself reads these from archives only
        views |= {"uint16": torch.arange(4).to(torch.uint16)[1:], "float8": torch.rand(4).to(torch.float8_e4m3fn)[1:]}
    torch.save(views, path, **FORMS[form])
    loaded = load_legacy_weights(path)
    assert loaded.keys() == views.keys()
    for name, view in views.items():
        assert (loaded[name].dtype, loaded[name].stride()) == (view.dtype, view.stride()), name
        assert loaded[name].tolist() == view.tolist(), name
        assert loaded[name].untyped_storage().nbytes() == view.untyped_storage().nbytes(), name


class Called:
    """The result of a function, called when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def beyond() -> Called:
    """A tensor of 4 petabytes over 16 bytes."""
    shape = (10**9, 10**6), (10**6, 1)
    return Called(torch._utils._rebuild_tensor_v2, torch.zeros(4).untyped_storage(), 0, *shape, False, OrderedDict())


def shared() -> list[torch.Tensor]:
    """150 tensors of 4 MB over the same 4 MB."""
    numbers = torch.ones(10**6)
    return [numbers[:] for _ in range(150)]


NO_ARRAY = "a tensor that is sparse, quantized, nested, expanded or without values"
REFUSED = {
    "expanded": lambda: torch.zeros(()).expand(10**6, 10**6),
    "expanded in one dimension": lambda: torch.zeros(3, 1).expand(3, 10**12),
    "windows": lambda: base().unfold(0, 3, 1),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "meta": lambda: torch.empty(10**6, 10**9, device="meta"),
}
INSIDE = {"a dict": lambda value: {"more": value}, "lists": lambda value: {"more": [[0, (value,)]]}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("case", REFUSED)
def test_a_tensor_that_is_no_array_in_the_file_is_named(case, inside, form, path):
    torch.save({"fine": torch.ones(2), "inner": INSIDE[inside](REFUSED[case]())}, path, **FORMS[form])
    holds = f"(is whole, but|is damaged, or) holds 'more', {NO_ARRAY}"
    if (case, form) == ("nested", "before archives"):  # torch itself does not read it
        holds = "is damaged, or "
    with pytest.raises(DamagedFile, match=rf"^{path} {holds}") as refusal:
        load_legacy_weights(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_share_a_few_numbers_many_times_are_refused(form, path):
    torch.save({"fine": torch.ones(2), "more": shared()}, path, **FORMS[form])
    with pytest.raises(DamagedFile, match=r"tensors of 600,000,008 bytes together, but only [0-9,]+ bytes for them$"):
        load_legacy_weights(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_beyond_its_numbers_takes_no_memory(form, path):
    torch.save({"fine": torch.ones(2), "more": beyond()}, path, **FORMS[form])
    with pytest.raises((DamagedFile, RunError), match=rf"^[^\n]*{path}[^\n]*$"):
        load_legacy_weights(path)


def test_memory_that_runs_out_is_one_line(path):
    """An exabyte, which no machine has."""
    torch.save({"more": Called(torch.Tensor, 10**9, 10**9)}, path)
    with pytest.raises(RunError, match=rf"^memory ran out while {path} was read$"):
        load_legacy_weights(path)


def test_an_archive_whose_members_overlap_is_refused(path):
    """Each of 100 storages is the same 4 MB of the file."""
    torch.save([torch.zeros(10**6), *torch.zeros(100, 1).unbind()], path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("file/data/0")
        directory = archive.start_dir
        assert first.file_size == 4 * 10**6
    ends = [at for at in range(directory, len(content)) if content[at : at + 4] == b"PK\1\2"]
    assert len(ends) > 2
    for at in ends:  # sizes in the directory: compressed, and as they will be
        content[at + 20 : at + 28] = struct.pack("<II", first.file_size, first.file_size)
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"its members overlap$"):
        load_tensors(path)


def rewritten(path, change) -> None:
    """The same archive, with other contents of its members, and with checksums of those."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_a_storage_that_is_shorter_than_the_pickle_says_is_refused(path):
    torch.save({"a": torch.ones(1000)}, path)
    rewritten(path, lambda name, content: content[:8] if "/data/" in name else content)
    with pytest.raises(DamagedFile, match=r"is damaged, or is no file of tensors: [^\n]*size[^\n]*$"):
        load_tensors(path)


COMMANDS = {
    "evaluate": ["evaluate", "--save=run"],
    "predict": ["predict", "image.png", "--save=run"],
    "export": ["export", "--save=run", "--format=torch"],
    "": [*SMALL[:1], "--depth=10", "--growth_rate=4000", "--init_weights=run/model.pt", "--save=new"],
}


@pytest.mark.parametrize("kind", ["expanded", "of a smaller network"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_the_memory_that_a_small_file_asks_for(command, kind, here, monkeypatch, capsys):
    """Weights of 41 kB for a network of 30 GB."""
    write(here / "image.png", encoded(Image.new("RGB", (32, 32)), "PNG"))
    config = json.loads((here / "run/config.json").read_text())
    config["flags"]["growth_rate"] = 4000
    (here / "run/config.json").write_text(json.dumps(config))
    if kind == "expanded":
        with torch.device("meta"):
            shapes = densenet_bc(10, 4000).state_dict()
        weights = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()}
        (here / "run/model.pt").write_bytes(serialize(weights))
        assert (here / "run/model.pt").stat().st_size < 10**5
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: pytest.fail("memory was taken"))
    message = "unfit: features.conv0.weight is (4, "
    if kind == "expanded":
        message = f"'features.conv0.weight', {NO_ARRAY}"
    refuse = assert_refused if command else assert_training_refused
    refuse(*COMMANDS[command], message=message, folder=here, capture=capsys)


def assert_training_refused(*words, message, folder, capture):
    before = everything_in(folder)
    assert run_here(*words) == 2
    out, error = capture.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error
    assert everything_in(folder) == before
