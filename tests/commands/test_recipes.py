"""The paper's table: networks of its size, and its recipe in every cell."""

import json

import pytest
from torch import nn

import demo
from commands.line.bind import bind
from commands.recipes import COLUMNS, NETWORKS, PAPER, RECIPES, altered_flags, describe_altered, flags_of_recipe
from commands.settings import TrainSettings
from models import IMAGENET_NETWORKS
from models.layers import Transition
from tests.support.application import SMALL, run_here
from tests.support.synthetic_runs import make_run

# Written down from the paper's table 2 and section 4.2 once more: millions of parameters, and what a data column asks
# for. The exact numbers are closed forms of the architecture, checked in tests of the models.
MILLIONS = {
    "densenet-40-12": "1.0",
    "densenet-100-12": "7.0",
    "densenet-100-24": "27.2",
    "densenet-bc-100-12": "0.8",
    "densenet-bc-250-24": "15.3",
    "densenet-bc-190-40": "25.6",
}
EXACT = {
    ("densenet-bc-100-12", 10): 769_162,
    ("densenet-bc-100-12", 100): 800_032,
    ("densenet-bc-250-24", 10): 15_324_406,
    ("densenet-bc-190-40", 10): 25_624_430,
    ("densenet-bc-190-40", 100): 25_821_620,
}
EPOCHS = {"cifar10": 300, "cifar100": 300, "svhn": 40}
HELD_OUT = {"cifar10": 0, "cifar100": 0, "svhn": 6000}
DATA = {"c10": "cifar10", "c10+": "cifar10", "c100": "cifar100", "c100+": "cifar100", "svhn": "svhn"}


def bound(*words):
    """Settings of a training run."""
    train = demo.COMMANDS["train"]
    return TrainSettings(**train.complete(bind(train, ["--save=s", *words], name="demo.py")))


def with_recipe(recipe, *words):
    return bound(f"--recipe={recipe}", *words)


def test_there_is_a_recipe_for_each_cell_that_the_paper_fills():
    assert len(PAPER) == 5 * 5 + 2
    assert PAPER["densenet-bc-250-24-c10+"] == 3.62
    assert PAPER["densenet-bc-190-40-c100+"] == 17.18
    assert PAPER["densenet-40-12-svhn"] == 1.79
    assert not {"densenet-bc-190-40-c10", "densenet-bc-190-40-c100", "densenet-bc-190-40-svhn"} & PAPER.keys()


@pytest.mark.parametrize("recipe", PAPER)
def test_its_settings_are_the_paper_s(recipe):
    row, _, column = recipe.rpartition("-")
    kind, depth, growth_rate = row.rsplit("-", 2)
    dataset, is_augmented = DATA[column], column.endswith("+")
    settings = with_recipe(recipe)
    assert settings.network == {"densenet": "densenet", "densenet-bc": "densenet_bc"}[kind]
    assert (settings.depth, settings.growth_rate) == (int(depth), int(growth_rate))
    assert (settings.dataset, settings.augment) == (dataset, is_augmented)
    assert settings.drop_rate == (0 if is_augmented else 0.2)
    assert (settings.n_epochs, settings.valid_size) == (EPOCHS[dataset], HELD_OUT[dataset])
    assert (settings.batch_size, settings.accum_steps) == (64, 1)
    assert (settings.lr, settings.lr_schedule, settings.warmup_epochs) == (0.1, "step", 0)
    assert (settings.momentum, settings.wd, settings.label_smoothing) == (0.9, 1e-4, 0)
    assert (settings.precision, settings.init_weights, settings.limit_batches) == ("fp32", None, None)
    assert (settings.mixup, settings.cutmix, settings.erasing, settings.cutout) == (0, 0, 0, 0)
    assert (settings.trivial_augment, settings.crop_border) == (False, "mean")


@pytest.mark.parametrize("recipe", PAPER)
def test_its_network_has_the_paper_s_number_of_parameters(recipe):
    row, _, column = recipe.rpartition("-")
    num_classes = 100 if column.startswith("c100") else 10
    network = with_recipe(recipe).checked().network_settings.build(num_classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert EXACT.get((row, num_classes), parameters) == parameters
    if num_classes == 10:
        assert f"{parameters / 1e6:.1f}" == MILLIONS[row]


@pytest.mark.parametrize(("recipe", "rate"), [("densenet-40-12-c10", 0.2), ("densenet-bc-100-12-c10+", 0)])
def test_dropout_is_where_the_paper_has_it(recipe, rate):
    network = with_recipe(recipe).checked().network_settings.build(10)
    layers = [module for module in network.modules() if hasattr(module, "drop_rate")]
    assert {layer.drop_rate for layer in layers} == {rate}


@pytest.mark.parametrize("recipe", ["densenet-bc-100-12-c10", "densenet-bc-100-12-c10+", "densenet-40-12-svhn"])
def test_every_convolution_but_the_first_has_its_dropout(recipe):
    settings = with_recipe(recipe).checked()
    network = settings.network_settings.build(10)
    assert set(dropout_rates(network)) == {settings.drop_rate}
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(dropout_rates(network)) == len(convolutions) - 1


def dropout_rates(network):
    """Dropout rates after the 1x1 and 3x3 convolutions of all dense layers, and in the transitions."""
    rates = [
        getattr(module, name)
        for module in network.modules()
        for name in ("drop_rate", "bottleneck_drop_rate")
        if hasattr(module, name)
    ]
    transitions = [module for module in network.modules() if isinstance(module, Transition)]
    return rates + [module.drop.p if hasattr(module, "drop") else 0 for module in transitions]


MODERN = {"lr_schedule": "cosine", "warmup_epochs": 5, "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0}
MODERN |= {"erasing": 0.1, "ema": 0.999, "decay_norms": False}


@pytest.mark.parametrize("cell", ["densenet-40-12-c10+", "densenet-bc-100-12-c100+", "densenet-bc-190-40-c10+"])
def test_a_modern_recipe_is_a_cell_with_other_augmentation_labels_and_schedule(cell):
    paper, modern = with_recipe(cell).plain(), with_recipe(f"modern-{cell}").plain()
    differing = {name: value for name, value in modern.items() if value != paper[name]}
    assert differing == MODERN | {"recipe": f"modern-{cell}"}


def test_modern_alone_leaves_network_and_data_to_other_flags():
    plain, modern = bound("--dataset=digits", "--depth=10"), with_recipe("modern", "--dataset=digits", "--depth=10")
    differing = {name: value for name, value in modern.plain().items() if value != plain.plain()[name]}
    assert differing == MODERN | {"recipe": "modern"}
    assert altered_flags(modern.plain()) == {}
    altered = with_recipe("modern", "--cutmix=0", "--depth=16")
    assert describe_altered(altered.plain()) == "--recipe modern: altered by --cutmix 0.0 (recipe: 1.0)"


def test_flags_beside_a_recipe_win():
    settings = with_recipe("densenet-bc-100-12-c10+", "--batch_size=32", "--depth", "40", "--no-augment")
    assert (settings.batch_size, settings.depth, settings.augment) == (32, 40, False)
    assert (settings.growth_rate, settings.n_epochs) == (12, 300)
    settings = with_recipe("densenet-bc-100-12-c10+", "--valid_size=None", "--network=densenet121")
    assert (settings.valid_size, settings.network, settings.depth) == (None, "densenet121", 121)


@pytest.mark.parametrize("recipe", PAPER)
def test_a_recipe_alone_is_not_altered(recipe):
    settings = with_recipe(
        recipe, "--threads=1", "--efficient=naive", "--seed=5", "--compile", "--data=d", "--tensorboard"
    )
    assert altered_flags(settings.plain()) == {}
    assert describe_altered(settings.plain()) is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--depth=16", "--dataset=svhn"], "--depth 16 (recipe: 100), --dataset svhn (recipe: cifar10)"),
        (["--depth=100", "--dataset=svhn"], "--dataset svhn (recipe: cifar10)"),
        (["--no-augment"], "--augment False (recipe: True)"),
        (["--valid_size=None"], "--valid_size None (recipe: 0)"),
        (
            ["--lr_schedule=cosine", "--warmup_epochs=5"],
            "--lr_schedule cosine (recipe: step), --warmup_epochs 5 (recipe: 0)",
        ),
        (["--label_smoothing=0.1"], "--label_smoothing 0.1 (recipe: 0.0)"),
        (["--accum_steps=2", "--precision=bf16"], "--accum_steps 2 (recipe: 1), --precision bf16 (recipe: fp32)"),
        (["--limit_batches=3"], "--limit_batches 3 (recipe: None)"),
        (["--init_weights=/a\x1b[31m.pt"], "--init_weights /a\\x1b[31m.pt (recipe: None)"),
    ],
)
def test_what_other_flags_altered_is_said(words, line):
    settings = with_recipe("densenet-bc-100-12-c10+", *words)
    assert describe_altered(settings.plain()) == f"--recipe densenet-bc-100-12-c10+: altered by {line}"


@pytest.mark.parametrize("flags", [{}, {"recipe": None}, {"recipe": "of-mine", "depth": 1}, {"recipe": 7}])
def test_what_is_no_recipe_is_not_altered(flags):
    assert altered_flags(flags) == {}


def test_an_altered_recipe_is_printed_and_recorded_again_when_the_run_goes_on(tmp_path, capsys):
    run, recipe = tmp_path / "run", "--recipe=densenet-bc-100-12-c10+"
    altered = "--recipe densenet-bc-100-12-c10+: altered by --batch_size 128 (recipe: 64), "
    altered += "--limit_batches 1 (recipe: None), --depth 10 (recipe: 100), --growth_rate 2 (recipe: 12), "
    altered += "--dataset digits (recipe: cifar10), --n_epochs {} (recipe: 300)"
    assert run_here(*SMALL, recipe, "--limit_batches=1", "--n_epochs=1", f"--save={run}") == 0
    assert altered.format(1) in capsys.readouterr().out.splitlines()
    config = json.loads((run / "config.json").read_text())
    assert config["recipe_altered"]["depth"] == {"recipe": 100, "run": 10}
    assert len(config["recipe_altered"]) == 6
    del config["recipe_altered"]  # as older runs are
    (run / "config.json").write_text(json.dumps(config))
    assert run_here(f"--save={run}", "--resume", "--n_epochs=2") == 0
    assert altered.format(2) in capsys.readouterr().out.splitlines()
    assert json.loads((run / "config.json").read_text())["recipe_altered"]["n_epochs"] == {"recipe": 300, "run": 2}


def test_a_run_without_a_recipe_records_none(finished):
    assert "recipe_altered" not in json.loads((finished / "config.json").read_text())


def test_compare_tells_altered_recipes_from_whole_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = "densenet-bc-100-12-c10+"
    whole = flags_of_recipe(recipe) | {"recipe": recipe}
    make_run(tmp_path / "whole", None, **whole)
    make_run(tmp_path / "altered", None, **(whole | {"wd": 0.01}))
    assert run_here("compare", "whole", "altered", "--csv=t.csv") == 0
    assert f"--recipe          {recipe}  {recipe} (altered)\n" in capsys.readouterr().out
    header, first, second = (tmp_path / "t.csv").read_text().splitlines()
    column = header.split(",").index("recipe_altered")
    assert (first.split(",")[column], second.split(",")[column]) == ("", "wd")


def test_recipes_name_flags_that_exist():
    for recipe in RECIPES:
        assert flags_of_recipe(recipe).keys() <= TrainSettings.flags().keys()
    assert {f"{row}-{column}" for row in NETWORKS for column in COLUMNS} >= PAPER.keys()


@pytest.mark.parametrize("name", IMAGENET_NETWORKS)
def test_networks_of_a_fixed_depth_are_what_their_names_say(name):
    settings = bound(f"--network={name}", "--dataset=folder").checked()
    depth, growth_rate = settings.depth, settings.growth_rate
    assert name == f"densenet{depth}"
    network = settings.network_settings.build(10)
    layers = [len([*block.children()]) for name, block in network.features.named_children() if "block" in name]
    if depth == 264:  # the paper's blocks make one more
        depth += 1
    assert depth == 2 * sum(layers) + len(layers) + 1  # first convolution, transitions, classifier
    assert network.features.denseblock1.denselayer1.conv2.out_channels == growth_rate
