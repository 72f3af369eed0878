"""What a run left behind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Left:
    """The files of its output repo, the newest checkpoint's step and the files of the output under `/data`.

    `problem` says why they are not known.
    """

    repo: str | None = None
    repo_files: tuple[str, ...] = ()
    checkpoint: int | None = None
    output_files: tuple[str, ...] = ()
    problem: str = ""

    @property
    def model(self) -> str | None:
        """Where a trained model is, in words."""
        if any(name.endswith(".safetensors") for name in self.repo_files):
            return f"the model is at https://huggingface.co/{self.repo}"
        if any(name.endswith(".safetensors") for name in self.output_files):
            return "the model is in the Job's /data/output"
        return None
