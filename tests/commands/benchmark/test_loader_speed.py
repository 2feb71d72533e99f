import re

import torch

from commands.benchmark.loader_speed import images_per_second, made_split, measure, pil_loader, tensor_loader


def test_both_pipelines_make_batches_of_one_kind():
    split = made_split(300)
    tensors, pil = [batch[:2] for batch in tensor_loader(split).epoch(1)], list(pil_loader(split))
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
        ours, theirs = (statistic(images, (0, 2, 3)) for images in (of_tensors, of_pil))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


def test_speed_is_images_over_seconds(monkeypatch):
    times = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    batches = [(torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(2, 1), torch.zeros(2))]
    assert images_per_second(iter(batches)) == 3


def test_table_has_a_row_for_each_pipeline_and_their_ratio():
    threads = torch.get_num_threads()
    header, tensors, pil, ratio, device = measure(num_images=300, rounds=2).splitlines()
    assert torch.get_num_threads() == threads
    assert header == "300 images of 32x32, batches of 256: median of 2 rounds (min - max)"
    for row, name in ((tensors, "data.loader"), (pil, "torchvision"), (ratio, "ratio")):
        assert row.startswith(name)
        median, low, high = (float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*", row))
        assert 0 < low <= median <= high
    assert re.search(r", 1 thread; Python 3\.\S+, torch \S+, torchvision \S+, Pillow \S+$", device)
