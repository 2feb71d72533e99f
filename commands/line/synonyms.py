"""Names of flags in other programs, for the hint that follows an unknown flag."""

from collections.abc import Iterable

# Names in other programs, by our flag. A name may stand for several flags; the first one that a command has is meant.
NAMES = {
    "output": "out out_file output_file",
    "csv": "output out out_file output_file",
    "save": "output out output_dir out_dir outdir save_dir save_path log_dir logdir work_dir run_dir",
    "data": "data_dir datadir data_path data_root dataroot dataset_dir dataset_path root",
    "image_size": "img_size imgsz img input_size resolution crop_size",
    "network": "arch architecture model model_name net",
    "depth": "layers num_layers n_layers",
    "growth_rate": "growth k",
    "efficient": "memory_efficient grad_checkpointing gradient_checkpointing recompute",
    "drop_rate": "dropout drop",
    "init_weights": "pretrained weights finetune initial_checkpoint",
    "n_epochs": "epochs epoch num_epochs max_epochs total_epochs",
    "batch_size": "batch bs b batchsize train_batch_size",
    "accum_steps": "grad_accum grad_accum_steps gradient_accumulation_steps accumulate_grad_batches accumulation_steps",
    "lr": "learning_rate base_lr initial_lr init_lr",
    "lr_schedule": "scheduler lr_scheduler sched schedule",
    "lr_milestones": "milestones lr_steps decay_milestones",
    "lr_factor": "gamma lr_gamma lr_decay decay_rate",
    "warmup_epochs": "warmup lr_warmup_epochs",
    "wd": "weight_decay decay l2",
    "decay_norms": "norm_weight_decay",
    "clip_grad": "clip clip_grad_norm max_norm max_grad_norm grad_clip gradient_clip_val",
    "ema": "model_ema model_ema_decay ema_decay",
    "label_smoothing": "smoothing",
    "mixup": "mixup_alpha mix_up",
    "cutmix": "cutmix_alpha cut_mix",
    "trivial_augment": "trivialaugment ta auto_augment autoaugment aa",
    "erasing": "random_erasing random_erase reprob",
    "cutout": "cutout_length cutout_size",
    "augment": "augmentation aug data_augmentation",
    "valid_size": "val_size validation_size val_split validation_split",
    "precision": "allow_tf32 amp dtype mixed_precision fp16 bf16 half use_amp autocast",
    "sync_bn": "syncbn sync_batchnorm",
    "limit_batches": "max_batches limit_train_batches dry_run fast_dev_run",
    "seed": "random_seed manual_seed random_state",
    "seeds": "num_seeds n_seeds num_runs n_runs repeats n_repeats",
    "tensorboard": "tb use_tensorboard",
    "resume": "continue auto_resume",
    "threads": "num_threads cpu_threads",
    "top": "topk top_k k",
}

# Names for which this program has no flag, and the way to do it without one.
WITHOUT_FLAG = {
    "device devices gpu gpus gpu_id gpu_ids cuda no_cuda cpu accelerator": (
        "the variable CUDA_VISIBLE_DEVICES chooses the GPUs; if it is empty, the CPU is used"
    ),
    "opt optim optimizer nesterov": "the optimizer is SGD with Nesterov momentum; --lr, --momentum and --wd set it",
    "workers num_workers": "as many threads read images as there are CPUs for this process",
}


def hint(name: str, flags: Iterable[str]) -> str:
    """Suggest the flag that does the same as a flag of another program, or another way; empty if none is known.

    Args:
        name: The unknown flag, without dashes and in lower case with underscores.
        flags: Names of the command's flags.
    """
    known = {*flags}
    for flag, names in NAMES.items():
        if flag in known and name in names.split():
            return f"; did you mean --{flag}?"
    return next((f"; {advice}" for names, advice in WITHOUT_FLAG.items() if name in names.split()), "")
