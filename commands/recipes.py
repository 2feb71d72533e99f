"""Recipes as settings: one for each cell of the paper's table that has a figure, and a modern one.

A cell is named by its network and its data, as in "densenet-bc-100-12-c10+". The plus sign stands for augmentation.
"modern" alone leaves network and data to other flags; "modern-densenet-bc-100-12-c10+" is the cell with it.

References:
    Huang et al., Densely Connected Convolutional Networks, 2017 (arXiv:1608.06993v5), section 4.2 and table 2.
    Vryniotis, How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives, 2021
    (pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives): the modern recipe. Its
    TrivialAugment is left out: small networks underfit small images with it.
"""

from collections.abc import Mapping
from typing import Any

from commands.tables import plain

# Settings of every cell. The program always uses Nesterov momentum without dampening.
COMMON = {"batch_size": 64, "accum_steps": 1, "precision": "fp32", "init_weights": None, "limit_batches": None}
COMMON |= {"mixup": 0.0, "cutmix": 0.0, "trivial_augment": False, "erasing": 0.0, "cutout": 0, "crop_border": "mean"}
COMMON |= {"lr": 0.1, "lr_schedule": "step", "warmup_epochs": 0, "momentum": 0.9, "wd": 1e-4, "label_smoothing": 0.0}
COMMON |= {"lr_milestones": "0.5,0.75", "lr_factor": 0.1, "decay_norms": True, "clip_grad": None, "ema": 0.0}

NETWORKS: dict[str, dict[str, Any]] = {
    "densenet-40-12": {"network": "densenet", "depth": 40, "growth_rate": 12},
    "densenet-100-12": {"network": "densenet", "depth": 100, "growth_rate": 12},
    "densenet-100-24": {"network": "densenet", "depth": 100, "growth_rate": 24},
    "densenet-bc-100-12": {"network": "densenet_bc", "depth": 100, "growth_rate": 12},
    "densenet-bc-250-24": {"network": "densenet_bc", "depth": 250, "growth_rate": 24},
    "densenet-bc-190-40": {"network": "densenet_bc", "depth": 190, "growth_rate": 40},
}

# The final runs on CIFAR train on all 50,000 images and count the error at the end. On SVHN 6,000 images are held out
# to choose the epoch. Dropout is used where there is no augmentation.
_CIFAR = {"n_epochs": 300, "valid_size": 0}
_PLAIN = {"augment": False, "drop_rate": 0.2}
_AUGMENTED = {"augment": True, "drop_rate": 0.0}
COLUMNS: dict[str, dict[str, Any]] = {
    "c10": {"dataset": "cifar10", **_CIFAR, **_PLAIN},
    "c10+": {"dataset": "cifar10", **_CIFAR, **_AUGMENTED},
    "c100": {"dataset": "cifar100", **_CIFAR, **_PLAIN},
    "c100+": {"dataset": "cifar100", **_CIFAR, **_AUGMENTED},
    "svhn": {"dataset": "svhn", "n_epochs": 40, "valid_size": 6000, **_PLAIN},
}

# Test error in percent, by network and in the order of the columns; None where the paper has no figure.
ERRORS: dict[str, tuple[float | None, ...]] = {
    "densenet-40-12": (7.00, 5.24, 27.55, 24.42, 1.79),
    "densenet-100-12": (5.77, 4.10, 23.79, 20.20, 1.67),
    "densenet-100-24": (5.83, 3.74, 23.42, 19.25, 1.59),
    "densenet-bc-100-12": (5.92, 4.51, 24.15, 22.27, 1.76),
    "densenet-bc-250-24": (5.19, 3.62, 19.64, 17.60, 1.74),
    "densenet-bc-190-40": (None, 3.46, None, 17.18, None),
}

PAPER: dict[str, float] = {
    f"{network}-{column}": error
    for network, errors in ERRORS.items()
    for column, error in zip(COLUMNS, errors, strict=True)
    if error is not None
}

# Learning rate, weight decay and the number of epochs depend on network and data, and are left alone.
MODERN: dict[str, Any] = {"lr_schedule": "cosine", "warmup_epochs": 5, "label_smoothing": 0.1}
MODERN |= {name: COMMON[name] for name in ("lr_milestones", "lr_factor")}  # which a cosine does not use
MODERN |= {"mixup": 0.2, "cutmix": 1.0, "erasing": 0.1, "ema": 0.999, "decay_norms": False}

RECIPES = (*PAPER, "modern", *(f"modern-{cell}" for cell in PAPER if cell.endswith("+")))

# Allowed recipes, in words for a user.
RULE = (
    f"a network ({' | '.join(NETWORKS)}) and its data ({' | '.join(COLUMNS)}), as in densenet-bc-100-12-c10+, or "
    '"modern", alone or as in modern-densenet-bc-100-12-c10+'
)


def flags_of_recipe(recipe: str) -> dict[str, Any]:
    """The flags that a recipe stands for."""
    first, _, cell = recipe.partition("-")
    if first == "modern":
        return {**(flags_of_recipe(cell) if cell else {}), **MODERN}
    network, _, column = recipe.rpartition("-")
    return {**COMMON, **NETWORKS[network], **COLUMNS[column]}


def altered_flags(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Compare the flags of a run with its recipe.

    Args:
        flags: Plain values of the run by name, as config.json has them. A missing flag counts as unchanged.

    Returns:
        For each flag that differs, its values in "recipe" and "run". Empty if the run has no recipe, or one that does
        not exist.
    """
    recipe = flags.get("recipe")
    of_recipe = flags_of_recipe(recipe) if isinstance(recipe, str) and recipe in RECIPES else {}
    return {
        flag: {"recipe": value, "run": flags[flag]}
        for flag, value in of_recipe.items()
        if flags.get(flag, value) != value
    }


def describe_altered(flags: Mapping[str, Any]) -> str | None:
    """A line with the flags of a run that differ from its recipe; None if there are none, or no recipe."""
    altered = [
        f"--{flag} {plain(values['run'])} (recipe: {values['recipe']})" for flag, values in altered_flags(flags).items()
    ]
    return f"--recipe {flags['recipe']}: altered by {', '.join(altered)}" if altered else None
