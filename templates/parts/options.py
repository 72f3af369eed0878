"""The options as flags: each field of the dataclass is one, and a value that can't work is refused at once."""

from __future__ import annotations

import argparse
import os
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from parts.places import HUB_ID, is_commit
from parts.say import UserError, reason

Chosen = TypeVar("Chosen")
FILE_LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
ADAPTER_THERE = "the adapter is there, and transformers would add it to the merged weights once more"
# Where a value should lie, for those options that the script has.
ABOVE_0 = ("max_steps", "num_train_epochs", "batch_size", "gradient_accumulation", "learning_rate", "logging_steps",
           "eval_steps", "lora_r", "lora_alpha")  # fmt: skip
# More fits neither a seed of NumPy's nor a clock.
LARGEST = 2**32
AT_LEAST = {"eval_rows": 0, "weight_decay": 0, "seed": 0, "sample_rows": 0, "checkpoint_minutes": 0, "timeout_s": 0,
            "warmup_ratio": 0, "lora_dropout": 0, "max_length": 16, "image_size": 28}  # fmt: skip
BELOW_1 = ("warmup_ratio", "lora_dropout")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.", "--help lists every flag.", status=2)


def read_options(kind: type[Chosen], argv: Sequence[str], description: str = "") -> Chosen:
    """What the command line chose, over the defaults of `kind`: `Annotated[TYPE, "help"] = VALUE` declares a flag.

    Flags may be spelled as in Python, --max_steps. Of two stop criteria the one that is given replaces the chosen one;
    only in a Job somebody ends the script after `timeout_s`.
    """
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    hints = get_type_hints(kind, vars(sys.modules[kind.__module__]), include_extras=True)
    for option in fields(kind):  # type: ignore[arg-type]
        declared, told = get_args(hints[option.name])
        help_text = f"{told} [{option.default}]".replace("%", "%%")
        parser.add_argument(f"--{option.name.replace('_', '-')}", help=help_text, **flag_of(declared))
    words = [word.partition("=") for word in argv]
    argv = [(name.replace("_", "-") if name.startswith("--") else name) + eq + value for name, eq, value in words]
    given = vars(parser.parse_args(argv))
    given = {name: tuple(filter(None, value)) if isinstance(value, list) else value for name, value in given.items()}
    if given.get("max_steps") and given.get("num_train_epochs"):
        parser.error("--max-steps and --num-train-epochs both say when to stop: give one of them")
    if given.keys() & {"max_steps", "num_train_epochs"}:
        given = {"max_steps": None, "num_train_epochs": None} | given
    if not os.environ.get("JOB_ID"):
        given = {"timeout_s": 0} | given
    return kind(**given)


def flag_of(declared: Any) -> dict[str, Any]:
    """How argparse reads a value of that type."""
    none: tuple[str, ...] = ()
    if get_origin(declared) in (types.UnionType, Union):
        # `--merge=` leaves away what was chosen, as `--output-repo=` does.
        [declared], none = [one for one in get_args(declared) if one is not type(None)], ("",)
    if declared is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(declared) is tuple:
        return {"action": "append", "choices": (*get_args(get_args(declared)[0]), "")}
    if get_origin(declared) is Literal:
        return {"choices": get_args(declared) + none}
    return {"type": declared}


def refuse(args: Any, name: str, problem: str) -> NoReturn:
    """Raise `UserError` of status 2 for the value of that option."""
    raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: {problem}.", "--help lists every flag.", 2)


def check_options(args: Any) -> None:
    """Refuse what can't work, before anything heavy is imported."""
    for name, value in vars(args).items():
        end = 1 if name in BELOW_1 else LARGEST
        if name in ABOVE_0 and value is not None and not 0 < value < end:
            refuse(args, name, f"should be above 0 and below {end:,}")
        if name in AT_LEAST and value is not None and not AT_LEAST[name] <= value < end:
            refuse(args, name, f"should be at least {AT_LEAST[name]} and below {end:,}")
    for name in ("model", "dataset", "adapter", "output_dir"):
        try:
            Path(getattr(args, name, None) or ".").expanduser().resolve().exists()
        except (OSError, RuntimeError, ValueError) as error:
            refuse(args, name, f"no path that can be looked at ({reason(error)})")
    if args.trust_remote_code and not is_commit(args.revision):
        refuse(args, "revision", "--trust-remote-code needs the 40 digits of the commit that was read")
    if not re.fullmatch(r"\w[\w .-]*", args.run_name):
        refuse(args, "run_name", "should be a name, of letters, digits, '-', '_', '.' and spaces")
    if args.merge == "4bit" and (args.load_in != "4bit" or args.device == "cpu"):
        where = "there are none on a CPU" if args.device == "cpu" else "they come with --load-in 4bit"
        refuse(args, "merge", f"it is made of the 4-bit weights that are trained, and {where}")
    if args.merged_repo and not args.merge:
        refuse(args, "merged_repo", "it says where a merged model goes; add --merge 16bit")
    if args.merged_repo and args.merged_repo in (args.output_repo, getattr(args, "adapter", None)):
        refuse(args, "merged_repo", ADAPTER_THERE)
    for name in ("output_repo", "merged_repo"):
        if getattr(args, name) and not HUB_ID.fullmatch(getattr(args, name)):
            refuse(args, name, "should be NAME or NAMESPACE/NAME")


def check_data(args: Any) -> None:
    """Refuse a model or a dataset that is not there, and a stream without an end."""
    if args.streaming and args.max_steps is None:
        raise UserError("a stream has no known end.", "Add --max-steps N, or --no-streaming.", status=2)
    if args.trust_remote_code and Path(args.model).is_dir():
        refuse(args, "model", "--trust-remote-code needs a Hub repo: a folder has no commit to pin")
    if args.model.startswith((".", "/", "~")) and not Path(args.model).is_dir():
        refuse(args, "model", "there is no such folder")
    dataset = Path(args.dataset).expanduser()
    is_path = args.dataset.startswith((".", "/", "~")) or dataset.suffix in FILE_LOADERS
    if is_path and not dataset.exists():
        refuse(args, "dataset", "there is no such file or folder")
    if dataset.is_file() and dataset.suffix not in FILE_LOADERS:
        refuse(args, "dataset", f"a file should end in {', '.join(FILE_LOADERS)}")
