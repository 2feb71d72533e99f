"""Train memory-efficient DenseNets on CIFAR-10, CIFAR-100 and SVHN, or on handwritten digits that need no download.

A first run, the run that most people come for, and all flags:

    python demo.py --dataset digits --depth 10 --n_epochs 30 --batch_size 32 --save runs/digits
    python demo.py --efficient True --data <folder> --save <folder>
    python demo.py --help
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from data.errors import DataError
from train import flags as command_line
from train.claim import claim, recorded_flags
from train.errors import RunError, UserError
from train.flag_types import Range
from train.provenance import git_revision, versions

NAME = "demo.py"


def train(
    *,
    save: Path,
    data: Path | None = None,
    dataset: Literal["cifar10", "cifar100", "svhn", "digits"] = "cifar10",
    depth: Annotated[int, Range(10, 10_000, step=6, rule="6m + 4 with m >= 1 (10, 16, 22, 28, 34, 40, ...)")] = 40,
    growth_rate: Annotated[int, Range(1, 10_000)] = 12,
    efficient: bool | Literal["naive", "checkpoint", "buffer"] = True,
    drop_rate: Annotated[float, Range(0, 1, open_high=True)] = 0,
    n_epochs: Annotated[int, Range(1, 1_000_000)] = 300,
    batch_size: Annotated[int, Range(1, 1_000_000)] = 256,
    lr: Annotated[float, Range(0, open_low=True)] = 0.1,
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9,
    wd: Annotated[float, Range(0)] = 1e-4,
    augment: bool | None = None,
    valid_size: Annotated[int, Range(0)] | None = None,
    seed: Annotated[int, Range(0, 2**63 - 1)] | None = None,
    download: bool = True,
    resume: bool = False,
) -> None:
    """Train a DenseNet-BC on small images and leave logs and weights in a folder.

    All visible GPUs are used (CUDA_VISIBLE_DEVICES decides), or the CPU if there is none. The learning rate is
    divided by 10 after half and again after three quarters of the epochs. The folder --save holds results.csv,
    curves.png, model.pt (the chosen weights), checkpoint.pt and config.json after every epoch.

    Args:
        save: Folder for logs and weights. It is made if it does not exist, and must hold no other run.
        data: Folder of the data set's files, or of its downloaded archive. "digits" needs none.
        dataset: Images to train on. "digits" are scikit-learn's 1,797 handwritten digits, enlarged to 32x32.
        depth: Weighted layers L of the network.
        growth_rate: Channels k that each layer adds.
        efficient: Recompute cheap intermediate maps in the backward pass instead of storing them. Results are the
            same to the last bit.
        drop_rate: Dropout after each 3x3 convolution of a dense layer. The paper uses 0.2 without augmentation.
        n_epochs: Epochs of the whole run.
        batch_size: Images in a step, on all devices together.
        lr: Initial learning rate. The paper uses 0.1 with batches of 64.
        momentum: Nesterov momentum.
        wd: Weight decay, on all parameters.
        augment: Crop and flip training images at random. None: as in the paper, on CIFAR and nowhere else.
        valid_size: Training images held out to choose the best epoch. 0: train on all and keep the last epoch. None:
            5,000 for CIFAR and 6,000 for SVHN as in the paper, 140 for digits.
        seed: Makes validation split, initial weights, order, augmentation and dropout repeatable. None: draw one and
            write it to config.json.
        download: Fetch missing files of the data set from the network.
        resume: Continue the run in --save, or start it if there is none. Flags that are not given are those of the
            run. Of the others only save, data, download and efficient may differ, and n_epochs may grow. Every
            further epoch then has the learning rate that it has in a run of the new length.
    """
    flags = {flag: str(value) if isinstance(value, Path) else value for flag, value in locals().items()}
    with claim(save, flags) as folder:
        # From here on the line is known to be good. torch takes seconds to import.
        from data.datasets import DATASETS, load
        from data.loader import make_loaders
        from models import densenet_bc
        from train import runtime
        from train.engine import Loaders, fit
        from train.optim import make_optimizer

        spec = DATASETS[dataset]
        seed = flags["seed"] = runtime.draw_seed() if seed is None else seed
        augment = flags["augment"] = spec.augment if augment is None else augment
        valid_size = flags["valid_size"] = spec.valid_size if valid_size is None else valid_size
        folder.title = f"DenseNet-BC (L={depth}, k={growth_rate}) on {dataset}, seed {seed}"
        checkpoint = folder.load(n_epochs=n_epochs)
        if checkpoint.is_finished(n_epochs):
            print(f"The run in {save} is finished: {n_epochs} epochs, test error {checkpoint.test_error:.2%}.")
            return

        source = load(dataset, folder=data, download=download)
        runtime.be_deterministic()
        device = runtime.pick_device()
        preparation = {"batch_size": batch_size, "valid_size": valid_size, "augment": augment, "seed": seed}
        loaders = Loaders(*make_loaders(source, spec, device, **preparation))
        runtime.seed_weights(seed)
        network = densenet_bc(
            depth, growth_rate, num_classes=len(source.classes), drop_rate=drop_rate, efficient=efficient
        )
        network = runtime.placed(network, device)
        optimizer = make_optimizer(network.parameters(), lr=lr, momentum=momentum, wd=wd)

        parameters = sum(parameter.numel() for parameter in network.parameters())
        folder.write_config(
            {
                "flags": flags,
                "parameters": parameters,
                "classes": source.classes,
                "mean": spec.mean,
                "std": spec.std,
                "device": runtime.describe_device(device),
                "versions": versions(),
                "git_revision": git_revision(Path(__file__).parent),
            }
        )
        print(f"{folder.title}: {parameters:,} parameters, {runtime.describe_device(device)}")
        print(loaders.describe())
        if checkpoint.epoch:
            print(f"Resuming after epoch {checkpoint.epoch}.")
        model = runtime.on_all_devices(network, device)
        test_error = fit(model, optimizer, loaders, folder, checkpoint, n_epochs=n_epochs, lr=lr, seed=seed)
        print(f"Test error {test_error:.2%} (accuracy {1 - test_error:.2%}); everything is in {save}")


def main(argv: list[str]) -> None:
    """Run a command line: the words behind the program's name."""
    try:
        given = command_line.bind(train, argv, name=NAME)
        if given.get("resume"):
            given = command_line.bind(train, argv + _words_of_recorded_flags(given), name=NAME)
        train(**given)
    except (UserError, RunError, DataError) as error:
        command_line.refuse(str(error), name=NAME, exit_code=error.exit_code)
    except KeyboardInterrupt:
        message = "interrupted; the same line with --resume True goes on after the last finished epoch"
        command_line.refuse(message, name=NAME, exit_code=130)


def _words_of_recorded_flags(given: dict[str, Any]) -> list[str]:
    """The flags of the run in --save that the command line leaves open."""
    recorded = recorded_flags(given["save"])
    open_flags = {flag: value for flag, value in recorded.items() if given.get(flag) is None and value is not None}
    return [f"--{flag}={value}" for flag, value in open_flags.items()]


if __name__ == "__main__":
    main(sys.argv[1:])
