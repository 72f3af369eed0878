"""What may be asked for: every option of a run, declared once, validated once.

The command line, `--config run.toml` and the tests all build a `RunSpec`; the CLI derives its options from these
fields. A field that is `None` was not asked for: the planner decides it and says why.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from launcher.errors import RequestError, from_validation
from launcher.text import check_text, is_secret_name

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A whole commit hash, as the Hub shows it."""

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}")
# Of git's own rules for a branch or a tag, what the Hub takes; a revision becomes a part of URLs and of cache folders.
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_LONGEST_PART = 255
REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_REPO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,100}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_LONGEST_S = 366 * 86400
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_HOURS = 24
"""A bare number up to which a timeout was meant in hours, if not in minutes."""

MODEL, DATA, TRAINING, LORA, OUTPUT, MACHINE = "Model", "Data", "Training", "LoRA", "Output", "Machine"


# Which scripts have an option too.
TEXT, VISION, EXPORT = "text", "vision", "export"
TRAINING_SCRIPTS, SCRIPTS = (TEXT, VISION), (TEXT, VISION, EXPORT)


def _option(
    help: str, panel: str, *, default: Any = None, short: str | None = None, scripts: tuple[str, ...] = (),
    open: bool = False, **limits: Any,
) -> Any:  # fmt: skip
    """A field with what the command line shows: help text, panel and one-letter form.

    `scripts` are those that have it as a flag too; there it may be None where it is `open`.
    """
    extra: dict[str, Any] = {"panel": panel, "short": short, "scripts": list(scripts), "open": open}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def seconds(text: str) -> int:
    """Seconds of a duration written as the Jobs command line takes it, but never without its unit: `90m`, `1.5h`."""
    text = text.strip()
    if text.isdecimal() and text.isascii():  # the service takes it for seconds, and hardly anybody means them
        units = "h or m" if float(text) <= _MOST_HOURS else "m or s"
        one, other = (f"{text[:20]}{unit}" for unit in units.split(" or "))
        raise ValueError(f"a number without its unit: write {one} or {other}")
    match = _DURATION.fullmatch(text)
    value = float(match[1]) * _UNIT_SECONDS[match[2]] if match else 0.0
    if not 1 <= value <= _LONGEST_S:
        raise ValueError("should be a number with s, m, h or d behind it, such as 90m or 2h; at most a year")
    return round(value)


def _check_duration(text: str) -> str:
    seconds(text)
    return text


def _check_output_repo(name: str) -> str:
    if not (REPO_ID.fullmatch(name) or _REPO_NAME.fullmatch(name)) or "--" in name or ".." in name:
        raise ValueError("should be NAME or NAMESPACE/NAME, of letters, digits, '-', '_' and '.', without '--' or '..'")
    return name


def check_merged_repo(merged: str | None, *others: str | None) -> None:
    """Raise `ValueError` where the merged model would go into a repo that the adapter is in, or goes to.

    Whoever loads that repo gets the adapter applied to weights that hold it already.
    """
    if merged and merged.casefold() in {name.casefold() for name in others if name}:
        raise ValueError(
            f"--merged-repo {merged} is the adapter's repo, and the adapter would be applied to weights that hold it "
            "already: give another name, or leave it away for merged/ in the output repo"
        )


def require_apart(merged: str | None, *others: str | None) -> None:
    """The same as a `RequestError`, for names that were resolved after the options were read."""
    try:
        check_merged_repo(merged, *others)
    except ValueError as error:
        raise RequestError(f"{error}.", "Such as --merged-repo NAME-merged.") from error


def _check_revision(name: str) -> str:
    if not _REVISION.fullmatch(name) or ".." in name:
        raise ValueError("should be a branch, a tag or a commit: letters, digits, '.', '-', '_', '+' and '/'")
    return name


def _check_part(name: str) -> str:
    if "/" in name or "\\" in name or name.strip(".") == "":
        raise ValueError("should be a name, not a path")
    return name


def _check_name(name: str) -> str:
    if not _REPO_NAME.fullmatch(name) or ".." in name:
        raise ValueError("should be letters, digits, '-', '_' and '.', beginning with a letter or digit")
    return name


def _check_image(name: str) -> str:
    if not _IMAGE.fullmatch(name) or ".." in name:
        raise ValueError("should be an image such as ghcr.io/astral-sh/uv:python3.12-bookworm")
    return name


def check_place(name: str) -> str:
    """A model or a dataset may be a path: one that the system can look at."""
    if any(len(part.encode()) > _LONGEST_PART for part in name.split("/")):
        raise ValueError(f"a name between two slashes should be at most {_LONGEST_PART} bytes long")
    try:
        Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError("there is no user of that name here") from error
    return name


def path_of(name: str) -> Path | None:
    """The path that the name of a model or a dataset is; none for that of a repo, whatever lies here under that name.

    A path begins with `.`, `/` or `~`, ends like a data file, or has a form that no repo has.
    """
    path = Path(name).expanduser()
    if name.startswith((".", "/", "~")) or path.suffix in DATA_SUFFIXES:
        return path
    return None if REPO_ID.fullmatch(name) or _REPO_NAME.fullmatch(name) else path


Gguf = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
Duration = Annotated[str, AfterValidator(_check_duration)]
RepoName = Annotated[str, AfterValidator(_check_output_repo)]
Revision = Annotated[str, AfterValidator(_check_revision)]
Part = Annotated[str, AfterValidator(_check_part)]
Name = Annotated[str, AfterValidator(_check_name)]
Image = Annotated[str, AfterValidator(_check_image)]
Place = Annotated[str, AfterValidator(check_place)]


class RunSpec(BaseModel):
    """One request, exactly as it was asked; raises `pydantic.ValidationError` for a value that can't be meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)

    model: Place = _option(
        "Alias (`launch models`), Hub repo id or local folder.", MODEL, default=..., short="-m", scripts=SCRIPTS
    )
    revision: Revision | None = _option("Branch, tag or commit of the model.", MODEL, scripts=SCRIPTS, open=True)
    modality: Literal["text", "vision"] | None = _option("Where a model can do both.", MODEL)
    load_in: Literal["auto", "4bit", "16bit"] = _option(
        "Precision of the frozen weights.", MODEL, default="auto", scripts=SCRIPTS
    )
    engine: Literal["unsloth", "trl"] = _option("trl is for comparing estimates only.", MODEL, default="unsloth")
    trust_remote_code: bool = _option(
        "Run the Python of the model's repo; only with --revision as a whole commit hash.",
        MODEL,
        default=False,
        scripts=SCRIPTS,
    )
    chat_template: Name | None = _option(
        "Unsloth template name, for models that bring none.", MODEL, scripts=TRAINING_SCRIPTS, open=True
    )

    dataset: Place | None = _option(
        "Hub dataset, or a json, jsonl, csv or parquet file.", DATA, scripts=TRAINING_SCRIPTS
    )
    dataset_config: Part | None = _option(
        "Configuration (subset) of the dataset.", DATA, scripts=TRAINING_SCRIPTS, open=True
    )
    dataset_split: Part = _option("Split to train on.", DATA, default="train", scripts=TRAINING_SCRIPTS)
    dataset_revision: Revision | None = _option(
        "Branch, tag or commit of the dataset.", DATA, scripts=TRAINING_SCRIPTS, open=True
    )
    dataset_rows: int | None = _option("Rows in the dataset, where it can't be looked up.", DATA, gt=0, le=10**12)
    eval_split: Part | None = _option("Split to evaluate on.", DATA, scripts=TRAINING_SCRIPTS, open=True)
    eval_rows: int | None = _option(
        "Rows held out for evaluation (0: none; else 64, at most a tenth).", DATA, ge=0, le=100_000,
        scripts=TRAINING_SCRIPTS, open=True
    )  # fmt: skip
    streaming: bool | None = _option("Read the dataset as a stream; needs --max-steps.", DATA, scripts=TRAINING_SCRIPTS)
    train_on: Literal["assistant", "all"] = _option(
        "Tokens that count in the loss.", DATA, default="assistant", scripts=TRAINING_SCRIPTS
    )

    image_size: int | None = _option(
        "Longest side of an image in pixels; larger ones are shrunk.", DATA, ge=28, le=8192, scripts=(VISION,)
    )

    max_steps: int | None = _option(
        "Optimizer steps.", TRAINING, gt=0, le=10_000_000, scripts=TRAINING_SCRIPTS, open=True
    )
    num_train_epochs: float | None = _option(
        "Passes over the dataset.", TRAINING, gt=0, le=1000, scripts=TRAINING_SCRIPTS, open=True
    )
    max_length: int | None = _option(
        "Tokens per row; longer rows are cut.", TRAINING, ge=16, le=1_048_576, scripts=TRAINING_SCRIPTS
    )
    batch_size: int | None = _option(
        "Rows per GPU and forward pass.", TRAINING, gt=0, le=4096, scripts=TRAINING_SCRIPTS
    )
    gradient_accumulation: int | None = _option(
        "Forward passes per optimizer step.", TRAINING, gt=0, le=65536, scripts=TRAINING_SCRIPTS
    )
    effective_batch_size: int | None = _option("Rows per optimizer step over all GPUs.", TRAINING, gt=0, le=65536)
    packing: bool | None = _option("Fill each row up to --max-length with several examples.", TRAINING, scripts=(TEXT,))
    learning_rate: float = _option("Peak learning rate.", TRAINING, default=2e-4, gt=0, le=1, scripts=TRAINING_SCRIPTS)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = _option(
        "Learning-rate schedule.", TRAINING, default="linear", scripts=TRAINING_SCRIPTS)  # fmt: skip
    warmup_ratio: float = _option(
        "Share of the steps spent warming up.", TRAINING, default=0.03, ge=0, lt=1, scripts=TRAINING_SCRIPTS
    )
    weight_decay: float = _option("Weight decay.", TRAINING, default=0.01, ge=0, le=10, scripts=TRAINING_SCRIPTS)
    optim: Literal["adamw_8bit", "adamw_torch", "paged_adamw_8bit"] = _option(
        "Optimizer.", TRAINING, default="adamw_8bit", scripts=TRAINING_SCRIPTS)  # fmt: skip
    seed: int = _option(
        "Seed of the data order and the adapter.", TRAINING, default=3407, ge=0, lt=2**32, scripts=TRAINING_SCRIPTS
    )
    logging_steps: int = _option("Steps between two loss lines.", TRAINING, default=1, gt=0, le=10_000_000,
                                 scripts=TRAINING_SCRIPTS)  # fmt: skip
    eval_steps: int | None = _option(
        "Steps between evaluations (else only at the end).",
        TRAINING,
        gt=0,
        le=10_000_000,
        scripts=TRAINING_SCRIPTS,
        open=True,
    )
    checkpoint_minutes: float = _option(
        "Minutes between two checkpoints (0: none).", TRAINING, default=10.0, ge=0, le=1440, scripts=TRAINING_SCRIPTS
    )

    lora_r: int = _option("Rank.", LORA, default=16, gt=0, le=1024, scripts=TRAINING_SCRIPTS)
    lora_alpha: int | None = _option("Scale; the rank where not given.", LORA, gt=0, le=4096, scripts=TRAINING_SCRIPTS)
    lora_dropout: float = _option("Dropout.", LORA, default=0.0, ge=0, lt=1, scripts=TRAINING_SCRIPTS)

    finetune_vision_layers: bool = _option(
        "Vision models: adapt the layers that see.", LORA, default=True, scripts=(VISION,)
    )
    finetune_language_layers: bool = _option(
        "Vision models: adapt the language model.", LORA, default=True, scripts=(VISION,)
    )
    finetune_attention_modules: bool = _option(
        "Vision models: adapt the attention.", LORA, default=True, scripts=(VISION,)
    )
    finetune_mlp_modules: bool = _option("Vision models: adapt the MLPs.", LORA, default=True, scripts=(VISION,))

    output_repo: RepoName | None = _option(
        "Where the result is pushed, NAME or NAMESPACE/NAME.", OUTPUT, scripts=SCRIPTS, open=True
    )
    push: bool = _option("Push the result to the Hub.", OUTPUT, default=True)
    private: bool | None = _option(
        "Create the output repo as private; so it is where the data is from here, or private.", OUTPUT, scripts=SCRIPTS
    )
    overwrite: bool = _option("Push into a repo that holds the model of another run.", OUTPUT, default=False)
    merge: Literal["16bit", "4bit"] | None = _option(
        "Merge the adapter into the model, as a copy of its own.", OUTPUT, scripts=SCRIPTS, open=True
    )
    merged_repo: RepoName | None = _option(
        "Where the merged model is pushed (else merged/ in the repo).", OUTPUT, scripts=SCRIPTS, open=True
    )
    gguf: tuple[Gguf, ...] = _option("Export as a GGUF file of that type, such as q4_k_m; may be repeated.", OUTPUT,
                                     default=(), scripts=SCRIPTS)  # fmt: skip
    run_name: Name | None = _option("Name of the run.", OUTPUT, max_length=96, scripts=SCRIPTS)
    sample_rows: int = _option(
        "Evaluation rows answered before and after training.", OUTPUT, default=0, ge=0, le=20, scripts=TRAINING_SCRIPTS
    )
    trackio_project: Part | None = _option(
        "Trackio project.", OUTPUT, max_length=96, scripts=TRAINING_SCRIPTS, open=True
    )
    trackio_space: str | None = _option(
        "Space that shows the metrics, USER/NAME.", OUTPUT, scripts=TRAINING_SCRIPTS, open=True
    )

    flavor: str = _option("Jobs flavor (`launch flavors`), or auto.", MACHINE, default="auto")
    prefer: Literal["cheap", "fast"] = _option(
        "Where the flavor is chosen: by price or by time.", MACHINE, default="cheap"
    )
    max_cost: float | None = _option("Most dollars the run may cost, timeout included.", MACHINE, gt=0, le=1e6)
    timeout: Duration | None = _option("When the Job is killed, such as 90m or 2h.", MACHINE)
    attempts: int = _option(
        "How often a failed Job is started, from its last checkpoint on.", MACHINE, default=2, ge=1, le=10
    )
    namespace: Name | None = _option("User or organisation that pays.", MACHINE)
    image: Image | None = _option("Container image with uv.", MACHINE)
    label: dict[str, str] = _option("Label of the Job, KEY=VALUE.", MACHINE, default={}, short="-l")
    env: dict[str, str] = _option("Environment variable, KEY=VALUE.", MACHINE, default={}, short="-e")
    secrets: tuple[str, ...] = _option("Secret sent encrypted: NAME, its value taken from here.", MACHINE, default=(),
                                       short="-s")  # fmt: skip
    local: bool = _option("Run here, not on Jobs.", MACHINE, default=False)

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: object, info: ValidationInfo) -> object:
        """No option holds a secret, and but for the values of variables none holds what can't be seen."""
        check_text(value, free=info.field_name == "env")
        return value

    @field_validator("timeout", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """A file may hold a number, which is judged as it would be on the command line."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("trackio_space")
    @classmethod
    def _full_repo_id(cls, name: str | None) -> str | None:
        if name is not None and not REPO_ID.fullmatch(name):
            raise ValueError("should be NAMESPACE/NAME")
        return name

    @field_validator("label")
    @classmethod
    def _label_letters(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not (_LABEL.fullmatch(key) and _LABEL.fullmatch(value)):
                raise ValueError(
                    f"key and value of {key[:40]!r} should be 1 to 100 characters: letters, digits, '.', '-' and '_'"
                )
        return labels

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not _ENV_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
            if is_secret_name(name):
                raise ValueError(f"{name} looks like a secret and env is visible: pass it as --secrets {name}")
        return env

    @field_validator("secrets")
    @classmethod
    def _secret_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _ENV_NAME.fullmatch(name):
                raise ValueError("give the secret's name only; its value is read from the environment")
        return names

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.streaming and self.max_steps is None:
            raise ValueError("--streaming has no known end, so it needs --max-steps")
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise ValueError("--max-steps and --num-train-epochs both say when to stop: give one of them")
        if self.batch_size and self.gradient_accumulation and self.effective_batch_size:
            raise ValueError("--batch-size, --gradient-accumulation and --effective-batch-size: give at most two")
        if not (self.finetune_vision_layers or self.finetune_language_layers):
            raise ValueError("--no-finetune-vision-layers and --no-finetune-language-layers leave nothing to train")
        if not (self.finetune_attention_modules or self.finetune_mlp_modules):
            raise ValueError("--no-finetune-attention-modules and --no-finetune-mlp-modules leave nothing to train")
        if self.trust_remote_code and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                "--trust-remote-code runs whatever Python lies in the model's repo: pin what you have read with "
                "--revision and the 40 hexadecimal digits of its commit"
            )
        if self.trust_remote_code and self.model.startswith((".", "/", "~")):
            raise ValueError("--trust-remote-code: a folder has no commit to pin; name a Hub repo")
        if self.output_repo and not self.push:
            raise ValueError("--output-repo and --no-push contradict each other")
        if self.merged_repo and not self.push:
            raise ValueError("--merged-repo and --no-push contradict each other")
        if self.merged_repo and not self.merge:
            raise ValueError("--merged-repo says where a merged model goes: add --merge 16bit")
        check_merged_repo(self.merged_repo, self.output_repo)
        return self


def build(options: dict[str, Any], config: Path | None = None) -> RunSpec:
    """The spec of a command line over a TOML file; what the command line names wins.

    `options` holds only what was given. Raises `RequestError` for an unreadable file or any bad value.
    """
    asked, lines = _read_config(config) if config else ({}, {})
    for name, value in options.items():
        merged = {**asked[name], **value} if isinstance(value, dict) and isinstance(asked.get(name), dict) else value
        asked[name] = merged
        lines.pop(name, None)  # said on the command line
    if "model" not in asked:
        raise RequestError("no model was named.", "Try `launch --model qwen3-8b`; `launch models` lists the aliases.")
    try:
        return RunSpec.model_validate(asked)
    except ValidationError as error:
        known = from_validation(error)
        found = [str(item["loc"][0]) for item in error.errors() if item["loc"]]
        places = dict.fromkeys(f"line {lines[name]}" for name in found if lines.get(name))
        where = f"{config}, {' and '.join(places)}: " if places else f"{config}: " if lines.keys() & {*found} else ""
        raise RequestError(where + known.message, known.hint) from error


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The options in a TOML file, a text where a list is meant too, and the line that each begins on (0: not found)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text)
    except OSError as error:
        raise RequestError(f"--config {path}: {error.strerror or error}.", "Give the path of a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--config {path} is not TOML: {error}.", 'One option a line, such as model = "qwen3-8b".'
        ) from error
    asked, lines = {}, {}
    for key, value in content.items():
        name = key.replace("-", "_")
        listed = name in RunSpec.model_fields and isinstance(RunSpec.model_fields[name].default, tuple)
        asked[name] = (value,) if listed and isinstance(value, str) else value
        at = re.search(rf"""^[ \t]*(?:\[[ \t]*)?["']?{re.escape(key)}["']?[ \t]*[=.\]]""", text, re.MULTILINE)
        lines[name] = text.count("\n", 0, at.start()) + 1 if at else 0
    return asked, lines


_EXPORT_EXAMPLE = (
    "Such as `launch export RUN --merge 16bit`, or `--gguf q4_k_m`; both may be given, --gguf several times."
)


class ExportSpec(BaseModel):
    """What may be asked of `launch export`; None was not asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Place
    revision: Revision | None = None
    merge: Literal["16bit", "4bit"] | None = None
    gguf: tuple[Gguf, ...] = ()
    merged_repo: RepoName | None = None
    output_repo: RepoName | None = None
    private: bool | None = None
    overwrite: bool = False
    flavor: str = "auto"
    timeout: Duration | None = None
    image: Image | None = None
    local: bool = False

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: object) -> object:
        check_text(value)
        return value

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.merged_repo and not self.merge:
            raise ValueError("--merged-repo says where a merged model goes: add --merge 16bit")
        check_merged_repo(self.merged_repo, self.output_repo)
        if self.local and self.flavor != "auto":
            raise ValueError("--flavor is a Job's machine, and --local runs on this one: give one of them")
        return self


def build_export(**options: Any) -> ExportSpec:
    """The spec of a command line; `RequestError` where a value is wrong or nothing is asked for."""
    try:
        asked = ExportSpec.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise from_validation(error) from error
    if not (asked.merge or asked.gguf):
        raise RequestError(
            f"there is nothing to make of {asked.source}: neither --merge nor --gguf is given.", _EXPORT_EXAMPLE
        )
    return asked
