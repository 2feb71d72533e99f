"""Going on with a run, and everything that must not be overwritten."""

import json
import re
import shutil
import signal

import pytest
import torch

import demo
from models import DenseNet, densenet_bc
from tests.application import SMALL, assert_same_run, read_results, run_here
from train import engine
from train.folder.run import FILES

EPOCHS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of EPOCHS epochs that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run_here(*SMALL, f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment", f"--save={folder}") == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """The same, to be changed by a test."""
    return shutil.copytree(finished, tmp_path / "copy")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killed(BaseException):
    """What no handler of the application expects."""


def kill_at(monkeypatch, epoch, name):
    """Let the run end inside the write of a file, or in the evaluation, of one epoch."""
    real = getattr(engine.RunFolder, name)

    def killed(self, checkpoint):
        if checkpoint.epoch == epoch:
            raise Killed
        return real(self, checkpoint)

    monkeypatch.setattr(engine.RunFolder, name, killed)


@pytest.mark.parametrize("name", ["save", "_write_products"])
@pytest.mark.parametrize("epoch", [1, 2, EPOCHS])
def test_interrupted_run_ends_with_the_bits_of_an_undisturbed_one(epoch, name, finished, tmp_path, monkeypatch):
    words = [*SMALL, f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment", f"--save={tmp_path / 'run'}", "--resume"]
    with monkeypatch.context() as context:
        kill_at(context, epoch, name)
        with pytest.raises(Killed):
            run_here(*words)
    assert run_here(*words) == 0
    assert_same_run(tmp_path / "run", finished)


def test_resume_needs_no_flag_of_the_run_again(finished, tmp_path, monkeypatch):
    first = [*SMALL, f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment", f"--save={tmp_path / 'run'}"]
    with monkeypatch.context() as context:
        kill_at(context, 2, "save")
        with pytest.raises(Killed):
            run_here(*first)
    assert run_here(f"--save={tmp_path / 'run'}", "--resume", "True") == 0
    assert_same_run(tmp_path / "run", finished)


def test_another_strategy_may_go_on(tmp_path, monkeypatch):
    words = [*SMALL, f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment"]
    assert run_here(*words, "--efficient=False", f"--save={tmp_path / 'naive'}") == 0
    with monkeypatch.context() as context:
        kill_at(context, 3, "save")
        with pytest.raises(Killed):
            run_here(*words, "--efficient=False", f"--save={tmp_path / 'changed'}")
    shutil.copytree(tmp_path / "changed", tmp_path / "buffer")
    assert run_here(f"--save={tmp_path / 'changed'}", "--resume", "--efficient=checkpoint") == 0
    assert_same_run(tmp_path / "changed", tmp_path / "naive")
    assert run_here(f"--save={tmp_path / 'buffer'}", "--resume", "--efficient=buffer") == 0
    losses = [[float(row["train_loss"]) for row in read_results(tmp_path / name)] for name in ("naive", "buffer")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_finished_run_says_so_and_is_left_alone(copy, capsys):
    before = contents(copy)
    assert run_here(f"--save={copy}", "--resume") == 0
    assert f"The run in {copy} is finished: {EPOCHS} epochs, test error" in capsys.readouterr().out
    assert contents(copy) == before


def test_files_that_a_kill_left_behind_are_made_again(copy):
    before = contents(copy)
    for name in ("results.csv", "model.pt", "curves.png"):
        (copy / name).unlink()
    (copy / ".model.pt.tmp").write_bytes(b"half")
    assert run_here(f"--save={copy}", "--resume") == 0
    assert contents(copy) == before


def test_second_run_without_resume_is_refused_and_changes_nothing(copy, capsys):
    before = contents(copy)
    assert run_here(*SMALL, f"--save={copy}") == 2
    message = capsys.readouterr().err
    assert f"--save {copy} already holds a run (" in message
    assert "continue it with --resume True, or choose another folder" in message
    assert contents(copy) == before


@pytest.mark.parametrize("name", FILES)
def test_any_file_of_a_run_protects_its_folder(name, copy):
    for other in FILES:
        if other != name:
            (copy / other).unlink()
    before = contents(copy)
    assert run_here(*SMALL, f"--save={copy}") == 2
    assert contents(copy) == before


def test_other_files_in_the_folder_are_nobodys_business(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert run_here(*SMALL, "--n_epochs=1", f"--save={tmp_path}") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--depth=16", "--depth is 16, but the run in {} has 10"),
        ("--growth_rate=3", "--growth_rate is 3, but the run in {} has 2"),
        ("--dataset=svhn", "--dataset is 'svhn', but the run in {} has 'digits'"),
        ("--seed=4", "--seed is 4, but the run in {} has 3"),
        ("--batch_size=64", "--batch_size is 64, but the run in {} has 128"),
        ("--lr=0.2", "--lr is 0.2, but the run in {} has 0.1"),
        ("--wd=0", "--wd is 0.0, but the run in {} has 0.0001"),
        ("--momentum=0", "--momentum is 0.0, but the run in {} has 0.9"),
        ("--drop_rate=0", "--drop_rate is 0.0, but the run in {} has 0.2"),
        ("--augment=False", "--augment is False, but the run in {} has True"),
        ("--valid_size=0", "--valid_size is 0, but the run in {} has 140"),
        ("--n_epochs=3", "--n_epochs is 3, but the run in {} has 4; it may only grow"),
    ],
)
def test_a_flag_that_changes_the_run_is_refused_with_both_values(word, message, copy, capsys):
    before = contents(copy)
    assert run_here(f"--save={copy}", "--resume", word) == 2
    assert message.format(copy) in capsys.readouterr().err
    assert contents(copy) == before


NEWER_FLAGS = ["network", "image_size", "recipe", "init_weights", "accum_steps", "lr_schedule", "warmup_epochs"]
NEWER_FLAGS += ["precision", "label_smoothing", "compile", "sync_bn", "limit_batches", "tensorboard"]


@pytest.fixture
def older(copy):
    """The same, as the first version of this program recorded it."""
    config = json.loads((copy / "config.json").read_text())
    for flag in NEWER_FLAGS:
        del config["flags"][flag]
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--precision=fp16", "--precision is 'fp16', but the run in {} has 'fp32'"),
        ("--accum_steps=2", "--accum_steps is 2, but the run in {} has 1"),
        ("--limit_batches=1", "--limit_batches is 1, but the run in {} has None"),
        ("--init_weights=weights.pt", "--init_weights is 'weights.pt', but the run in {} has None"),
        ("--recipe=densenet-40-12-c10+", "--recipe is 'densenet-40-12-c10+', but the run in {} has None"),
    ],
)
def test_what_an_older_run_did_not_record_was_as_by_default(word, message, older, capsys):
    before = contents(older)
    assert run_here(f"--save={older}", "--resume", "--n_epochs=5", word) == 2
    assert message.format(older) in capsys.readouterr().err
    assert contents(older) == before


def test_an_older_run_goes_on(older, copy):
    assert run_here(f"--save={older}", "--resume", "--n_epochs=5", "--accum_steps=1", "--seed=None") == 0
    assert [row["epoch"] for row in read_results(older)] == ["1", "2", "3", "4", "5"]


def test_another_network_is_not_taken_for_one_of_another_depth(copy, capsys):
    assert run_here(f"--save={copy}", "--resume", "--network=densenet121") == 2
    assert "--depth" not in capsys.readouterr().err


def test_more_epochs_go_on_with_the_rates_of_the_longer_run(copy, capsys):
    short = read_results(copy, timing=False)
    assert run_here(f"--save={copy}", "--resume", "--n_epochs=8") == 0
    assert f"The run had ended after {EPOCHS} epochs with test error" in capsys.readouterr().out
    rows = read_results(copy, timing=False)
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 9)]
    assert [float(row["learning_rate"]) for row in rows[EPOCHS:]] == [0.01, 0.01, 0.001, 0.001]
    for old, new in zip(short, rows, strict=False):
        assert {**old, "test_error": ""} == new
    assert [row["test_error"] != "" for row in rows] == [False] * 7 + [True]
    assert json.loads((copy / "config.json").read_text())["flags"]["n_epochs"] == 8


def test_resume_starts_a_run_where_there_is_none(finished, tmp_path):
    folder = tmp_path / "deep" / "run"
    words = [*SMALL, f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment", f"--save={folder}", "--resume=True"]
    assert run_here(*words) == 0
    assert_same_run(folder, finished)
    assert run_here(*words) == 0


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", b"", "config.json cannot be read"),
        ("config.json", b"[1]", "config.json cannot be read"),
        ("config.json", b'{"flags": {"deph": 10}}', "config.json cannot be used: unknown flag 'deph'"),
        ("config.json", b'{"flags": {}}', "config.json names no seed"),
        ("config.json", None, "but no config.json, so it cannot be continued"),
    ],
)
def test_damaged_files_are_one_clear_line_and_stay_as_they_are(name, damage, message, copy, capsys):
    (copy / name).unlink() if damage is None else (copy / name).write_bytes(damage)
    before = contents(copy)
    assert run_here(f"--save={copy}", "--resume") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert contents(copy) == before


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"no archive",
    "truncated": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 4]) + content[5001:],
    "missing": None,
}


def damage(path, name):
    path.unlink() if DAMAGES[name] is None else path.write_bytes(DAMAGES[name](path.read_bytes()))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_whose_checkpoint_is_damaged_goes_on_from_the_one_before(name, copy, finished, capsys):
    damage(copy / "checkpoint.pt", name)
    found = (copy / "checkpoint.pt").read_bytes() if name != "missing" else None
    assert run_here(f"--save={copy}", "--resume") == 0
    warning, *others = capsys.readouterr().err.splitlines()
    assert others == []
    pattern = r"warning: .*checkpoint\.pt is (damaged|missing).*; going on from checkpoint\.previous\.pt"
    assert re.match(pattern, warning)
    assert (found is None) == ("it stays as checkpoint.damaged.pt" not in warning)
    assert found is None or (copy / "checkpoint.damaged.pt").read_bytes() == found
    assert_same_run(copy, finished)
    assert run_here(f"--save={copy}", "--resume") == 0
    assert capsys.readouterr().err == ""


def test_two_damaged_checkpoints_are_one_line_that_names_both(copy, capsys):
    damage(copy / "checkpoint.pt", "one bit")
    damage(copy / "checkpoint.previous.pt", "truncated")
    before = contents(copy)
    assert run_here(f"--save={copy}", "--resume") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"checkpoint\.pt is damaged.*; and .*checkpoint\.previous\.pt is damaged", error)
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "checkpoint.pt is of a newer version of this program (format 3; this one reads 2)"),
        ({"network": {"weight": torch.ones(1)}}, "is of another network than its config.json says"),
        ({"chosen": {}}, "is of another network than its config.json says"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "is of another optimizer"),
        (lambda content: content["optimizer"]["state"].clear(), "its buffers are not those of momentum"),
        (
            lambda content: content["optimizer"]["state"][0].update(momentum_buffer=torch.ones(1)),
            "its buffers are not those of momentum",
        ),
    ],
)
def test_a_whole_checkpoint_of_something_else_is_refused(change, message, copy, capsys):
    content = torch.load(copy / "checkpoint.pt", weights_only=True)
    content["rows"] = content["rows"][:1]  # of a run that is to go on
    content = content | change if isinstance(change, dict) else change(content) or content
    torch.save(content, copy / "checkpoint.pt")
    before = (copy / "checkpoint.pt").read_bytes(), (copy / "checkpoint.previous.pt").read_bytes()
    assert run_here(f"--save={copy}", "--resume") == 2
    assert message in capsys.readouterr().err
    assert before == ((copy / "checkpoint.pt").read_bytes(), (copy / "checkpoint.previous.pt").read_bytes())


def test_two_runs_with_one_seed_give_the_same_bits_and_another_seed_others(finished, tmp_path):
    words = [f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment"]
    assert run_here(*SMALL, *words, f"--save={tmp_path / 'same'}") == 0
    assert_same_run(tmp_path / "same", finished)
    others = [word for word in SMALL if not word.startswith("--seed")]
    assert run_here(*others, *words, "--seed=4", f"--save={tmp_path / 'other'}") == 0
    assert (tmp_path / "other" / "model.pt").read_bytes() != (finished / "model.pt").read_bytes()


def test_a_run_without_seed_can_be_repeated_from_its_config(tmp_path):
    others = [word for word in SMALL if not word.startswith("--seed")]
    assert run_here(*others, "--n_epochs=1", f"--save={tmp_path / 'drawn'}") == 0
    seed = json.loads((tmp_path / "drawn" / "config.json").read_text())["flags"]["seed"]
    assert run_here(*others, "--n_epochs=1", f"--seed={seed}", f"--save={tmp_path / 'again'}") == 0
    assert_same_run(tmp_path / "again", tmp_path / "drawn")


def test_a_loss_that_is_no_number_stops_the_run_before_anything_is_saved(tmp_path, capsys):
    assert run_here(*SMALL, "--n_epochs=2", "--lr=1e30", f"--save={tmp_path}") == 1
    error = capsys.readouterr().err
    assert "the training loss became NaN or infinite in epoch 1, batch " in error
    assert "learning rate 1e+30" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_interrupt_is_one_line_and_the_folder_can_go_on(tmp_path, monkeypatch, capsys):
    save = engine.RunFolder.save

    def interrupt(self, checkpoint):
        signal.raise_signal(signal.SIGINT)
        save(self, checkpoint)

    with monkeypatch.context() as context:
        context.setattr(engine.RunFolder, "save", interrupt)
        assert run_here(*SMALL, "--n_epochs=1", f"--save={tmp_path}") == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("demo.py: stopped by SIGINT after epoch 1; ")
    assert error.endswith(f"to go on: python demo.py --save={tmp_path} --resume=True\n")
    assert len(read_results(tmp_path)) == 1
    assert run_here(*SMALL, "--n_epochs=1", f"--save={tmp_path}", "--resume") == 0


def test_the_saved_weights_are_plain_and_reproduce_the_test_error(finished):
    weights = torch.load(finished / "model.pt", weights_only=True)
    assert type(weights) is dict
    network = densenet_bc(10, 2).eval()
    network.load_state_dict(weights)
    DenseNet(growth_rate=2, block_config=(1, 1, 1), num_init_features=4).load_state_dict(weights)

    from data.datasets import DATASETS, load
    from data.loader import Loader

    spec = DATASETS["digits"]
    test = Loader(load("digits", folder=None, download=False).test, batch_size=128, mean=spec.mean, std=spec.std)
    with torch.no_grad():
        wrong = sum((network(images).argmax(1) != labels).sum().item() for images, labels, _ in test)
    assert float(read_results(finished)[-1]["test_error"]) == wrong / 355


def test_config_says_what_the_run_is(finished):
    config = json.loads((finished / "config.json").read_text())
    assert set(config["flags"]) == set(demo.train.__annotations__) - {"return"}
    assert config["flags"]["valid_size"] == 140
    assert config["classes"] == list("0123456789")
    assert config["parameters"] == sum(parameter.numel() for parameter in densenet_bc(10, 2).parameters())
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(config["mean"]) == len(config["std"]) == 3
    assert "CPU" in config["device"] or "x" in config["device"]


def test_without_validation_images_the_last_epoch_is_kept(tmp_path):
    assert run_here(*SMALL, "--n_epochs=3", "--valid_size=0", f"--save={tmp_path}") == 0
    rows = read_results(tmp_path)
    assert all(row["valid_loss"] == row["valid_error"] == "" for row in rows)
    assert rows[-1]["test_error"] != ""
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    chosen = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(last[name], value) for name, value in chosen.items())


def test_the_best_validation_error_is_kept_even_if_a_later_epoch_is_worse(tmp_path, monkeypatch):
    real = engine.evaluate
    errors = iter([0.5, 0.3, 0.4, 0.9])
    seen = []

    def evaluate(model, batches, team):
        metrics = real(model, batches, team)
        error = next(errors)
        seen.append({name: value.clone() for name, value in model.network.state_dict().items()})
        return type(metrics)(metrics.loss, error)

    monkeypatch.setattr(engine, "evaluate", evaluate)
    assert run_here(*SMALL, "--n_epochs=3", f"--save={tmp_path}") == 0
    chosen = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in chosen.items():
        assert torch.equal(value, seen[1][name])
        assert torch.equal(value, seen[3][name])  # what was measured on the test images
    assert not torch.equal(seen[2]["classifier.weight"], chosen["classifier.weight"])
    assert read_results(tmp_path)[-1]["test_error"] == "0.9"
