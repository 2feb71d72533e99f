"""The benchmark of the data pipelines: both sides do the same work, and the table."""

import csv
import re

import pytest
import torch

from commands.benchmark.images import (
    KINDS,
    Speeds,
    file_batches,
    images_per_second,
    measure_images,
    pil_file_batches,
    pil_loader,
    synthetic_split,
    training_loader,
    write_files,
)
from train.errors import UserError


def test_both_training_pipelines_make_batches_of_one_kind():
    split = synthetic_split(300)
    tensors, pil = [batch[:2] for batch in training_loader(split).epoch(1)], list(pil_loader(split))
    assert [len(labels) for _, labels in tensors] == [256, 44]
    for ours, theirs in zip(tensors, pil, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            assert one.is_contiguous()
            assert other.is_contiguous()
    for batches in (tensors, pil):
        assert torch.cat([labels for _, labels in batches]).bincount().tolist() == split.labels.bincount().tolist()
    # No window leaves out the middle, so that the borders (mean colour here, black there) do not reach it.
    of_tensors, of_pil = (torch.cat([images for images, _ in batches])[:, :, 8:24, 8:24] for batches in (tensors, pil))
    for statistic in (torch.mean, torch.std, torch.amin, torch.amax):
        of_channels = [statistic(images, (0, 2, 3)) for images in (of_tensors, of_pil)]
        torch.testing.assert_close(*of_channels, rtol=0, atol=0.02)


def test_both_modern_pipelines_make_batches_of_one_kind():
    torch.manual_seed(0)
    split = synthetic_split(1000)
    batches = [*training_loader(split, is_modern=True).epoch(1)], [*pil_loader(split, is_modern=True)]
    ours, theirs = ([torch.cat(some) for some in list(zip(*of_one, strict=True))[:2]] for of_one in batches)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == torch.float32
    in_the_middle = [images[:, :, 8:24, 8:24].mean() for images, _ in (ours, theirs)]  # where no border is
    torch.testing.assert_close(*in_the_middle, rtol=0, atol=0.1)
    # Half of the images are mixed by mixup, of which most keep nearly all of their labels.
    certain = [(labels.amax(1) > 0.9).float().mean() for labels in (ours[1], theirs[1])]
    torch.testing.assert_close(*certain, rtol=0, atol=0.3)


@pytest.mark.parametrize("name", KINDS)
def test_both_ways_to_read_files_make_the_same_batches(name, tmp_path):
    paths = write_files(tmp_path, KINDS[name], 300)
    ours, plain = list(file_batches(paths)), list(pil_file_batches(paths))
    assert [len(images) for images in ours] == [256, 44]
    for one, other in zip(ours, plain, strict=True):
        assert one.shape == other.shape
        steps = (one - other).abs() * 0.25 * 255  # the standard deviations of the data set are about a quarter
        assert steps.mean() < 0.5
        assert steps.max() < 8
        if name.startswith("PNG"):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_speed_is_images_over_seconds(monkeypatch):
    times = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert images_per_second(iter([4, 2])) == 3


def test_ratios_are_taken_within_a_round():
    row = Speeds("work", [10.0, 40.0, 20.0], [5.0, 10.0, 20.0])
    assert row.ratios == [2, 4, 1]
    assert row.cells() == ["work", "20", "(10 - 40)", "10", "(5 - 20)", "2.00", "(1.00 - 4.00)"]


@pytest.mark.parametrize("classifies", [True, False])
def test_the_table_has_a_row_for_each_kind_of_work(classifies):
    threads = torch.get_num_threads()
    result = measure_images(rounds=2, num_images=300, num_files=20, classifies=classifies)
    assert torch.get_num_threads() == threads
    uses = ["read", "read and classified"] if classifies else ["read"]
    names = [
        "training batches",
        "training batches, modern recipe and TrivialAugment",
        *(f"{kind}, {use}" for kind in KINDS for use in uses),
    ]
    title, _, header, *rows = result.as_text().splitlines()
    assert title == ("300 images of 32x32 for training, 20 files of each kind for prediction, batches of 256")
    assert header.split()[:2] == ["images/s", "ours"]
    records = list(csv.DictReader(result.as_csv().decode().splitlines()))
    for row, record, name in zip(rows, records, names, strict=False):
        assert re.split(r"\s{2,}", row)[0] == record["work"] == name
        for column in ("images_per_second", "baseline", "ratio"):
            assert (
                0
                < float(record[f"{column}_min"])
                <= float(record[f"{column}_median"])
                <= float(record[f"{column}_max"])
            )
    assert [record["work"] for record in records] == names
    assert re.search(r" CPUs, \d+ threads of torch; Python 3\.\S+, torch \S+, torchvision \S+, Pillow \S+$", rows[-1])


def test_no_rounds_are_refused():
    with pytest.raises(UserError, match="--rounds is '0', but --what images measures nothing but time"):
        measure_images(rounds=0)
