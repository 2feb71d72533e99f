"""`python demo.py predict`: the most likely classes of image files, as lines and as CSV."""

import csv
import io
import math
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from commands.predict.predictions import Prediction, as_csv, as_line, most_likely, predict_files
from data.datasets import DATASETS, load
from data.errors import DataError
from data.images import ImageBatch
from data.loader import make_test_loader
from data.splits import Split
from tests.support.application import SMALL, command, read_results, run_here
from tests.support.synthetic_images import encoded, picture, write
from train.errors import RunError

CLASSES = ("ant", "a, b", 'say "x"', "long name")


class Given(nn.Module):
    """A network whose logits are the first pixels of the image."""

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        return images[:, 0, 0, : len(CLASSES)]


def images_of(*logits):
    images = torch.zeros(len(logits), 3, 8, 8)
    if logits:
        images[:, 0, 0, : len(CLASSES)] = torch.tensor(logits)
    return images


def test_probabilities_are_those_of_a_softmax_the_most_likely_first():
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 3
    probabilities, labels = most_likely(Given().eval(), images_of(*logits.tolist()), top=3)
    expected = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    order = expected.argsort(1, descending=True)[:, :3]
    assert torch.equal(labels, order)
    torch.testing.assert_close(probabilities.double(), expected.gather(1, order), rtol=1e-5, atol=1e-7)


def test_half_precision_logits_become_probabilities_in_32_bits():
    probabilities, _ = most_likely(nn.Identity(), torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16), top=2)
    assert probabilities.dtype == torch.float32
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)


def predict(batches, paths, top=1):
    generator = (one for one in batches)
    return predict_files(Given(), generator, classes=CLASSES, top=top, paths=paths)


def test_each_file_gets_a_line_in_columns_and_a_bad_one_an_error(capsys):
    paths = ["a.png", "folder/b.png", "bad.png", "c.png"]
    batches = [
        ImageBatch(paths[:2], images_of([5.0, 0, 0, 0], [0, 0, 0, 0.5]), []),
        ImageBatch([], images_of(), [DataError("bad.png is no image")]),
        ImageBatch(paths[3:], images_of([0, 0, 9.0, 0]), []),
    ]
    predictions, unreadable = predict(batches, paths, top=2)
    assert unreadable == 1
    assert [(one.path, one.classes[0]) for one in predictions] == [
        ("a.png", "ant"),
        ("folder/b.png", "long name"),
        ("c.png", 'say "x"'),
    ]
    out, error = capsys.readouterr()
    assert error == "error: bad.png is no image\n"
    lines = out.splitlines()
    assert lines[0].startswith("a.png         ant        98.02%  ")  # e^5 / (e^5 + 3)
    assert lines[1].startswith("folder/b.png  long name  35.47%  ")  # e^0.5 / (e^0.5 + 3)
    assert len({len(line) for line in lines}) == 1


def test_a_line_holds_all_requested_classes():
    one = Prediction("x.png", ("ant", "bee"), (0.9, 0.1))
    assert as_line(one, (6, 4)) == "x.png   ant   90.00%  bee   10.00%"


def test_csv_holds_all_requested_classes_and_quotes_commas():
    predictions = [
        Prediction("a, 1.png", ("a, b", 'say "x"'), (0.75, 0.25)),
        Prediction("b.png", ("ant", "a, b"), (1.0, 1.25e-10)),
    ]
    rows = list(csv.reader(io.StringIO(as_csv(predictions, top=2).decode())))
    assert rows == [
        ["file", "class", "probability", "class_2", "probability_2"],
        ["a, 1.png", "a, b", "0.75", 'say "x"', "0.25"],
        ["b.png", "ant", "1", "a, b", "1.25e-10"],
    ]


@pytest.mark.parametrize(("number", "shown"), [(999, False), (1000, True)])
def test_many_files_get_a_bar_on_a_terminal(number, shown, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    predict([ImageBatch(["a"] * number, images_of(*[[0.0] * 4] * number), [])], ["a"] * number)
    assert (" files" in capsys.readouterr().err) == shown


def test_nothing_is_shown_where_there_is_no_terminal(capsys):
    predict([ImageBatch(["a"] * 2000, images_of(*[[0.0] * 4] * 2000), [])], ["a"] * 2000)
    assert capsys.readouterr().err == ""


def test_the_batches_are_closed_if_the_network_fails():
    closed = []

    def batches():
        try:
            yield ImageBatch(["a"], images_of([0.0] * 4), [])
            yield ImageBatch(["b"], torch.zeros(1, 3, 1, 1), [])  # too small for topk
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError):
        predict_files(Given(), batches(), classes=CLASSES, top=4, paths=["a", "b"])
    assert closed == [True]


def test_output_that_is_not_finite_is_an_error_that_names_the_file():
    images = images_of([0.0] * 4, [0.0, 0.0, math.inf, 0.0], [0.0] * 4)
    paths = ["a.png", "b.png", "c.png"]
    message = r"^the network's output for b\.png is NaN or infinite, so it means nothing$"
    with pytest.raises(RunError, match=message):
        predict([ImageBatch(paths, images, [])], paths)


class FinishedRun(NamedTuple):
    """A run and its test images, in memory and as files 000.png, 001.png, ... in the same order."""

    save: Path
    images: Path
    labels: Tensor
    error: float


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> FinishedRun:
    """A short run on digits."""
    root = tmp_path_factory.mktemp("run")
    assert run_here(*SMALL, "--n_epochs=2", f"--save={root / 'save'}") == 0
    test = load("digits", folder=None, download=False).test
    assert isinstance(test, Split)
    for i, pixels in enumerate(test.images):
        write(root / f"images/{i:03}.png", encoded(Image.fromarray(pixels.permute(1, 2, 0).numpy()), "PNG"))
    error = float(read_results(root / "save")[-1]["test_error"])
    return FinishedRun(root / "save", root / "images", test.labels, error)


def predicted(out):
    return [line.split() for line in out.splitlines()]


def test_predicting_the_test_images_gives_the_test_error_of_the_run(run, tmp_path, capsys):
    table = tmp_path / "table.csv"
    capsys.readouterr()
    assert run_here("predict", f"--save={run.save}", str(run.images), f"--csv={table}", "--top=3") == 0
    out, error = capsys.readouterr()
    assert error == ""
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(path) for path in sorted(run.images.iterdir())]
    assert [line[0] for line in predicted(out)] == [row["file"] for row in rows]
    wrong = sum(row["class"] != str(label) for row, label in zip(rows, run.labels.tolist(), strict=True))
    assert wrong / len(rows) == pytest.approx(run.error, abs=1e-12)
    for row in rows:
        probabilities = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-5


def test_colours_do_not_matter_to_a_run_on_grey_images(run, tmp_path, capsys):
    coloured = picture(32, 32)
    write(tmp_path / "coloured.png", encoded(coloured, "PNG"))
    write(tmp_path / "grey.png", encoded(coloured.convert("L"), "PNG"))
    capsys.readouterr()
    assert run_here("predict", f"--save={run.save}", str(tmp_path), "--top=10") == 0
    of_coloured, of_grey = predicted(capsys.readouterr().out)
    assert of_coloured[1:] == of_grey[1:]


@pytest.mark.parametrize("batch_size", ["--batch_size=1", "--batch_size=7"])
def test_the_batch_size_changes_nothing_that_is_printed(batch_size, run, capsys):
    words = ["predict", f"--save={run.save}", *(str(run.images / f"{i:03}.png") for i in range(15))]
    capsys.readouterr()
    assert run_here(*words) == 0
    expected = predicted(capsys.readouterr().out)
    assert run_here(*words, batch_size) == 0
    for (path, name, probability), other in zip(predicted(capsys.readouterr().out), expected, strict=True):
        assert [path, name] == other[:2]
        assert float(probability[:-1]) == pytest.approx(float(other[2][:-1]), abs=0.0101)


def test_bad_files_are_reported_and_the_rest_is_predicted(run, tmp_path, capsys):
    write(tmp_path / "a.png", b"")
    write(tmp_path / "b.jpg", encoded(picture(300, 200), "JPEG"))
    write(tmp_path / "c.png", b"text")
    (tmp_path / "d.png").symlink_to("nowhere.png")
    capsys.readouterr()
    assert run_here("predict", str(tmp_path), f"--save={run.save}", f"--csv={tmp_path / 't.csv'}") == 1
    out, error = capsys.readouterr()
    assert [line[0] for line in predicted(out)] == [str(tmp_path / "b.jpg")]
    assert error.splitlines() == [
        f"error: {tmp_path / 'a.png'} cannot be read as an image: it is empty, damaged or of no known format",
        f"error: {tmp_path / 'c.png'} cannot be read as an image: it is empty, damaged or of no known format",
        f"error: {tmp_path / 'd.png'} cannot be read: No such file or directory",
        "demo.py predict: error: 3 of 4 files could not be read as images",
    ]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png"], "there is no file nowhere.png"),
        (["{images}", "--top=11"], "--top is 11, but the network has 10 classes"),
        (["{images}", "--top=0"], "--top is '0', but must be a whole number, 1 or more"),
        (["{images}", "--csv={images}/000.png"], "must be a file name that ends in .csv"),
        (["{images}", "--csv={save}/results.csv"], "exists already; choose another name"),
        ([], "IMAGES is needed: a path, one or more"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_any_work(words, message, run, capsys):
    capsys.readouterr()
    words = [word.format(images=run.images, save=run.save) for word in words]
    assert run_here("predict", f"--save={run.save}", *words) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error


def test_predict_needs_nothing_but_the_folder_of_the_run(run, tmp_path, capsys):
    """Neither the data nor the checkpoint; the test loader gives as many images as there are files."""
    for name in ("config.json", "model.pt"):
        shutil.copy(run.save / name, tmp_path / name)
    capsys.readouterr()
    assert run_here("predict", f"--save={tmp_path}", str(run.images / "000.png")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    spec = DATASETS["digits"]
    source = load("digits", folder=None, download=False)
    assert make_test_loader(source, spec, torch.device("cpu"), batch_size=8).num_images == len(run.labels)


def test_it_ends_silently_if_nobody_reads_its_output_any_more(run):
    """As in `demo.py predict ... | head -1`, with more lines than a pipe holds."""
    words = ["predict", f"--save={run.save}", *[str(run.images)] * 10, "--top=10"]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
