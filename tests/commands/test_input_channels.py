"""Runs on grey images and on arrays, through the command line: trained, resumed, evaluated, used and exported."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from commands.saved_run import read_saved_run
from models import input_channels
from tests.support.application import assert_refused, everything_in, run_here
from tests.support.array_files import array, make_array_folder, saved
from tests.support.synthetic_images import encoded, make_folder, picture, write
from train.errors import UserError

TINY = ["--depth=10", "--growth_rate=2", "--batch_size=8", "--seed=3"]
FOLDER = [*TINY, "--dataset=folder"]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """A folder of images of 5 channels."""
    return make_array_folder(tmp_path_factory.mktemp("arrays"), {"train": 5, "test": 3}, channels=5)


@pytest.fixture(scope="module")
def run(arrays, tmp_path_factory):
    """A finished run of two epochs on them."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert run_here(*FOLDER, "--in_channels=5", f"--data={arrays}", "--n_epochs=2", f"--save={folder}") == 0
    return folder


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_config_names_the_channels_and_what_numpy_measures(run, arrays):
    config = config_of(run)
    pixels = np.stack([np.load(path)[:, 4:36] for path in sorted(arrays.glob("train/*/*.npy"))]) / 255  # their middle
    assert config["flags"]["in_channels"] == 5
    np.testing.assert_allclose(config["mean"], pixels.mean((0, 1, 2)), atol=5.1e-6)
    np.testing.assert_allclose(config["std"], pixels.std((0, 1, 2)), atol=5.1e-6)


def test_an_interrupted_and_resumed_run_has_the_same_bits(run, arrays, tmp_path, monkeypatch):
    from train import engine

    words = [*FOLDER, "--in_channels=5", f"--data={arrays}", "--n_epochs=2", f"--save={tmp_path / 'parts'}"]
    real = engine.RunFolder.save
    with monkeypatch.context() as patch:
        patch.setattr(engine.RunFolder, "save", lambda self, checkpoint: (real(self, checkpoint), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run_here(*words)
    assert run_here(f"--save={tmp_path / 'parts'}", "--resume") == 0
    assert (tmp_path / "parts/model.pt").read_bytes() == (run / "model.pt").read_bytes()
    assert config_of(tmp_path / "parts")["mean"] == config_of(run)["mean"]


def test_it_is_evaluated_and_predicts_from_a_folder_of_arrays(run, arrays, tmp_path, capsys):
    assert run_here("evaluate", f"--save={run}", f"--plot={tmp_path / 'confusion.png'}") == 0
    assert "the run recorded the same test error" in capsys.readouterr().out
    image = write(tmp_path / "image.png", encoded(picture(40, 32), "PNG"))
    words = [str(arrays / "test"), str(image), f"--save={run}", "--top=3", f"--csv={tmp_path / 'table.csv'}"]
    assert run_here("predict", *words) == 1
    assert f"error: {image} cannot be read as 5 channels, only as 1 or 3" in capsys.readouterr().err
    with (tmp_path / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == [str(path) for path in sorted(arrays.glob("test/*/*.npy"))]

    network, config = read_saved_run(run).network().double().eval(), config_of(run)
    pixels = torch.from_numpy(np.load(lines[4]["file"])[:, 4:36] / 255)  # the middle 32 of 40 columns
    normalised = ((pixels - torch.tensor(config["mean"])) / torch.tensor(config["std"])).permute(2, 0, 1)
    probabilities, labels = network(normalised[None]).softmax(1)[0].sort(descending=True)
    assert [lines[4][f"class{suffix}"] for suffix in ("", "_2", "_3")] == [config["classes"][i] for i in labels]
    theirs = [float(lines[4][f"probability{suffix}"]) for suffix in ("", "_2", "_3")]
    np.testing.assert_allclose(theirs, probabilities.tolist(), atol=1e-5)


def test_an_exported_file_takes_its_channels(run, tmp_path, capsys):
    path = tmp_path / "model.pt2"
    assert run_here("export", f"--save={run}", "--format=torch", f"--output={path}") == 0
    assert capsys.readouterr().out.endswith("images: float32 (N, 5, 32, 32), from 0 to 1; logits: float32 (N, 3)\n")
    texts = {"mean": "", "preprocessing": ""}
    exported = torch.export.load(path, extra_files=texts).module()
    assert exported(torch.rand(3, 5, 32, 32)).shape == (3, 3)
    assert json.loads(texts["mean"]) == config_of(run)["mean"]
    assert json.loads(texts["preprocessing"])["colours"] == "5 channels, as they are"


def test_check_reads_arrays(arrays, tmp_path, capsys):
    folder = shutil.copytree(arrays, tmp_path / "data")
    words = ["check", "--dataset=folder", f"--data={folder}", "--in_channels=5"]
    assert run_here(*words) == 0
    assert capsys.readouterr().out.endswith("All 24 images can be read.\n")
    write(folder / "train/cat/001.npy", saved(array(4)))
    assert run_here(*words) == 1
    assert f"error: {folder / 'train/cat/001.npy'} cannot be read as an image: it has 4 channels, and not 5" in (
        capsys.readouterr().err
    )


def test_a_grey_run_begins_with_weights_for_other_channels_and_says_so(run, tmp_path, capsys):
    data, save = make_folder(tmp_path / "data", {"train": 3, "test": 1}), tmp_path / "grey"
    words = [*FOLDER, "--in_channels=1", f"--data={data}", "--n_epochs=1", f"--save={save}"]
    assert run_here(*words, f"--init_weights={run / 'model.pt'}") == 0
    lines = capsys.readouterr().out.splitlines()
    taken = f"Beginning with the weights in {run / 'model.pt'}"
    assert lines[0] == f"{taken}; in the first convolution, 5 input channels become 1 (their sum)"
    assert "Images are read as grey; colours become 0.299 R + 0.587 G + 0.114 B" in lines
    assert (config_of(save)["mean"], config_of(save)["std"]) == ([0.449], [0.226])
    network = read_saved_run(save).network()
    assert input_channels(network, network.state_dict()) == 1
    assert run_here("predict", str(data / "test"), f"--save={save}") == 0


def test_digits_of_one_channel_are_trained(tmp_path):
    words = [*TINY, "--dataset=digits", "--in_channels=1", "--n_epochs=1", "--limit_batches=2"]
    assert run_here(*words, f"--save={tmp_path / 'run'}") == 0
    assert config_of(tmp_path / "run")["mean"] == [0.30511]


def test_evaluation_normalises_as_config_says(run, tmp_path, capsys):
    copy, config = shutil.copytree(run, tmp_path / "copy"), config_of(run)
    summaries = set()
    for mean in (config["mean"], [0.9] * 5):
        (copy / "config.json").write_text(json.dumps(config | {"mean": mean}))
        assert run_here("evaluate", f"--save={copy}") == 0
        summaries.add(capsys.readouterr().out.splitlines()[1])
    assert len(summaries) == 2


def test_a_run_is_not_resumed_with_other_channels(run, capsys):
    before = everything_in(run)
    assert run_here(f"--save={run}", "--resume", "--n_epochs=3", "--in_channels=4") == 2
    assert "--in_channels is 4, but the run" in capsys.readouterr().err
    assert everything_in(run) == before


def test_means_and_deviations_are_as_many_as_channels(run, tmp_path):
    folder, config = shutil.copytree(run, tmp_path / "run"), config_of(run)
    for change, message in (
        ({"mean": [0.5] * 3}, r"mean is \[0\.5, 0\.5, 0\.5\], but must be 5 numbers from 0 to 1"),
        ({"std": [0.5]}, r"std is \[0\.5\], but must be 5 numbers from 1e-06 to 1"),
        ({"flags": config["flags"] | {"in_channels": 1}}, r"mean is .*, but must be 1 number from 0 to 1"),
        (
            {"flags": config["flags"] | {"dataset": "cifar10"}},
            "--in_channels is 5, but must be 3 for --dataset cifar10",
        ),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=rf"config\.json cannot be used: {message}"):
            read_saved_run(folder)


@pytest.mark.parametrize("channels", ["0", "1001", "2.5", "rgb"])
def test_what_is_no_number_of_channels_is_refused(channels, tmp_path, capsys):
    words = ["train", *TINY, "--dataset=digits", f"--in_channels={channels}", f"--save={tmp_path / 'run'}"]
    message = f"--in_channels is '{channels}', but must be a whole number, 1 or more and at most 1,000"
    assert_refused(*words, message=message, folder=tmp_path, capture=capsys)


def test_channels_that_the_images_do_not_have_are_refused_before_a_folder_is_made(arrays, tmp_path, capsys):
    save = f"--save={tmp_path / 'run'}"
    for words, message in (
        (["--dataset=cifar10", "--in_channels=1"], "--in_channels is 1, but must be 3 for --dataset cifar10"),
        (["--dataset=folder", f"--data={arrays}"], "--in_channels is 3, but must be 5 for arrays like "),
    ):
        assert_refused("train", *TINY, *words, save, message=message, folder=tmp_path, capture=capsys)
