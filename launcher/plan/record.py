"""The record of a run: every decision, frozen and JSON-serialisable."""

from __future__ import annotations

from typing import Literal

from launcher.estimate.values import Cost, Duration, Host, Offer, Value, Vram


class Plan(Value):
    """Every decision of one run. It is the record: nothing else is needed to run it again."""

    # what is done: fine-tune a model, or export an adapter that was trained before
    task: Literal["sft", "export"] = "sft"
    adapter: str | None = None
    adapter_revision: str | None = None

    launcher: str | None = None
    """The version of the launcher that made it."""

    # what is trained
    model: str
    repo: str
    revision: str | None
    modality: Literal["text", "vision"]
    engine: Literal["unsloth", "trl"]
    load_in: Literal["4bit", "16bit"]
    chat_template: str | None
    generation: dict[str, float] = {}  # noqa: RUF012
    generation_source: str | None = None
    licence: str | None = None
    licence_name: str | None = None
    """With `licence_link` what the model's card says of a licence that the Hub knows as `other`."""
    licence_link: str | None = None

    # on what
    dataset: str
    dataset_config: str | None
    dataset_split: str
    dataset_revision: str | None
    eval_split: str | None
    eval_rows: int
    streaming: bool
    train_on: Literal["assistant", "all"]
    image_size: int | None = None

    # how
    max_steps: int | None
    num_train_epochs: float | None
    max_length: int
    batch_size: int
    gradient_accumulation: int
    packing: bool
    learning_rate: float
    lr_scheduler_type: str
    warmup_ratio: float
    weight_decay: float
    optim: str
    seed: int
    logging_steps: int
    eval_steps: int | None
    checkpoint_minutes: float = 10.0
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: tuple[str, ...]
    finetune_vision_layers: bool = True
    finetune_language_layers: bool = True
    finetune_attention_modules: bool = True
    finetune_mlp_modules: bool = True
    trust_remote_code: bool = False

    # to where
    output_repo: str | None
    private: bool
    merge: Literal["16bit", "4bit"] | None = None
    merged_repo: str | None = None
    gguf: tuple[str, ...] = ()
    run_name: str
    sample_rows: int
    trackio_project: str
    trackio_space: str | None

    # on which machine
    flavor: str
    num_gpus: int
    image: str | None
    namespace: str | None
    labels: dict[str, str]
    env: dict[str, str]
    secrets: tuple[str, ...]
    timeout_s: int
    attempts: int = 2

    # what it takes
    vram: Vram
    host: Host = Host(ram_gb=0, disk_gb=0)
    duration: Duration
    cost: Cost

    # why
    reasons: dict[str, str]
    warnings: tuple[str, ...]
    offers: tuple[Offer, ...]
