import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from data.datasets import DATASETS, load, validation_size
from data.errors import DataError, MissingData
from data.splits import Dataset, Split, split_validation
from tests.support.dataset_files import in_memory
from tests.support.synthetic_datasets import MAKERS, make_cifar10, make_cifar100, make_svhn, python2_pickle


@pytest.fixture(autouse=True)
def silent_server(server):
    """Assert that no test here uses the network."""
    yield server
    assert server.asked == []


def assert_same(split, expected):
    assert split.images.dtype == torch.uint8
    assert split.labels.dtype == torch.int64
    assert torch.equal(split.images, expected.images)
    assert torch.equal(split.labels, expected.labels)


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_files_are_read_exactly(name, download, tmp_path, monkeypatch):
    synthetic = MAKERS[name](tmp_path, monkeypatch=monkeypatch)
    dataset = load(name, folder=tmp_path, download=download)
    assert_same(dataset.train, synthetic.train)
    assert_same(dataset.test, synthetic.test)
    assert dataset.classes == synthetic.classes
    assert in_memory(dataset.train).images.is_contiguous()
    assert len(dataset.train) == len(synthetic.train.labels)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_archive_alone_is_enough(name, tmp_path, monkeypatch):
    synthetic = MAKERS[name](tmp_path, monkeypatch=monkeypatch, as_archive=True)
    for _ in range(2):  # the second time from the unpacked files
        dataset = load(name, folder=tmp_path, download=False)
        assert_same(dataset.train, synthetic.train)
        assert_same(dataset.test, synthetic.test)
        assert dataset.classes == synthetic.classes
        (tmp_path / synthetic.reader.filename).unlink(missing_ok=True)


def test_cifar10_has_ten_classes_and_cifar100_its_fine_ones(tmp_path, monkeypatch):
    synthetic = make_cifar100(tmp_path, monkeypatch=monkeypatch)
    make_cifar10(tmp_path, monkeypatch=monkeypatch)
    ten, hundred = (load(name, folder=tmp_path, download=False) for name in ("cifar10", "cifar100"))
    assert ten.classes[3] == "cat"
    assert (len(ten.classes), len(hundred.classes)) == (10, 100)
    assert ten.train.labels.unique().tolist() == list(range(10))
    assert hundred.train.labels.unique().tolist() == list(range(100))
    entry = pickle.loads(synthetic.files["cifar-100-python/train"], encoding="latin1")
    assert hundred.train.labels.tolist() == entry["fine_labels"]


def test_a_row_of_cifar_is_all_red_then_green_then_blue_pixels(tmp_path, monkeypatch):
    synthetic = make_cifar10(tmp_path, monkeypatch=monkeypatch)
    row = pickle.loads(synthetic.files["cifar-10-batches-py/data_batch_1"], encoding="latin1")["data"][0]
    image = in_memory(load("cifar10", folder=tmp_path, download=False).train).images[0]
    assert image[1, 2, 3] == row[1 * 1024 + 2 * 32 + 3]
    assert torch.equal(image.flatten(), torch.from_numpy(row))


def test_svhn_joins_train_and_extra_and_calls_label_10_zero(tmp_path, monkeypatch):
    import scipy.io

    synthetic = make_svhn(tmp_path, 60, 50, num_extra=40, monkeypatch=monkeypatch)
    dataset = load("svhn", folder=tmp_path, download=False)
    assert_same(dataset.train.take(torch.arange(60)), synthetic.parts["train"])
    assert_same(dataset.train.take(torch.arange(60, 100)), synthetic.parts["extra"])
    stored = {name: scipy.io.loadmat(tmp_path / f"{name}_32x32.mat") for name in ("train", "extra", "test")}
    assert set(stored["train"]["y"].flatten().tolist()) == set(range(1, 11))
    labels = np.concatenate([stored["train"]["y"], stored["extra"]["y"]]).flatten() % 10
    assert dataset.train.labels.tolist() == labels.tolist()
    assert torch.equal(in_memory(dataset.test).images[7, 2], torch.from_numpy(stored["test"]["X"][:, :, 2, 7]))


@pytest.mark.parametrize("name", MAKERS)
def test_synthetic_images_can_be_told_apart_by_their_class_means(name, tmp_path):
    synthetic = MAKERS[name](tmp_path)
    flat = {part: getattr(synthetic, part).images.flatten(1).float() for part in ("train", "test")}
    means = torch.stack(
        [flat["train"][synthetic.train.labels == label].mean(0) for label in range(len(synthetic.classes))]
    )
    guesses = torch.cdist(flat["test"], means).argmin(1)
    assert (guesses == synthetic.test.labels).float().mean() > 0.95


def test_synthetic_pickles_are_those_of_python_2_and_numpy_1():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    contents = python2_pickle({"data": array, "labels": [1, 300], "nothing": None, "pair": (True, "x")})
    as_bytes = pickle.loads(python2_pickle({"labels": [1], "filenames": ["a"]}), encoding="bytes")
    assert as_bytes == {b"labels": [1], b"filenames": [b"a"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see the next test
        value = pickle.loads(contents, encoding="latin1")
    assert np.array_equal(value.pop("data"), array)
    assert value == {"labels": [1, 300], "nothing": None, "pair": (True, "x")}


def test_a_warning_of_numpy_about_the_age_of_cifars_files_is_not_shown(tmp_path, monkeypatch):
    make_cifar10(tmp_path, monkeypatch=monkeypatch)
    message = "dtype(): align should be passed as Python or NumPy boolean but got `align=0`."
    load_pickle = pickle.load

    def warn_and_load(file, **options):
        warnings.warn(message, np.exceptions.VisibleDeprecationWarning, stacklevel=2)
        return load_pickle(file, **options)

    monkeypatch.setattr(pickle, "load", warn_and_load)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        load("cifar10", folder=tmp_path, download=False)
        assert shown == []
        warnings.warn("another", stacklevel=1)  # the filter is gone afterwards
    assert len(shown) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_a_data_set_without_a_folder_names_the_flag(name):
    with pytest.raises(MissingData, match=rf"--dataset {name} needs --data FOLDER") as caught:
        load(name, folder=None, download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", *MAKERS])
def test_another_image_size_is_refused_before_anything_is_read(name, tmp_path):
    with pytest.raises(DataError, match=f"--image_size is 64, but the images of {name} are 32x32"):
        load(name, folder=tmp_path, download=False, image_size=64)


def dataset_of(num_train, *, num_valid=None):
    valid = None if num_valid is None else numbered_split(num_valid)
    return Dataset(numbered_split(num_train), numbered_split(1), ("a", "b"), valid=valid)


@pytest.mark.parametrize(
    ("name", "num_train", "asked", "expected"),
    [
        ("cifar10", 60, None, 5000),
        ("cifar10", 60, 0, 0),
        ("digits", 60, 7, 7),
        ("folder", 2, None, 1),
        ("folder", 19, None, 1),
        ("folder", 20, None, 2),
        ("folder", 20, 0, 0),
    ],
)
def test_how_many_images_are_held_out(name, num_train, asked, expected):
    assert validation_size(dataset_of(num_train), DATASETS[name], asked) == expected


def test_validation_images_of_its_own_leave_none_to_hold_out():
    dataset = dataset_of(20, num_valid=3)
    assert validation_size(dataset, DATASETS["folder"], None) is None
    for size in (0, 5):
        with pytest.raises(DataError, match=f"--valid_size is {size}, but the data set has 3 validation images"):
            validation_size(dataset, DATASETS["folder"], size)


def numbered_split(num_images):
    numbers = torch.arange(num_images)
    return Split(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), numbers)


@pytest.mark.parametrize("size", [0, 1, 20, 99])
def test_split_keeps_order_and_every_image(size):
    every = numbered_split(100)
    train, valid = split_validation(every, size=size, seed=3)
    assert (len(train), len(valid)) == (100 - size, size)
    for part in (train, valid):
        assert part.labels.tolist() == sorted(part.labels.tolist())
        assert torch.equal(part.images, every.images[part.labels])
    assert sorted(train.labels.tolist() + valid.labels.tolist()) == list(range(100))


def test_split_is_a_function_of_the_seed():
    every = numbered_split(100)
    held_out = {}
    for seed in (0, 1, 2, 10):
        torch.manual_seed(seed + 77)
        state = torch.get_rng_state()
        held_out[seed] = split_validation(every, size=20, seed=seed)[1].labels.tolist()
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(0)
        assert split_validation(every, size=20, seed=seed)[1].labels.tolist() == held_out[seed]
    assert len({tuple(chosen) for chosen in held_out.values()}) == len(held_out)


def test_split_holds_out_each_image_equally_often():
    every = numbered_split(20)
    chosen = torch.cat([split_validation(every, size=5, seed=seed)[1].labels for seed in range(800)])
    counts = chosen.bincount(minlength=20)  # 200 expected, standard deviation sqrt(800 * 1/4 * 3/4) = 12.2
    assert counts.min() > 200 - 4 * 12.3
    assert counts.max() < 200 + 4 * 12.3


@pytest.mark.parametrize("size", [-1, 100, 5000])
def test_split_refuses_a_size_that_leaves_no_training_image(size):
    with pytest.raises(DataError, match=rf"--valid_size is {size}, but must be 0 or more and below 100") as caught:
        split_validation(numbered_split(100), size=size, seed=0)
    assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def digits():
    return load("digits", folder=None, download=False)


def test_digits_have_the_shape_of_the_other_data_sets(digits):
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    for split in (digits.train, digits.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.shape == (len(split), 3, 32, 32)
        assert split.images.is_contiguous()
        assert torch.equal(split.images[:, 0], split.images[:, 1])
        assert torch.equal(split.images[:, 0], split.images[:, 2])
    assert digits.classes == tuple("0123456789")


def fifth_of_each_class():
    """Return which of scikit-learn's digits are test images, counted class by class."""
    seen = [0] * 10
    is_test = []
    for label in load_digits().target:
        seen[label] += 1
        is_test.append(seen[label] % 5 == 0)
    return np.array(is_test)


def test_every_fifth_digit_of_a_class_is_a_test_image(digits):
    is_test, target = fifth_of_each_class(), load_digits().target
    assert digits.test.labels.tolist() == target[is_test].tolist()
    assert digits.train.labels.tolist() == target[~is_test].tolist()
    in_all = np.bincount(target)
    assert digits.test.labels.bincount().tolist() == (in_all // 5).tolist()


def enlarged_by_pillow():
    def enlarge(image):
        return np.asarray(Image.fromarray(image.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))

    return np.stack([enlarge(image * 255 / 16) for image in load_digits().images])


def test_digits_are_enlarged_as_pillow_does_it(digits):
    is_test, expected = fifth_of_each_class(), enlarged_by_pillow()
    for split, rows in ((digits.train, expected[~is_test]), (digits.test, expected[is_test])):
        assert np.abs(split.images[:, 0].numpy() - rows).max() < 0.5 + 1e-3  # rounding to whole numbers


def test_an_enlarged_pixel_is_a_mean_of_the_four_around_it(digits):
    first = load_digits().images[0] * 255 / 16
    # Pixels are 4 wide. The middle of row 5 lies at 5.5 / 4 = 1.375, which is 0.875 below the middle of old row 0;
    # the middle of column 18 at 18.5 / 4 = 4.625, which is 0.125 right of the middle of old column 4.
    upper = 0.875 * first[0, 4] + 0.125 * first[0, 5]
    lower = 0.875 * first[1, 4] + 0.125 * first[1, 5]
    assert upper != lower
    assert digits.train.images[0, 0, 5, 18] == round(0.125 * upper + 0.875 * lower)


def test_mean_and_standard_deviation_of_digits_are_those_of_the_training_images(digits):
    pixels = digits.train.images.numpy() / 255
    assert DATASETS["digits"].mean == (round(float(pixels.mean()), 5),) * 3
    assert DATASETS["digits"].std == (round(float(pixels.std()), 5),) * 3


def test_statistics_and_the_papers_way_with_each_data_set():
    recorded = {
        name: (spec.mean, spec.std, spec.valid_size, spec.augment, spec.needs_folder)
        for name, spec in DATASETS.items()
        if name != "digits"
    }
    of_imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert recorded == {
        "cifar10": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159), 5000, True, True),
        "cifar100": ((0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615), 5000, True, True),
        "svhn": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 6000, False, True),
        "folder": (*of_imagenet, None, True, True),
    }
    assert [name for name, spec in DATASETS.items() if spec.grey] == ["digits"]
    assert [name for name, spec in DATASETS.items() if spec.free_size] == ["folder"]
    digits = DATASETS["digits"]
    assert (digits.valid_size, digits.augment, digits.needs_folder) == (140, False, False)
