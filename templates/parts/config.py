"""The trainer's settings, and the tracker of its metrics."""

from __future__ import annotations

import os
from typing import Any

from parts.say import note


def make_config(run: Any, on_gpu: bool, evaluates: bool, **more: Any) -> Any:
    """What both kinds of model are trained with; `more` is of one kind."""
    from trl import SFTConfig
    from unsloth import is_bfloat16_supported

    args = run.args
    return SFTConfig(
        output_dir=str(run.checkpoints.folder),
        max_steps=args.max_steps or -1,
        num_train_epochs=args.num_train_epochs or 1,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        gradient_checkpointing=on_gpu,
        # Evaluation must fit wherever training did.
        per_device_eval_batch_size=min(args.batch_size, 2),
        prediction_loss_only=True,
        eval_strategy="steps" if evaluates and args.eval_steps else "no",
        eval_steps=args.eval_steps,
        max_length=args.max_length,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.warmup_ratio,
        weight_decay=args.weight_decay,
        optim=args.optim if on_gpu else "adamw_torch",
        bf16=on_gpu and is_bfloat16_supported(),
        fp16=on_gpu and not is_bfloat16_supported(),
        use_cpu=not on_gpu,
        seed=args.seed,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        # The guard does it, and outlives a disk that is full.
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        **more,
    )


def open_tracker(run: Any) -> None:
    """Give the run its tracker, or none: a dashboard that can't be reached must not cost the training."""
    if not run.args.trackio_project:
        return
    import trackio

    try:
        run.tracker = trackio.init(
            run.args.trackio_project,
            run.args.run_name,
            space_id=run.args.trackio_space,
            config=vars(run.args),
            resume="allow" if run.checkpoints.found or os.environ.get("LAUNCH_STARTED") else "never",
        )
    except Exception as error:
        note(f"trackio is off, the run goes on without it ({type(error).__name__}: {error})")
