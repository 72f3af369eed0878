"""The machine and the model, known to be there before anything is loaded, and what they are trained with."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from parts.say import UserError, note, reason


def set_environment(args: Any) -> None:
    """What libraries read of it when they are imported."""
    # Bars have no place in a log; Unsloth's generated code has none in the working directory.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Where CI is set, torch takes the memory planning that Unsloth turns on for an error.
    os.environ.pop("CI", None)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp(prefix="unsloth-"))
    # One process trains on one GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if args.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", UNSLOTH_FORCE_CPU="1")
    # Only --trackio-space sends metrics away: Trackio would follow the environment too.
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        os.environ.pop(name, None)


def find_gpu(args: Any) -> bool:
    """Whether a GPU trains; `UserError` of status 3 where there is none and the CPU was not asked for."""
    import torch

    found = args.device == "auto" and torch.cuda.is_available()
    if not found and (args.device == "auto" or hasattr(args, "image_size")):
        hint = "Use a machine with one, or train a text model with --device cpu: vision models need a GPU."
        raise UserError("no usable CUDA GPU was found here.", hint, status=3)
    return bool(found)


def check_model(model: str, revision: str | None, trusted: bool = False) -> dict[str, Any]:
    """The model's config.json; `UserError` of status 3 where there is none to be read, or it names foreign code."""
    from huggingface_hub import errors, hf_hub_download, list_repo_files

    is_here = Path(model).is_dir()

    def read(name: str) -> dict[str, Any]:
        path = Path(model, name) if is_here else hf_hub_download(model, name, revision=revision)
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return found

    try:
        config = read("config.json")
        files = list_repo_files(model, revision=revision) if trusted and not is_here else []
        configs = {name: read(name) for name in files if "/" not in name and name.endswith("config.json")}
    except errors.GatedRepoError as error:
        hint = f"Accept its terms at https://huggingface.co/{model} with the account of your HF_TOKEN."
        raise UserError(f"{model} is gated and this account has no access.", hint, status=3) from error
    except Exception as error:
        hint = "Check the name, the revision, the token and the network."
        raise UserError(f"the model {model} can't be read ({reason(error)}).", hint, status=3) from error
    # The revision pins the model's own code, and of another repo the newest would be run.
    for name, content in configs.items():
        if "--" in json.dumps(content.get("auto_map")):
            hint = "Copy the code into a repo of your own, beside the model."
            raise UserError(f"{name} of {model} names code of another repo, which nothing pins.", hint, status=3)
    return config


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


def take_peak(peaks: dict[str, float], name: str) -> None:
    """Note under that name the most GPU memory in use since the last call, in GiB."""
    import torch

    if torch.cuda.is_initialized():
        peaks[name] = max(peaks.get(name, 0), torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()


def free() -> None:
    """Give back what nothing holds any more on the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
