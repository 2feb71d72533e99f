"""evaluate and predict with the network of a file of weights, without a run."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from commands.networks import NetworkSettings, flags_of_arguments
from commands.weights_file import read_weights_file
from data.class_names import CLASS_NAMES
from data.datasets import DATASETS, load
from data.splits import Split
from models import DenseNet, densenet_arguments, densenet_bc
from tests.support.application import assert_refused, read_csv, run_here
from tests.support.array_files import make_array_folder
from tests.support.other_programs import small_veit
from tests.support.perturbed_weights import with_random_norms
from tests.support.synthetic_images import encoded, make_folder, picture, write
from train.errors import UserError


@pytest.fixture
def veit(tmp_path, monkeypatch):
    """A network of another program whose weights are in v.pth, as its training script saves them."""
    network = small_veit()
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 300, "state_dict": weights, "best_prec1": 95.0}, tmp_path / "v.pth")
    monkeypatch.chdir(tmp_path)
    return network


def logits_of(network: torch.nn.Module, pixels: Tensor, *, dataset: str) -> Tensor:
    """Logits in 64 bits for pixels (N, 3, H, W) from 0 to 1."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (DATASETS[dataset].mean, DATASETS[dataset].std)
    )
    with torch.no_grad():
        return network.double().eval()((pixels.double() - mean) / std)


def test_evaluate_measures_what_the_other_program_computes(veit, tmp_path, capsys):
    assert run_here("evaluate", "--weights=v.pth", "--dataset=digits", "--csv=t.csv") == 0
    out, error = capsys.readouterr()
    test = load("digits", folder=None, download=False).test
    assert isinstance(test, Split)
    logits = logits_of(veit, test.images / 255, dataset="digits")
    right = int((logits.argmax(1) == test.labels).sum())
    lines = out.splitlines()
    assert lines[:3] == [
        "DenseNet-BC (L=16, k=4) on digits, weights in v.pth",
        lines[1],
        "a file of weights has no recorded test error to compare with",
    ]
    loss = torch.nn.functional.cross_entropy(logits, test.labels)
    assert lines[1].startswith(f"test error {1 - right / 355:.2%} ({355 - right} of 355 images), loss {loss:.4f}")
    assert "plot" not in out
    assert error == ""
    assert sum(int(row[f"predicted {row['class']}"]) for row in read_csv(tmp_path / "t.csv")) == right
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "v.pth"]


def test_predict_prepares_images_as_the_data_set_asks_and_knows_its_classes(veit, tmp_path):
    image = picture(32, 32, seed=5)
    write(tmp_path / "a.png", encoded(image, "PNG"))
    words = ["predict", "a.png", "--weights=v.pth", "--dataset=cifar10", "--top=10", "--csv=p.csv"]
    assert run_here(*words) == 0
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1) / 255
    expected = logits_of(veit, pixels[None], dataset="cifar10").softmax(1)[0]
    (row,) = read_csv(tmp_path / "p.csv")
    numbers = ["", *(f"_{n}" for n in range(2, 11))]
    actual = {row[f"class{n}"]: float(row[f"probability{n}"]) for n in numbers}
    assert actual == pytest.approx(dict(zip(CLASS_NAMES["cifar10"], expected.tolist(), strict=True)), rel=1e-4)


def test_classes_of_a_folder_are_named_by_it_or_numbered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "images", {"train": 1, "test": 2})
    torch.save(with_random_norms(densenet_bc(10, 2, num_classes=3, small_inputs=False)).state_dict(), "w.pt")
    words = ["--weights=w.pt", "--dataset=folder", "--image_size=96"]
    image = "images/test/ant/000.png"
    assert run_here("predict", image, *words, "--data=images", "--top=3") == 0
    assert set(capsys.readouterr().out.split()[1::2]) == {"ant", "bee", "cat"}
    assert run_here("predict", image, *words, "--top=3") == 0
    assert set(capsys.readouterr().out.split()[1::2]) == {"0", "1", "2"}
    assert run_here("evaluate", *words, "--data=images", "--plot=c.png") == 0
    out = capsys.readouterr().out
    assert out.startswith("DenseNet-BC (L=10, k=2) on folder images, weights in w.pt\n")
    assert out.endswith("Confusion matrix and reliability diagram are in c.png.\n")


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"classes": '["ant", "bee", "cat"]'}, {"ant", "bee", "cat"}),
        ({"classes": '["ant", "bee"]'}, {"0", "1", "2"}),
        ({"classes": "ant, bee, cat"}, {"0", "1", "2"}),
        ({"classes": '{"ant": 0}'}, {"0", "1", "2"}),
        (None, {"0", "1", "2"}),
    ],
)
def test_classes_of_a_folder_are_those_that_the_file_records(metadata, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.png", encoded(picture(32, 32), "PNG"))
    save_file(densenet_bc(10, 2, num_classes=3).state_dict(), "w.safetensors", metadata)
    assert run_here("predict", "a.png", "--weights=w.safetensors", "--dataset=folder", "--top=3") == 0
    assert set(capsys.readouterr().out.split()[1::2]) == names


MEANS, STDS = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
RECORDED = {"mean": json.dumps(MEANS), "std": json.dumps(STDS), "image_size": "40", "classes": '["ant", "bee", "cat"]'}


def read_folder_weights(path, data=None):
    return read_weights_file(path, dataset="folder", data=data, image_size=None, given={})


def test_images_are_prepared_as_the_file_records(tmp_path):
    weights, path = densenet_bc(10, 2, num_classes=3, in_channels=5).state_dict(), tmp_path / "w.safetensors"
    save_file(weights, path, RECORDED)
    file = read_folder_weights(path)
    assert (list(file.mean), list(file.std), file.settings.pixels) == (MEANS, STDS, 40)
    for metadata in ({}, RECORDED | {"std": "[0, 1]"}, RECORDED | {"mean": "none"}):
        save_file(weights, path, metadata)
        with pytest.raises(
            UserError, match="5 channels, whose mean and standard deviation are not known without a run"
        ):
            read_folder_weights(path)


def test_arrays_are_evaluated_only_by_means_that_the_file_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_array_folder(tmp_path / "data", {"train": 1, "test": 2}, channels=3)
    weights = densenet_bc(10, 2, num_classes=3).state_dict()
    words = ["evaluate", "--weights=w.safetensors", "--dataset=folder", "--data=data"]
    save_file(weights, "w.safetensors")
    assert run_here(*words) == 2
    assert "mean and standard deviation of arrays are not known from w.safetensors alone" in capsys.readouterr().err
    save_file(weights, "w.safetensors", RECORDED | {"mean": "[0.1, 0.2, 0.3]", "std": "[0.5, 0.4, 0.3]"})
    assert run_here(*words) == 0


def test_data_with_other_classes_than_the_file_records_are_refused(tmp_path):
    save_file(densenet_bc(10, 2, num_classes=3).state_dict(), tmp_path / "w.safetensors", RECORDED)
    make_folder(tmp_path / "same", {"train": 1, "test": 1})
    assert read_folder_weights(tmp_path / "w.safetensors", tmp_path / "same").classes == ("ant", "bee", "cat")
    (tmp_path / "same/train/ant").rename(tmp_path / "same/train/dog")
    with pytest.raises(UserError, match=r"the classes in --data .*same are not those of the weights in"):
        read_folder_weights(tmp_path / "w.safetensors", tmp_path / "same")


def test_what_is_not_taken_from_a_file_is_said(veit, capsys):
    weights = veit.state_dict()
    torch.save({"ema": {name: value * 2 for name, value in weights.items()}, "net": weights}, "both.pt")
    assert run_here("evaluate", "--weights=both.pt", "--dataset=digits") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(", weights in both.pt ('net', not 'ema')")


@pytest.mark.parametrize("words", [[], ["--network=densenet_bc", "--depth=16", "--growth_rate=4"], ["--depth=16"]])
def test_the_network_may_be_named_or_not(words, veit, capsys):
    assert run_here("evaluate", "--weights=v.pth", "--dataset=digits", *words) == 0
    assert capsys.readouterr().out.startswith("DenseNet-BC (L=16, k=4) on digits")


IS_OF = "but the weights in v.pth are of --network densenet_bc --depth 16 --growth_rate 4"
WEIGHTS = ["--weights=v.pth", "--dataset=digits"]
REFUSED = {
    "neither": ([], "--save or --weights is needed; see --help"),
    "both": (["--save=run", *WEIGHTS], "--save and --weights name two networks; name one of them"),
    "a flag of weights": (
        ["--save=run", "--growth_rate=4"],
        "--growth_rate is for --weights; the run in --save has its",
    ),
    "no data set": (["--weights=v.pth"], "--weights needs --dataset, whose mean and standard deviation normalise"),
    "no file": (["--weights=no.pth", "--dataset=digits"], "no.pth cannot be read: No such file"),
    "depth": ([*WEIGHTS, "--depth=40"], f"--depth is 40, {IS_OF}"),
    "growth rate": ([*WEIGHTS, "--depth=16", "--growth_rate=12"], f"--growth_rate is 12, {IS_OF}"),
    "network": ([*WEIGHTS, "--network=densenet121"], f"--network is densenet121, {IS_OF}"),
    "classes": (["--weights=v.pth", "--dataset=cifar100"], "are for 10 classes, but --dataset cifar100 has 100"),
    "classes of a folder": (
        ["--weights=v.pth", "--dataset=folder", "--data=images"],
        "the weights in v.pth are for 10 classes, but --data images has 3",
    ),
    "image size": ([*WEIGHTS, "--image_size=64"], "--image_size is 64, but images of --dataset digits are 32"),
    "stem": (
        ["--weights=v.pth", "--dataset=folder", "--image_size=96"],
        "--image_size is 96, but must be 64 or less for the network in v.pth",
    ),
    "another stem": (
        ["--weights=large.pt", "--dataset=folder"],
        "--image_size is 32, but must be above 64 for the network in large.pt",
    ),
    "no network": (
        ["--weights=other.pt", "--dataset=digits"],
        "--weights other.pt cannot be used: the weights are of no ",
    ),
    "another kind": (
        ["--weights=odd.pt", "--dataset=digits"],
        "the weights in odd.pt are of DenseNet(growth_rate=4, block_config=(2, 1), compression=0.5, "
        "num_init_features=8, "
        "bn_size=4, num_classes=10, in_channels=3, small_inputs=True), which --network does not have",
    ),
    "one tensor less": (
        ["--weights=less.pt", "--dataset=digits"],
        "less.pt cannot be used: the weights do not fit the network; missing: features.norm_final.bias",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_line_and_changes_nothing(case, veit, tmp_path, capsys):
    words, message = REFUSED[case]
    make_folder(tmp_path / "images", {"train": 1, "test": 1})
    torch.save(densenet_bc(10, 2, small_inputs=False).state_dict(), "large.pt")
    torch.save({"conv1.weight": torch.ones(1)}, "other.pt")
    torch.save(DenseNet(4, (2, 1), num_init_features=8).state_dict(), "odd.pt")
    torch.save({name: value for name, value in veit.state_dict().items() if name != "bn1.bias"}, "less.pt")
    assert_refused("evaluate", *words, message=message, folder=tmp_path, capture=capsys)


def test_weights_that_are_not_finite_are_refused(veit, tmp_path, capsys):
    torch.save(veit.state_dict() | {"bn1.bias": torch.full((16,), float("nan"))}, "nan.pt")
    message = "nan.pt cannot be used: its tensor 'features.norm_final.bias' is NaN or infinite"
    words = ["evaluate", "--weights=nan.pt", "--dataset=digits"]
    assert_refused(*words, message=message, folder=tmp_path, capture=capsys, code=1)


def test_data_is_refused_where_it_would_not_be_read(veit, tmp_path, capsys):
    words = ["predict", "a.png", "--weights=v.pth", "--dataset=cifar10", "--data=images"]
    assert_refused(*words, message="those of cifar10 are known", folder=tmp_path, capture=capsys)
    words = ["predict", "a.png", "--save=run", "--data=images"]
    assert_refused(*words, message="--data is for --weights; the run", folder=tmp_path, capture=capsys)


NETWORKS = [
    ("densenet_bc", 10, 2, 32),
    ("densenet_bc", 22, 12, 96),
    ("densenet", 13, 6, 32),
    ("densenet", 7, 8, 96),
    ("densenet121", 121, 32, 64),
    ("densenet169", 169, 32, 64),
    ("densenet161", 161, 48, 64),
]


@pytest.mark.parametrize(("name", "depth", "growth_rate", "size"), NETWORKS)
def test_a_network_of_the_command_line_is_recognised_by_its_weights(name, depth, growth_rate, size):
    with torch.device("meta"):
        network = NetworkSettings(name, depth, growth_rate, size).build(5)
    expected = {"network": name, "depth": depth, "growth_rate": growth_rate}
    assert flags_of_arguments(densenet_arguments(network.state_dict())) == expected


def test_class_names_are_those_of_the_data_sets():
    assert CLASS_NAMES["digits"] == load("digits", folder=None, download=False).classes
    assert [len(CLASS_NAMES[name]) for name in ("cifar10", "cifar100", "svhn")] == [10, 100, 10]
    for name in ("cifar10", "cifar100"):
        assert sorted(set(CLASS_NAMES[name])) == list(CLASS_NAMES[name])
    assert CLASS_NAMES.keys() == DATASETS.keys() - {"folder"}
