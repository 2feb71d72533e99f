"""Train memory-efficient DenseNets on CIFAR-10, CIFAR-100 and SVHN, or on handwritten digits that need no download.

A first run, the run that most people come for, what it saves in memory and time, and all flags:

    python demo.py --dataset digits --depth 10 --n_epochs 30 --batch_size 32 --save runs/digits
    python demo.py --efficient True --data <folder> --save <folder>
    python demo.py benchmark
    python demo.py --help
    python demo.py benchmark --help
"""

import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

from data.errors import DataError
from train import flags as command_line
from train import stops
from train.benchmark.compiler import require_compiler
from train.benchmark.output import require_new, write_new
from train.claim import claim, recorded_flags
from train.errors import RunError, UserError
from train.flag_types import Range
from train.provenance import git_revision, versions
from train.run import CONFIG

NAME = "demo.py"

Depth = Annotated[int, Range(10, 10_000, step=6, rule="6m + 4 with m >= 1 (10, 16, 22, 28, 34, 40, ...)")]
GrowthRate = Annotated[int, Range(1, 10_000)]
BatchSize = Annotated[int, Range(1, 1_000_000)]
DropRate = Annotated[float, Range(0, 1, open_high=True)]


def train(
    *,
    save: Path,
    data: Path | None = None,
    dataset: Literal["cifar10", "cifar100", "svhn", "digits"] = "cifar10",
    depth: Depth = 40,
    growth_rate: GrowthRate = 12,
    efficient: bool | Literal["naive", "checkpoint", "buffer", "buffer_fast"] = True,
    drop_rate: DropRate = 0,
    n_epochs: Annotated[int, Range(1, 1_000_000)] = 300,
    batch_size: BatchSize = 256,
    lr: Annotated[float, Range(0, open_low=True)] = 0.1,
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9,
    wd: Annotated[float, Range(0)] = 1e-4,
    augment: bool | None = None,
    valid_size: Annotated[int, Range(0)] | None = None,
    seed: Annotated[int, Range(0, 2**63 - 1)] | None = None,
    download: bool = True,
    resume: bool = False,
    debug: bool = False,
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
        efficient: How the backward pass finds what the forward pass computed. True or "buffer" keeps one copy of each
            block's maps, which takes the least memory; "buffer_fast" is faster in about twice that memory. Both give
            the results of False or "naive", which keeps everything, up to rounding; "checkpoint" gives them to the last
            bit, and takes much more memory and time.
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
            run. Of the others only save, data, download, efficient and debug may differ, and n_epochs may grow. Every
            further epoch then has the learning rate that it has in a run of the new length.
        debug: Show where in the program an error came from.
    """
    flags = {flag: str(value) if isinstance(value, Path) else value for flag, value in locals().items()}
    with claim(save, flags) as folder:
        # From here on the line is known to be good. torch takes seconds to import.
        from data.datasets import DATASETS, load
        from data.loader import make_loaders
        from models import densenet_bc
        from train import runtime
        from train.engine import Loaders, fit
        from train.memory import is_out_of_memory, what_to_try
        from train.optim import make_optimizer

        spec = DATASETS[dataset]
        seed = flags["seed"] = runtime.draw_seed() if seed is None else seed
        augment = flags["augment"] = spec.augment if augment is None else augment
        valid_size = flags["valid_size"] = spec.valid_size if valid_size is None else valid_size
        folder.title = f"DenseNet-BC (L={depth}, k={growth_rate}) on {dataset}, seed {seed}"
        checkpoint = folder.load(n_epochs=n_epochs)
        if checkpoint.is_finished(n_epochs):
            folder.write_products(checkpoint)
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
        try:
            test_error = fit(model, optimizer, loaders, folder, checkpoint, n_epochs=n_epochs, lr=lr, seed=seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            advice = {"strategy": network.strategy, "batch_size": batch_size, "device": device}
            advice = what_to_try(**advice, depth=depth, growth_rate=growth_rate)
            raise RunError(
                f"memory ran out with --efficient {network.strategy} and --batch_size {batch_size}; {save} stands at "
                f"the last finished epoch; {advice}"
            ) from error
        print(f"Test error {test_error:.2%} (accuracy {1 - test_error:.2%}); everything is in {save}")


def benchmark(
    *,
    depth: Depth = 100,
    growth_rate: GrowthRate = 12,
    batch_size: BatchSize = 64,
    image_size: Annotated[int, Range(8, 1024)] = 32,
    drop_rate: DropRate = 0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    memory_format: Literal["channels_last", "contiguous"] = "channels_last",
    threads: Annotated[int, Range(1, 1024)] | None = None,
    rounds: Annotated[int, Range(0, 1000)] = 5,
    compile: bool = False,
    budget_gb: Annotated[float, Range(0, open_low=True)] | None = None,
    plot: Path | None = None,
    depths: tuple[Depth, ...] = (40, 100, 190, 250),
    csv: Path | None = None,
    debug: bool = False,
) -> None:
    """Measure memory and time of a training step, of our strategies and of other ways to train the same network.

    Runs on the first visible GPU, or on the CPU if there is none. A step is forward, loss and backward of a made
    batch. Our strategies are compared with torchvision's DenseNet (memory_efficient False and True) and
    with a checkpoint around each dense layer and transition. Before anything is measured, our strategies must agree
    with naive in loss, gradients and running statistics; otherwise the exit code is 1. The defaults take one to two
    minutes on two CPU cores.

    Args:
        depth: Weighted layers L of the network.
        growth_rate: Channels k that each layer adds.
        batch_size: Images in a step.
        image_size: Height and width of the images.
        drop_rate: Dropout after each 3x3 convolution of a dense layer.
        precision: bf16 and fp16 are autocast. fp16 needs a GPU.
        memory_format: Of all variants; naive is measured in both, and ratios refer to the faster one.
        threads: CPU threads. None: as many as torch takes.
        rounds: How often each variant is timed, at each depth too; they take turns. 0: measure memory only.
        compile: Also measure torch.compile of the naive network with an activation memory budget of one half.
            Compiling takes minutes, and needs a C++ compiler.
        budget_gb: Measure no table, but answer from small measurements what fits into so many GB of 10^9 bytes: which
            strategies, the largest batch for the given network, and the deepest network for the given batch.
        plot: Also measure memory and time against depth, and draw memory into this new file, a PNG. At most 16 images
            are in a step.
        depths: Those in the picture.
        csv: Also write the table to this new file.
        debug: Show where in the program an error came from.
    """
    require_new(plot, flag="plot", suffix=".png")
    require_new(csv, flag="csv", suffix=".csv")
    if compile:
        require_compiler()
    # From here on the line is known to be good. torch takes seconds to import.
    from models import STRATEGIES, densenet_bc
    from train import runtime
    from train.benchmark.budget import GB, find_what_fits
    from train.benchmark.comparison import compare
    from train.benchmark.depths import measure_by_depth
    from train.benchmark.plot import draw_depths
    from train.benchmark.step import Case
    from train.benchmark.variants import all_variants

    runtime.use_threads(threads)
    runtime.be_deterministic()
    device = runtime.pick_device()
    case = Case(depth, growth_rate, batch_size, image_size, drop_rate, precision, device)
    variants = all_variants(
        lambda strategy, **network: densenet_bc(**network, efficient=strategy),
        STRATEGIES,
        memory_format=memory_format,
        with_compile=compile,
    )
    if budget_gb is None:
        result = compare(variants, case, rounds=rounds)
    else:
        result = find_what_fits(variants, case, budget=budget_gb * GB)
    print(result.as_text())
    if csv:
        write_new(csv, result.as_csv().encode())
    if plot:
        by_depth = measure_by_depth(variants, case, depths=depths, rounds=rounds)
        write_new(plot, draw_depths(by_depth))
        print(f"\n{by_depth.as_text()}")


def main(argv: list[str]) -> None:
    """Run a command line: the words behind the program's name."""
    command, words = command_line.choose(COMMANDS, argv, name=NAME)
    name = NAME if words is argv else f"{NAME} {command}"
    given: dict[str, Any] = {}
    try:
        with stops.at_once():
            given = command_line.bind(COMMANDS[command], words, name=name, commands=COMMANDS)
            if given.get("resume"):
                given = command_line.bind(train, words + _words_of_recorded_flags(given), name=name)
            command_line.call(COMMANDS[command], given)
    except (UserError, RunError, DataError) as error:
        if given.get("debug"):
            traceback.print_exc()
        command_line.end(f"error: {error}", name=name, exit_code=error.exit_code)
    except stops.Stopped as stop:
        hint = f"; {_how_to_go_on(words, given)}" if command == "train" else ""
        command_line.end(f"{stop}{hint}", name=name, exit_code=stop.exit_code)


def _how_to_go_on(words: list[str], given: dict[str, Any]) -> str:
    """The command line that goes on with a run that was stopped."""
    save = given.get("save")
    if save is None or not (save / CONFIG).exists():
        return "nothing was written"
    line = shlex.join(["python", NAME, f"--save={save}", "--resume=True"])
    return f"{save} stands at the last finished epoch; to go on: {line}"


def _words_of_recorded_flags(given: dict[str, Any]) -> list[str]:
    """The flags of the run in --save that the command line leaves open."""
    recorded = recorded_flags(given["save"])
    open_flags = {flag: value for flag, value in recorded.items() if given.get(flag) is None and value is not None}
    return [f"--{flag}={value}" for flag, value in open_flags.items()]


COMMANDS = {"train": train, "benchmark": benchmark}

if __name__ == "__main__":
    if sys.stdout is not None:  # as it is where it was closed
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    main(sys.argv[1:])
