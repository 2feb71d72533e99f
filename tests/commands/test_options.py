"""Options of training, through the command line."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands.settings import TrainSettings
from commands.train import steps
from commands.train.checks import check_last_batch, check_training
from commands.train.dataset import read_dataset
from data.epoch_plan import Augmentation
from tests.support.application import SMALL, assert_same_run, read_results, run_here
from tests.support.recorded_graph import RecordedGraphs
from train import engine, replicas
from train.cuda_graph import EAGER_STEPS
from train.errors import UserError
from train.processes import SINGLE_PROCESS

QUICK = [*SMALL, "--limit_batches=2"]


class Killed(BaseException):
    """An exception that no handler of the application expects."""


def results_of(folder, *words):
    assert run_here(*QUICK, *words, f"--save={folder}") == 0
    return read_results(folder)


@pytest.mark.parametrize(
    "words",
    [
        ["--precision=fp16", "--ema=0.9", "--clip_grad=0.5", "--decay_norms=False"],
        ["--precision=bf16", "--efficient=checkpoint"],
        ["--accum_steps=3", "--drop_rate=0.2"],
        ["--recipe=modern", "--warmup_epochs=1", "--augment", "--cutout=8", "--crop_border=black"],
        ["--network=densenet", "--drop_rate=0.2"],
    ],
    ids=" ".join,
)
def test_a_run_with_it_goes_on_with_the_same_bits(words, tmp_path, monkeypatch):
    words = [*QUICK, "--n_epochs=3", *words]
    assert run_here(*words, f"--save={tmp_path / 'whole'}") == 0
    real = engine.RunFolder.save

    def killed(self, checkpoint):
        real(self, checkpoint)
        if checkpoint.epoch == 2:
            raise Killed

    with monkeypatch.context() as context:
        context.setattr(engine.RunFolder, "save", killed)
        with pytest.raises(Killed):
            run_here(*words, f"--save={tmp_path / 'killed'}")
    assert run_here(f"--save={tmp_path / 'killed'}", "--resume") == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_the_schedule_is_in_the_results(tmp_path):
    rows = results_of(tmp_path / "a", "--n_epochs=4", "--lr=0.4", "--lr_schedule=cosine", "--warmup_epochs=1")
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.2, 0.4, 0.3, 0.1])


def test_milestones_and_factor_are_in_the_results(tmp_path):
    rows = results_of(tmp_path / "a", "--n_epochs=4", "--lr=0.4", "--lr_milestones=0.25, 0.7", "--lr_factor=0.5")
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.4, 0.2, 0.2, 0.1])


def test_steps_can_be_skipped_in_fp16_only(tmp_path):
    assert results_of(tmp_path / "fp16", "--n_epochs=1", "--precision=fp16")[0]["skipped_steps"] == "0"
    assert results_of(tmp_path / "bf16", "--n_epochs=1", "--precision=bf16")[0]["skipped_steps"] == ""


def test_a_dry_run_takes_so_many_batches_and_no_more(tmp_path, capsys):
    results_of(tmp_path / "dry", "--n_epochs=1")
    assert "256 training, 140 validation and 256 test images" in capsys.readouterr().out


def test_each_option_changes_the_run_as_it_says(tmp_path):
    losses = {}
    for words in ("", "--accum_steps=2", "--label_smoothing=0.5", "--precision=bf16", "--network=densenet"):
        losses[words] = results_of(tmp_path / f"run{words}", "--n_epochs=1", *filter(None, [words]))[0]["train_loss"]
    assert len(set(losses.values())) == len(losses)


def test_training_images_alone_are_changed_as_the_flags_say(tmp_path):
    changes = {"crop_border": "black", "erasing": 0.3, "cutout": 7, "mixup": 0.1, "cutmix": 0.2}
    settings = TrainSettings(
        save=tmp_path, dataset="digits", seed=1, augment=True, trivial_augment=True, **changes
    ).checked()
    _, _, loaders = read_dataset(settings, torch.device("cpu"), SINGLE_PROCESS, is_new=True)
    assert loaders.train.augmentation == Augmentation(trivial=True, **changes)
    assert (loaders.train.augment, loaders.train.num_classes) == (True, 10)
    assert loaders.valid.augmentation == loaders.test.augmentation == Augmentation()


def test_the_curves_are_told_of_smoothed_and_mixed_labels(tmp_path, monkeypatch):
    told = []

    def draw_curves(rows, file, *, label_smoothing, mixes, **_):
        told.append((len(rows), label_smoothing, mixes))

    monkeypatch.setattr("commands.train.plot.draw_curves", draw_curves)
    results_of(tmp_path / "smooth", "--n_epochs=1", "--label_smoothing=0.1", "--mixup=0.2")
    assert run_here(f"--save={tmp_path / 'smooth'}", "--resume") == 0  # which draws them anew
    assert set(told) == {(1, 0.1, True)}
    assert len(told) == 3


def test_options_are_in_the_configuration(tmp_path):
    results_of(tmp_path / "run", "--n_epochs=1", "--recipe=densenet-bc-100-12-c10+", "--lr=0.05", "--wd=0")
    flags = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]
    assert flags["recipe"] == "densenet-bc-100-12-c10+"
    assert (flags["momentum"], flags["lr"], flags["wd"], flags["dataset"]) == (0.9, 0.05, 0, "digits")
    assert (flags["network"], flags["image_size"], flags["augment"]) == ("densenet_bc", 32, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--warmup_epochs=300"], "--warmup_epochs is 300, but must be below --n_epochs, which is 300"),
        (["--lr_milestones=0.75,0.5"], "--lr_milestones is '0.75,0.5', but must be rising numbers above 0 and below 1"),
        (["--lr_milestones=150,225"], "--lr_milestones is '150,225', but must be rising numbers above 0 and below 1"),
        (["--lr_factor=1.5"], "--lr_factor is '1.5', but must be a number, above 0 and at most 1"),
        (["--lr_milestones=0.4", "--lr_schedule=cosine"], "--lr_milestones works with --lr_schedule step, but that is"),
        (["--lr_factor=0.2", "--lr_schedule=cosine"], "--lr_factor works with --lr_schedule step, but that is cosine"),
        (["--crop_border=black", "--no-augment"], "--crop_border black is for images that are padded and cropped"),
        (["--crop_border=black", "--dataset=digits"], "--crop_border black is for images that are padded and cropped"),
        (["--clip_grad=0"], "--clip_grad is '0', but must be a number, above 0, or None"),
        (["--ema=1"], "--ema is '1', but must be a number, 0 or more and below 1"),
        (["--accum_steps=300"], "--batch_size is 256, but must be 300 or more: an image for each"),
        (["--compile"], "--compile True does not work with --efficient True, only with naive and checkpoint"),
        (["--compile", "--efficient=buffer_fast"], "--compile True does not work with --efficient buffer_fast"),
        (["--sync_bn"], "--sync_bn True does not work with --efficient True, only with naive and checkpoint"),
        (["--sync_bn", "--no-efficient"], "--sync_bn True works between processes on GPUs"),
        (["--network=densenet", "--depth=41"], "--depth is '41', but must be a whole number, 3m + 4"),
        (["--network=densenet", "--depth=41"], "the nearest are 40 and 43"),
        (["--depth=43"], "--depth is '43', but must be a whole number, 6m + 4"),
        (["--depth=10006"], "3m + 4 for densenet; and at most 10,000"),
        (["--network=densenet121", "--depth=40"], "--depth is 40, but must be 121 for --network densenet121"),
        (["--network=densenet121", "--growth_rate=12"], "--growth_rate is 12, but must be 32"),
        (["--network=densenet121"], "--network densenet121 needs images of 64 pixels or more, but those of"),
        (["--network=densenet12"], "--network is 'densenet12', but must be densenet_bc | densenet | densenet121"),
        (["--image_size=64"], "--image_size is 64, but images of --dataset cifar10 are 32"),
        (["--recipe=densenet-bc-190-40-c10"], "--recipe is 'densenet-bc-190-40-c10', but must be a network"),
        (["--recipe=densenet-bc-100-12-C10+"], "did you mean densenet-bc-100-12-c10+?"),
        (["--recipe=densenet-bc-100-12-c10plus"], "did you mean densenet-bc-100-12-c10+?"),
        (["--recipe=densenet-bc-190-40-C100-plus"], "did you mean densenet-bc-190-40-c100+?"),
        (["--recipe=densenet-40-12-svhn", "--depth=44"], "--depth is '44'"),
        (["--precision=fp64"], "--precision is 'fp64', but must be fp32 | tf32 | bf16 | fp16; did you mean "),
        (["--cuda_graph", "--compile", "--efficient=naive"], "--cuda_graph True does not work with --compile True"),
        (["--cutout=33"], "--cutout is 33, but must be 32 or less, the height and width of the images"),
        (["--erasing=2"], "--erasing is '2', but must be a number, 0 or more and at most 1"),
        (["--recipe=modern-densenet-40-12-c10"], "did you mean modern-densenet-40-12-c10+?"),
        (["--label_smoothing=1.5"], "--label_smoothing is '1.5', but must be a number, 0 or more and at most 1"),
        (["--lr_schedule=cos"], "--lr_schedule is 'cos', but must be step | cosine"),
        (["--limit_batches=0"], "--limit_batches is '0', but must be a whole number, 1 or more"),
        (["--init_weights="], "--init_weights is '', but must be a path"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_done(words, message, tmp_path, capsys):
    save = tmp_path / "run"
    assert run_here(f"--save={save}", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("demo.py: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not save.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision=tf32"], "--precision is 'tf32', but that needs a GPU of compute capability 8.0 or higher; fp32"),
        (["--cuda_graph"], "--cuda_graph True needs a GPU, but there is none: leave it out, or set it to False"),
    ],
)
def test_what_needs_a_gpu_is_refused_where_there_is_none(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_here(*QUICK, *words, f"--save={tmp_path / 'run'}") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_graph_is_of_a_single_process():
    settings = TrainSettings(save=Path("s"), cuda_graph=True)
    check_training(settings, num_processes=1, is_launched=False)
    with pytest.raises(UserError, match="--cuda_graph True works in a single process on one GPU, not under torchrun"):
        check_training(settings, num_processes=2, is_launched=True)


def test_a_run_with_graphs_has_the_results_of_one_without_and_can_be_resumed_without(tmp_path, monkeypatch):
    graphs = RecordedGraphs()
    words = [*SMALL, "--n_epochs=1", "--drop_rate=0.2", "--limit_batches=5"]
    assert run_here(*words, f"--save={tmp_path / 'eager'}") == 0
    with monkeypatch.context() as context:
        context.setattr(steps, "CudaGraphs", lambda device: graphs)
        context.setattr(replicas, "require_devices", lambda device, **_: None)
        assert run_here(*words, "--cuda_graph", f"--save={tmp_path / 'graphs'}") == 0
    assert graphs.replays == 5 - EAGER_STEPS
    assert_same_run(tmp_path / "graphs", tmp_path / "eager")
    again = [f"--save={tmp_path / 'graphs'}", "--resume", "--n_epochs=2"]
    assert run_here(*again) == 2  # the graphs are those of the run
    assert run_here(*again, "--cuda_graph=False") == 0


def test_speed_may_be_preferred_to_equal_bits(tmp_path):
    for value in (False, True):
        assert run_here(*QUICK, "--n_epochs=1", f"--deterministic={value}", f"--save={tmp_path / str(value)}") == 0
        assert torch.are_deterministic_algorithms_enabled() is value
        assert torch.backends.cudnn.benchmark is not value


@pytest.mark.parametrize(("num_images", "is_fine"), [(64, True), (68, True), (67, False), (3, False)])
def test_norm_layers_of_all_processes_need_an_image_in_each_part(num_images, is_fine):
    settings = TrainSettings(save=Path("s"), sync_bn=True, batch_size=32, accum_steps=2)
    allowed = nullcontext() if is_fine else pytest.raises(UserError, match="the last batch has 3 for 4 parts")
    with allowed:
        check_last_batch(settings, num_images=num_images, num_processes=2)
    check_last_batch(replace(settings, sync_bn=False), num_images=num_images, num_processes=2)


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("commands.requirements.find_spec", lambda name: None)
    assert run_here(f"--save={tmp_path / 'run'}", "--tensorboard") == 2
    assert capsys.readouterr().err.endswith("pip install tensorboard\n")
