"""Train memory-efficient DenseNets on CIFAR-10, CIFAR-100 and SVHN, or on handwritten digits that need no download.

A first run, the run that most people come for, a cell of the paper's table, a check of all images, what came of it,
several runs side by side, classes of images, the network as a file for other programs, what it all saves in memory and
time, and all flags:

    python demo.py --dataset digits --depth 10 --n_epochs 30 --batch_size 32 --save runs/digits
    python demo.py --efficient True --data <folder> --save <folder>
    python demo.py --recipe densenet-bc-100-12-c10+ --data <folder> --save <folder>
    python demo.py check --dataset folder --data <folder>
    python demo.py evaluate --save <folder>
    python demo.py compare <folder> <folder>
    python demo.py predict <image> --save <folder>
    python demo.py export --save <folder> --format onnx
    python demo.py benchmark
    python demo.py --help
"""

if __name__ == "__main__":
    # During the imports Ctrl-C ends the program without a traceback. The module signal takes a while to import itself.
    import _signal

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import sys
from pathlib import Path

if __name__ == "__main__" and sys.flags.safe_path:  # PYTHONSAFEPATH: the packages beside this file are not found
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import shlex
import signal
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from fire.core import FireError

from commands.compare.table import RunsTable
from commands.compiler import require_compiler
from commands.export.formats import SUFFIXES, require_packages
from commands.line import bind as command_line
from commands.line.types import Names, Range
from commands.memory import explained
from commands.networks import (
    LARGEST_SMALL_IMAGES,
    check_network,
    depths_of_plot,
    flags_of_network,
    image_size_of,
    title_of,
)
from commands.outputs import (
    is_of_output,
    print_and_write,
    require_new,
    require_replaceable,
    require_working_directory,
    write_new,
)
from commands.provenance import git_revision, version_line, versions
from commands.recipes import PAPER, RULE, altered_flags, describe_altered, flags_of_recipe
from commands.run_history import read_logbook, read_logbooks, read_with_logbook
from commands.saved_run import CHOSEN_FLAGS, SavedRun, read_saved_run
from commands.train.checks import check_last_batch, check_training
from commands.train.tensorboard import Events
from data.errors import DataError
from train import signals
from train.errors import RunError, UserError
from train.processes import ProcessGroup, connected, current_group, is_launched, launcher, launcher_warning
from train.run.acquire import claim, recorded_flags, require_recorded_data, without_links
from train.run.legacy_weights import load_foreign
from train.run.names import CONFIG, MODEL
from train.run.open_folder import atomic_write
from train.terminal import Bar, leave, open_streams, say, say_error, warn

if TYPE_CHECKING:
    import torch

    from data.source import Source
    from models import DenseNet
    from train.engine import Loaders

NAME = "demo.py"

DatasetName = Literal["cifar10", "cifar100", "svhn", "digits", "folder"]
Network = Literal["densenet_bc", "densenet", "densenet121", "densenet169", "densenet201", "densenet161", "densenet264"]
# Of all networks; check_network knows the rest.
Depth = Annotated[
    int, Range(7, 10_000, rule="6m + 4 with m >= 1 (10, 16, 22, 28, 34, 40, ...), or 3m + 4 for densenet")
]
GrowthRate = Annotated[int, Range(1, 10_000)]
BatchSize = Annotated[int, Range(1, 1_000_000)]
DropRate = Annotated[float, Range(0, 1, open_high=True)]
Threads = Annotated[int, Range(1, 1024)]


def train(
    *,
    save: Path,
    data: Path | None = None,
    dataset: DatasetName = "cifar10",
    image_size: Annotated[int, Range(8, 1024)] | None = None,
    recipe: Annotated[str, Names(tuple(PAPER), rule=RULE)] | None = None,
    network: Network = "densenet_bc",
    depth: Depth = 40,
    growth_rate: GrowthRate = 12,
    efficient: bool | Literal["naive", "checkpoint", "buffer", "buffer_fast"] = True,
    drop_rate: DropRate = 0.0,
    init_weights: Path | None = None,
    n_epochs: Annotated[int, Range(1, 1_000_000)] = 300,
    batch_size: BatchSize = 256,
    accum_steps: Annotated[int, Range(1, 1_000_000)] = 1,
    lr: Annotated[float, Range(0, open_low=True)] = 0.1,
    lr_schedule: Literal["step", "cosine"] = "step",
    warmup_epochs: Annotated[int, Range(0, 1_000_000)] = 0,
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9,
    wd: Annotated[float, Range(0)] = 1e-4,
    label_smoothing: Annotated[float, Range(0, 1)] = 0.0,
    augment: bool | None = None,
    valid_size: Annotated[int, Range(0)] | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    compile: bool = False,
    sync_bn: bool = False,
    threads: Threads | None = None,
    limit_batches: Annotated[int, Range(1, 1_000_000)] | None = None,
    seed: Annotated[int, Range(0, 2**63 - 1)] | None = None,
    download: bool = True,
    tensorboard: bool = False,
    resume: bool = False,
    debug: bool = False,
) -> None:
    """Train a DenseNet on images and leave logs and weights in a folder.

    All visible GPUs are used (CUDA_VISIBLE_DEVICES decides), or the CPU if there is none; "torchrun" in front of the
    program gives each GPU a process of its own. The folder --save holds results.csv, curves.png, model.pt (the chosen
    weights), checkpoint.pt and config.json after every epoch.

    Args:
        save: Folder for logs and weights. It is made if it does not exist, and must hold no other run.
        data: Folder of the data set's files, or of its downloaded archive. "digits" needs none.
        dataset: Images to train on. "digits" are scikit-learn's 1,797 handwritten digits, enlarged to 32x32. "folder"
            are your own, in train/CLASS/ and test/CLASS/ or val/CLASS/ below --data.
        image_size: Height and width to which images of "folder" are brought. None: 224 for densenet121 and its like,
            and 32 for others.
        recipe: A cell of the paper's table, named by network and data, with "+" for augmentation. It stands for all
            flags that the paper fixes; flags that are given as well win.
        network: "densenet_bc" and "densenet" are the paper's networks for small images, with and without bottlenecks
            and compression; above 64 pixels they begin as those for ImageNet do. The others are those for ImageNet, of
            a depth and a growth rate of their own.
        depth: Weighted layers L of the network.
        growth_rate: Channels k that each layer adds.
        efficient: How the backward pass finds what the forward pass computed. True or "buffer" keeps one copy of each
            block's maps, which in most cases takes the least memory; "buffer_fast" is faster in about twice that
            memory. Both give the results of False or "naive", which keeps everything, up to rounding; "checkpoint"
            gives them to the last bit, and takes much more memory and time.
        drop_rate: Dropout after each convolution but the first. The paper uses 0.2 without augmentation.
        init_weights: Begin with the weights in this file, of a run of this program, of torchvision or of earlier
            efficient DenseNets. A classifier of other classes is left out.
        n_epochs: Epochs of the whole run.
        batch_size: Images in a step, on all devices and in all processes together.
        accum_steps: Compute the gradient of a step in so many parts, one after the other, which takes less memory. Each
            part is normalised with its own statistics.
        lr: Initial learning rate. The paper uses 0.1 with batches of 64.
        lr_schedule: "step" divides it by 10 after half and again after three quarters of the epochs; "cosine" lets it
            fall along half a cosine.
        warmup_epochs: Let the learning rate grow over so many epochs at the beginning.
        momentum: Nesterov momentum.
        wd: Weight decay, on all parameters.
        label_smoothing: This share of each label is spread evenly over all classes in training. Losses of validation
            and test are without.
        augment: Crop and flip training images at random. None: as in the paper, on CIFAR and not on SVHN; on "folder"
            too, and not on "digits".
        valid_size: Training images held out to choose the best epoch. 0: train on all and keep the last epoch. None:
            5,000 for CIFAR and 6,000 for SVHN as in the paper, 140 for digits, a tenth of a folder's.
        precision: "bf16" and "fp16" are autocast; with "fp16" the loss is scaled.
        compile: Let torch.compile have the network, which takes minutes at first. For --efficient naive or checkpoint.
        sync_bn: Under torchrun on GPUs: normalise with the statistics of all processes together.
        threads: CPU threads that compute, in each process. None: as many as torch takes. Other numbers change results
            by rounding.
        limit_batches: A dry run: end every epoch, and validation and test, after so many batches.
        seed: Makes validation split, initial weights, order, augmentation and dropout repeatable. None: draw one and
            write it to config.json.
        download: Fetch missing files of the data set from the network.
        tensorboard: Also write events for TensorBoard, if that package is installed.
        resume: Continue the run in --save, or start it if there is none. Flags that are not given are those of the
            run. Of the others only save, data, download, efficient, compile, threads, tensorboard and debug may
            differ, and n_epochs may grow. Every further epoch then has the learning rate that it has in a run of the
            new length.
        debug: Show where in the program an error came from.
    """
    flags = _plain(locals())
    processes = current_group()
    check_network(network, depth=depth, growth_rate=growth_rate)
    flags["image_size"] = image_size_of(network, dataset=dataset, image_size=image_size)
    check_training(flags, num_processes=processes.world_size, is_launched=is_launched())
    if line := launcher_warning(os.environ):
        warn(line)
    # Of an older run, what it did not record was as by default; its images had the one size of their data set.
    defaults = command_line.defaults_of(train) | {"image_size": flags["image_size"]}
    with claim(save, flags, processes, defaults=defaults) as folder, processes.watched(), explained(flags, save):
        # From here on the line is known to be good. torch takes seconds to import.
        from data.datasets import DATASETS, validation_size
        from train import runtime
        from train.cpu_contention import watched
        from train.engine import Schedule, fit
        from train.optim import make_optimizer
        from train.replicas import replicate, require_devices
        from train.step import Stepper

        seed = flags["seed"] = processes.on_main(runtime.draw_seed) if seed is None else seed
        spec = DATASETS[dataset]
        flags["augment"] = spec.augment if augment is None else augment
        folder.title = f"{title_of(flags)}, seed {seed}"
        if tensorboard:
            processes.on_main(lambda: folder.writers.append(Events(folder.held).write))
        checkpoint = folder.load(n_epochs=n_epochs)
        if checkpoint.is_finished(n_epochs):
            folder.write_products(checkpoint)
            say(f"The run in {save} is finished after epoch {n_epochs}; test error {checkpoint.test_error:.2%}.")
            return

        runtime.use_threads(threads)
        device = runtime.pick_device(processes)
        runtime.be_deterministic()
        require_devices(device, compile=compile, sync_bn=sync_bn, processes=processes)
        is_new = not checkpoint.epoch
        weights = processes.on_main_only(_first_weights, init_weights, flags) if init_weights and is_new else None
        source, loaders = _read(flags, data, device, processes, goes_on=None if is_new else save)
        flags["valid_size"] = validation_size(source, spec, valid_size)
        runtime.seed_weights(seed)
        model = _build(flags, num_classes=len(source.classes))
        if init_weights and is_new:
            say(processes.on_main(_begin_with, init_weights, weights, model))
            del weights
        model = runtime.placed(model, device)
        optimizer = make_optimizer(model.parameters(), lr=lr, momentum=momentum, wd=wd)
        replicas = replicate(model, device, precision=precision, compile=compile, sync_bn=sync_bn, processes=processes)
        stepper = Stepper(
            replicas.training,
            optimizer,
            runtime.make_scaler(precision, device),
            processes=processes,
            accum_steps=accum_steps,
            label_smoothing=label_smoothing,
        )
        config = _config(flags, model, source, devices=runtime.describe_device(device, processes))
        folder.write_config(config)
        say(f"{folder.title}: {config['parameters']:,} parameters, {config['device']}")
        say(*filter(None, [describe_altered(flags), *source.notes, loaders.describe(limit=limit_batches)]))
        if not is_new:
            say(f"Resuming after epoch {checkpoint.epoch}.")
        schedule = Schedule(n_epochs, lr, lr_schedule, warmup_epochs)
        with watched(device):
            test_error = fit(replicas, stepper, loaders, folder, checkpoint, schedule=schedule, seed=seed)
        say(f"Test error {test_error:.2%} (accuracy {1 - test_error:.2%}); everything is in {save}")


def check(
    *,
    data: Path | None = None,
    dataset: DatasetName = "cifar10",
    download: bool = True,
    debug: bool = False,
) -> None:
    """Read all images of a data set, and say which classes it has and which files are broken.

    Of "folder" every training, validation and test image is decoded; of CIFAR and SVHN the md5 digest of every file is
    verified. A file that cannot be read gets a line on stderr, and the exit code is then 1.

    Args:
        data: Folder of the data set, as in train.
        dataset: As in train.
        download: Fetch missing files of the data set from the network.
        debug: Show where in the program an error came from.
    """
    from data.datasets import load
    from data.verify import describe, unreadable_images

    with explained({}):
        source = load(dataset, folder=data, download=download)
        say(*source.notes, *describe(source))
        broken, every = 0, sum(source.sizes().values())
        for error in unreadable_images(source, bar=Bar):
            say_error(f"error: {error}")
            broken += 1
    if broken:
        raise RunError(f"{broken:,} of {every:,} images cannot be read")
    say(f"All {every:,} images can be read.")


def predict(
    *images: Path,
    save: Path,
    top: Annotated[int, Range(1)] = 1,
    batch_size: BatchSize = 256,
    threads: Threads | None = None,
    csv: Path | None = None,
    debug: bool = False,
) -> None:
    """Say which class each image is of, by the weights of a finished or unfinished run.

    Any picture that Pillow can read will do: it is resized and cropped as the images were that the run is tested on.
    A line is printed for each file, with its path, its class and how sure the network is. A file that is no image gets
    a line on stderr, and the exit code is then 1.

    Args:
        images: Image files, or folders of them.
        save: Folder of the run.
        top: Classes to print for each image, the likeliest first.
        batch_size: Images that go through the network together.
        threads: CPU threads that compute. None: as many as torch takes.
        csv: Also write file, classes and probabilities to this new file.
        debug: Show where in the program an error came from.
    """
    require_new(csv, flag="csv", suffix=".csv")
    run = read_saved_run(save, command=train)
    if top > len(run.classes):
        raise UserError(f"--top is {top}, but the run has {len(run.classes)} classes")
    # From here on the line is known to be good. torch takes seconds to import.
    from commands.predict.predictions import as_csv, predict_files
    from data.datasets import DATASETS
    from data.images import list_images, read_images
    from train import runtime
    from train.cpu_contention import watched
    from train.replicas import replicate

    paths = list_images(images)

    flags = run.flags
    runtime.use_threads(threads)
    runtime.be_deterministic()
    device = runtime.pick_device()
    of_run = {"image_size": flags["image_size"], "mean": run.mean, "std": run.std}
    grey = DATASETS[flags["dataset"]].grey
    with explained({}):
        network = runtime.placed(_network_of(run), device)
    with explained({"batch_size": batch_size}):
        model = replicate(network, device, precision=flags["precision"]).evaluation
        batches = read_images(paths, grey=grey, batch_size=batch_size, device=device, **of_run)
        with watched(device):
            predictions, unreadable = predict_files(model, batches, classes=run.classes, top=top, paths=paths)
    if csv:
        write_new(csv, as_csv(predictions, top=top))
    if unreadable:
        raise RunError(f"{unreadable} of {len(paths)} files could not be read as images")


def benchmark(
    *,
    network: Network = "densenet_bc",
    depth: Depth = 100,
    growth_rate: GrowthRate = 12,
    batch_size: BatchSize = 64,
    image_size: Annotated[int, Range(8, 1024)] | None = None,
    drop_rate: DropRate = 0.0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    memory_format: Literal["channels_last", "contiguous"] = "channels_last",
    threads: Threads | None = None,
    rounds: Annotated[int, Range(0, 1000)] = 5,
    compile: bool = False,
    budget_gb: Annotated[float, Range(0, open_low=True)] | None = None,
    plot: Path | None = None,
    depths: tuple[Depth, ...] | None = None,
    csv: Path | None = None,
    debug: bool = False,
) -> None:
    """Measure memory and time of a training step, of our strategies and of other ways to train the same network.

    Runs on the first visible GPU, or on the CPU if there is none. A step is forward, loss and backward of a made
    batch of 10 classes. Our strategies are compared with torchvision's DenseNet (memory_efficient False and True),
    where it can be the same network, and with a checkpoint around each dense layer and transition. Before anything is
    measured, our strategies must agree with naive in loss, gradients and running statistics; otherwise the exit code is
    1. The defaults take one to two minutes on two CPU cores. There densenet121 and its like need a smaller
    --batch_size.

    Args:
        network: As in train.
        depth: Weighted layers L of the network.
        growth_rate: Channels k that each layer adds.
        batch_size: Images in a step.
        image_size: Height and width of the images. None: 224 for densenet121 and its like, and 32 for others. Above 64,
            densenet_bc and densenet begin as those for ImageNet do.
        drop_rate: Dropout after each 3x3 convolution of a dense layer.
        precision: bf16 and fp16 are autocast. fp16 needs a GPU.
        memory_format: Of all variants; naive is measured in both, and ratios refer to the faster one.
        threads: CPU threads that compute. None: as many as torch takes.
        rounds: How often each variant is timed, at each depth too; they take turns. 0: measure memory only.
        compile: Also measure torch.compile of the naive network with an activation memory budget of one half.
            Compiling takes minutes, and needs a C++ compiler.
        budget_gb: Measure no table, but answer from small measurements what fits into so many GB of 10^9 bytes: which
            strategies, the largest batch for the given network, and the deepest network for the given batch, or which
            of densenet121 and its like if the network is one of them.
        plot: Also measure memory and time against depth, and draw memory into this new file, a PNG. At most 16 images
            are in a step.
        depths: Those in the picture. None: 40, 100, 190 and 250, or 22, 40, 70 and 100 for densenet.
        csv: Also write the table to this new file.
        debug: Show where in the program an error came from.
    """
    check_network(network, depth=depth, growth_rate=growth_rate)
    image_size = image_size_of(network, image_size=image_size)
    depths = depths_of_plot(network, depths=depths, is_drawn=plot is not None)
    require_new(plot, flag="plot", suffix=".png")
    require_new(csv, flag="csv", suffix=".csv")
    if compile:
        require_compiler()
    # From here on the line is known to be good. torch takes seconds to import.
    from commands.benchmark.budget import GB, find_what_fits
    from commands.benchmark.comparison import compare
    from commands.benchmark.depths import draw_depths, measure_by_depth
    from commands.benchmark.step import CLASSES, Case
    from commands.benchmark.variants import all_variants
    from models import STRATEGIES
    from train import runtime
    from train.cpu_contention import watched

    runtime.use_threads(threads)
    runtime.be_deterministic()
    device = runtime.pick_device()
    case = Case(network, depth, growth_rate, batch_size, image_size, drop_rate, precision, device)
    variants = all_variants(
        # Dropout is where torchvision has it.
        lambda strategy, **flags: _build({**flags, "efficient": strategy}, num_classes=CLASSES, drop_where="layers"),
        STRATEGIES,
        network=network,
        memory_format=memory_format,
        with_compile=compile,
    )
    with watched(device):
        if budget_gb is None:
            result = compare(variants, case, rounds=rounds)
        else:
            result = find_what_fits(variants, case, budget=budget_gb * GB)
    print_and_write(result.as_text().split("\n"), {csv: result.as_csv()})
    if plot:
        by_depth = measure_by_depth(variants, case, depths=depths, rounds=rounds)
        print_and_write(["", *by_depth.as_text().split("\n")], {plot: draw_depths(by_depth)})


def evaluate(
    *,
    save: Path,
    data: Path | None = None,
    batch_size: BatchSize = 256,
    threads: Threads | None = None,
    download: bool = True,
    plot: Path | None = None,
    csv: Path | None = None,
    debug: bool = False,
) -> None:
    """Measure the chosen weights of a run on its test images: each class, and which classes are taken for others.

    Network, data set and normalisation are those of the run's config.json. A run that is not finished is measured as
    it stands, and left alone but for the picture confusion.png.

    Args:
        save: Folder of the run.
        data: Folder of the data set. None: the one that the run was given.
        batch_size: Images at a time. It changes memory and speed, and results by rounding only.
        threads: CPU threads that compute. None: as many as torch takes. They change results by rounding only.
        download: Fetch missing files of the data set from the network.
        plot: Draw the confusion matrix into this new file, a PNG. None: into confusion.png of the run, which is written
            anew if it is there.
        csv: Also write a table of the classes to this new file, with the confusion matrix.
        debug: Show where in the program an error came from.
    """
    require_new(plot, flag="plot", suffix=".png")
    require_new(csv, flag="csv", suffix=".csv")
    run = read_saved_run(save, command=train)
    read_logbook(save)  # or it is refused now
    # From here on the line is known to be good. torch takes seconds to import.
    from commands.evaluate.confusion_counts import tally
    from commands.evaluate.plot import CONFUSION, draw_confusion
    from commands.evaluate.report import Evaluation
    from data.datasets import DATASETS, load
    from data.loader import make_test_loader
    from train import runtime
    from train.cpu_contention import watched
    from train.replicas import replicate

    if not plot:
        require_replaceable(save / CONFUSION, instead="plot")
    flags = run.flags
    runtime.use_threads(threads)
    runtime.be_deterministic()
    device = runtime.pick_device()
    where = {"folder": data or flags["data"], "download": download, "image_size": flags["image_size"]}
    with explained({}):
        book, network = read_with_logbook(save, lambda: _network_of(run))
        network = runtime.placed(network, device)
    with explained({"batch_size": batch_size}):
        model = replicate(network, device, precision=flags["precision"]).evaluation
        source = load(flags["dataset"], **where)
        run.require_classes(source.classes)
        test = make_test_loader(source, DATASETS[flags["dataset"]], device, batch_size=batch_size)
        with watched(device):
            sums = tally(model, test, num_classes=len(source.classes))
        evaluation = Evaluation.of(sums, source.classes)

    title = f"{title_of(flags | {'data': where['folder']})}, {book.progress()}"
    lines = [title, evaluation.summary(), book.verdict(evaluation.error), "", *evaluation.as_text().split("\n"), ""]
    print_and_write(lines, {csv: evaluation.as_csv()})
    picture = draw_confusion(evaluation.confusion, source.classes, title=[str(save), title, evaluation.summary()])
    if plot:
        write_new(plot, picture)
        say(f"The matrix is drawn in {plot}.")
    else:
        atomic_write(save / CONFUSION, lambda file: file.write(picture))
        say(f"The matrix is drawn in {save / CONFUSION}; the next evaluation draws it anew.")


def compare(*runs: Path, plot: Path | None = None, csv: Path | None = None, debug: bool = False) -> None:
    """Print runs side by side: how far each is, how good, how fast, and which flags differ.

    Runs may be unfinished, or going on. Nothing is written into them. A folder that cannot be read as a run gets a line
    on stderr, the others are compared, and the exit code is then 1.

    Args:
        runs: Folders of runs. One that is no run itself stands for all runs directly below it.
        plot: Also draw training loss, error and learning rate of all runs into this new file, a PNG.
        csv: Also write the table to this new file, a line for each run.
        debug: Show where in the program an error came from.
    """
    require_new(plot, flag="plot", suffix=".png")
    require_new(csv, flag="csv", suffix=".csv")
    books, errors = read_logbooks(runs)
    table, files = RunsTable(books), {}
    if csv:
        files[csv] = table.as_csv()
    if plot:
        from commands.compare.plot import draw_runs  # matplotlib takes a second to import

        files[plot] = draw_runs(books)
    print_and_write(table.as_text().split("\n"), files)
    if errors:
        for error in errors:
            warn(str(error))
        raise RunError(f"{len(errors)} of {len(books) + len(errors)} folders could not be read as runs")


def export(
    *,
    save: Path,
    format: Literal["torch", "onnx"],
    output: Path | None = None,
    threads: Threads | None = None,
    debug: bool = False,
) -> None:
    """Write the network of a run as one file that needs none of this code: for torch.export, or for ONNX.

    The file takes images: float32 (N, 3, H, W) of the run's size, RGB, pixels from 0 to 1 and not normalised, for any
    number N of them. It returns logits: float32 (N, classes). The normalisation of the run is part of it. The weights
    are those in model.pt, and plain modules run, whatever --efficient was. Before the file gets its name it is read
    back, by ONNX Runtime if it is ONNX, and its logits are compared with the network's own; if they differ by more than
    rounding, the exit code is 1 and there is no file.

    The file also holds texts, each of them JSON: "classes" (names in the order of the logits), "mean", "std",
    "image_size", "preprocessing" (how a picture of any size becomes such an image: the steps of the command predict in
    their order), and "origin" (flags that decide results, versions of packages, git revision; no folders). In an ONNX
    file they are metadata_props; torch.export.load returns them as extra_files, and its result has module() to call.

    Args:
        save: Folder of the run.
        format: torch makes a .pt2 file for torch.export.load, onnx an .onnx file for ONNX Runtime and others. onnx
            needs the packages onnx, onnxscript and onnxruntime.
        output: The new file. None: model.pt2 or model.onnx in the folder of the run. A file that exists is refused.
        threads: CPU threads that compute. None: as many as torch takes.
        debug: Show where in the program an error came from.
    """
    require_packages(format)
    run = read_saved_run(save, command=train)
    output = output or save / f"model{SUFFIXES[format]}"
    require_new(output, flag="output", suffix=SUFFIXES[format])
    # From here on the line is known to be good. torch takes seconds to import.
    from commands.export.network import export_network
    from data.datasets import DATASETS
    from data.images import describe_preparation
    from train import runtime

    flags = run.flags
    runtime.use_threads(threads)
    steps = describe_preparation(image_size=flags["image_size"], grey=DATASETS[flags["dataset"]].grey)
    with explained({}):
        exported = export_network(_network_of(run), run, output, format=format, preprocessing=steps)
    say(*exported.describe())


def _network_of(run: SavedRun) -> "DenseNet":
    """The network of a saved run, with its weights, on the CPU.

    Raises:
        UserError: If model.pt cannot be used, or is of another network than config.json says.
        RunError: If its weights are such that no answer of the network means anything.
    """
    import torch

    from models import fitting_weights, require_finite

    weights, path = run.weights(), run.path / MODEL
    with torch.device("meta"):  # where a network of any size takes no memory
        network = _build(run.flags, num_classes=len(run.classes))
    try:
        weights, counters = fitting_weights(network, weights)
    except ValueError as error:
        raise UserError(f"{path} is of another network than its {CONFIG} says: {error}") from error
    try:
        require_finite(weights)
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {error}") from error
    weights |= dict.fromkeys(counters, torch.zeros((), dtype=torch.int64))
    network.to_empty(device="cpu").load_state_dict(weights)
    return network


def _plain(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as config.json holds them: what other commands read again is found from any folder."""
    return {
        flag: os.path.normpath(value.absolute()) if isinstance(value, Path) else value for flag, value in flags.items()
    }


def _read(
    flags: Mapping[str, Any],
    data: Path | None,
    device: "torch.device",
    processes: ProcessGroup,
    *,
    goes_on: Path | None,
) -> "tuple[Source, Loaders]":
    """The data set of a run, and this process's parts of its batches.

    Args:
        flags: Of the run.
        data: Folder of the data set.
        device: Where batches are wanted.
        processes: The processes of the run.
        goes_on: Folder of the run if it is not a new one.

    Raises:
        DataError: If it cannot be read.
        UserError: If it is not the same in all processes, or not the one that the run began with.
    """
    from data.datasets import load
    from data.verify import verify_held_out

    where = {"folder": data, "download": flags["download"], "image_size": flags["image_size"]}
    source = processes.main_first(lambda: load(flags["dataset"], **where))
    if processes.world_size > 1 and not processes.all_equal(source.digest()):
        raise UserError(
            "the processes of the run do not find the same classes and files in --data; make its copies on all "
            "machines the same, or let the machines share one"
        )
    if goes_on:
        processes.on_main(require_recorded_data, goes_on, classes=source.classes, sizes=source.sizes())
    loaders = processes.main_first(lambda: _loaders(flags, source, device, processes))
    check_last_batch(flags, num_images=loaders.train.num_images, num_processes=processes.world_size)
    if not goes_on:
        verify_held_out([loader for loader in (loaders.valid, loaders.test) if loader], bar=Bar)
    return source, loaders


def _loaders(flags: Mapping[str, Any], source: "Source", device: "torch.device", processes: ProcessGroup) -> "Loaders":
    """This process's parts of the batches of a run."""
    from data.datasets import DATASETS
    from data.loader import make_loaders
    from data.share import Share
    from train.engine import Loaders

    preparation = {name: flags[name] for name in ("batch_size", "valid_size", "augment", "seed")}
    preparation |= {"share": Share(processes.rank, processes.world_size), "limit": flags["limit_batches"]}
    return Loaders(*make_loaders(source, DATASETS[flags["dataset"]], device, **preparation))


def _config(flags: Mapping[str, Any], network: "DenseNet", source: "Source", *, devices: str) -> dict[str, Any]:
    """What config.json says of a run."""
    from data.datasets import DATASETS

    spec = DATASETS[flags["dataset"]]
    return {
        "flags": flags,
        **({"recipe_altered": altered_flags(flags)} if flags["recipe"] else {}),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "classes": source.classes,
        "images": source.sizes(held_out=flags["valid_size"] or 0),
        "mean": spec.mean,
        "std": spec.std,
        "device": devices,
        "versions": versions(),
        "git_revision": git_revision(Path(__file__).parent),
    }


def _build(flags: Mapping[str, Any], *, num_classes: int, drop_where: str = "convolutions") -> "DenseNet":
    """The network of a run, from its flags, with fresh weights and dropout as in the paper, unless told otherwise."""
    from models import IMAGENET_NETWORKS, densenet_bc, densenet_plain

    settings = {"num_classes": num_classes, "drop_rate": flags["drop_rate"], "efficient": flags["efficient"]}
    settings["drop_where"] = drop_where
    if flags["network"] in IMAGENET_NETWORKS:
        return IMAGENET_NETWORKS[flags["network"]].build(**settings)
    build = {"densenet_bc": densenet_bc, "densenet": densenet_plain}[flags["network"]]
    small_inputs = flags["image_size"] <= LARGEST_SMALL_IMAGES
    return build(flags["depth"], flags["growth_rate"], small_inputs=small_inputs, **settings)


def _first_weights(path: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Read the weights that a run begins with; they fit its network, whatever its classes will be.

    Raises:
        UserError: If they are of another network, are not finite, or cannot be read.
    """
    import torch

    from models import fitting_weights, require_finite

    try:
        weights = load_foreign(path)
        with torch.device("meta"):  # where a network of any size takes no memory
            network = _build(flags, num_classes=1)
        require_finite(fitting_weights(network, weights, replace_classifier=True)[0])
    except (ValueError, UserError) as error:
        raise UserError(f"--init_weights {path} cannot be used: {error}") from error
    return weights


def _begin_with(path: Path, weights: Mapping[str, Any], network: "DenseNet") -> str:
    """Put the weights of a file into a network, and say what was done."""
    from models import load_weights, weight_places

    left = load_weights(network, weights, replace_classifier=True)
    taken, *others = (repr(place) for place in weight_places(network, weights))
    where = f" ({taken}, not {' or '.join(others)})" if others else ""
    replaced = any(name.startswith("classifier") for name in left)
    return f"Beginning with the weights in {path}{where}" + (" and a new classifier" if replaced else "")


def main(argv: list[str]) -> None:
    """Run a command line: the words behind the program's name."""
    command, name = "train", NAME
    given: dict[str, Any] = {}
    try:
        with signals.at_once(), connected():
            # One process reads the line: others that found it bad could end all before it has said why.
            command, words = current_group().on_main(command_line.choose, COMMANDS, argv, name=NAME)
            name = NAME if words == argv else f"{NAME} {command}"
            given = current_group().on_main(_bind, command, words, name)
            command_line.call(COMMANDS[command], given)
    except (UserError, RunError, DataError) as error:
        if given.get("debug"):
            _warn_of_traceback()
        command_line.end(f"error: {error}", name=name, exit_code=error.exit_code, is_heard=_is_heard(error))
    except signals.Stopped as stop:
        hint = f"; {_how_to_go_on(given)}" if command == "train" else ""
        command_line.end(f"{stop}{hint}", name=name, exit_code=stop.exit_code, is_heard=current_group().is_main)
    except BrokenPipeError:  # as in `demo.py compare ... | head`
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if not is_of_output(error):
            raise
        command_line.end(f"error: cannot write the output: {error.strerror}", name=name, exit_code=1)


def _bind(command: str, words: list[str], name: str) -> dict[str, Any]:
    """The flags of a command line, with those that other flags stand for."""
    about = {"commands": COMMANDS, "version": lambda: version_line(NAME, Path(__file__).parent)}
    given = command_line.bind(COMMANDS[command], words, name=name, **about)
    require_working_directory()
    given = flags_of_network(given.get("network", "")) | given
    if command != "train":
        if is_launched():
            raise UserError(f"torchrun is for training; start {command} with python")
        return given
    given["save"] = without_links(given["save"])
    if given.get("resume"):
        of_run = _flags_of_run(given["save"])
        open_flags = {flag for flag in CHOSEN_FLAGS if given.get(flag) is None}
        given |= {flag: value for flag, value in of_run.items() if flag not in given or flag in open_flags}
    return (flags_of_recipe(given["recipe"]) if given.get("recipe") else {}) | given


def _flags_of_run(folder: Path) -> dict[str, Any]:
    """All flags of the run in a folder, and none if there is no run; what it does not record was as by default."""
    recorded = recorded_flags(folder)
    try:
        return command_line.defaults_of(train) | command_line.checked(train, recorded) if recorded else {}
    except FireError as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from error


def _is_heard(error: Exception) -> bool:
    """Whether this process prints an error: the first one does, and others those that are theirs alone."""
    return current_group().is_main or not (isinstance(error, UserError) or getattr(error, "in_all_processes", False))


def _how_to_go_on(given: Mapping[str, Any]) -> str:
    """The command line that goes on with a run that was stopped."""
    save = given.get("save")
    if save is None or not (save / CONFIG).exists():
        return "nothing was written"
    line = shlex.join([*launcher(), NAME, f"--save={save}", "--resume=True"])
    return f"{save} stands at the last finished epoch; to go on: {line}"


COMMANDS = {
    "train": train,
    "check": check,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "export": export,
    "benchmark": benchmark,
}


def start(argv: list[str]) -> NoReturn:
    """Run a command line as all that this process does."""
    open_streams()
    signals.begin()
    try:
        main(argv)
    except SystemExit as end:
        leave(end.code)
    except Exception:
        _warn_of_traceback()  # a mistake of this program; Python's own way to end could wait for other processes
        leave(1)
    leave(0)


def _warn_of_traceback() -> None:
    say_error(*traceback.format_exc().rstrip("\n").split("\n"))


if __name__ == "__main__":
    start(sys.argv[1:])
