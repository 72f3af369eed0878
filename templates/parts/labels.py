"""A look at what the model will really be given, before anything is trained."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

from parts.say import UserError, note


def marked(tokenizer: Any, ids: list[int], labels: list[int], longest: int = 400) -> str:
    """A row as text, with ⟦ ⟧ around what is trained on."""
    pieces = []
    for trained, tokens in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != -100):
        text = tokenizer.decode([id for id, _ in tokens])
        if len(text) > longest:
            text = f"{text[: longest // 2]} … {text[-longest // 2 :]}"
        pieces.append(f"⟦{text}⟧" if trained else text)
    return "".join(pieces)


def check_labels(trainer: Any, tokenizer: Any, stop: int, masked_wanted: bool, rows: int = 64) -> None:
    """Show a row with its mask, and refuse to train on nothing, on prompts, or without an end."""
    trained = masked = seen = stops = 0
    first = ""
    for batch in trainer.get_train_dataloader():
        ids, labels = batch["input_ids"], batch["labels"]
        if "attention_mask" in batch:
            lengths = batch["attention_mask"].sum(dim=1).tolist()
        else:
            # Rows laid end to end: each starts at position 0.
            starts = (batch["position_ids"].flatten() == 0).nonzero().flatten().tolist()
            lengths = [end - start for start, end in pairwise([*starts, ids.numel()])]
        if not seen:
            first = marked(tokenizer, ids[0, : lengths[0]].tolist(), labels[0, : lengths[0]].tolist())
        targets = labels[:, 1:]
        trained += int((targets != -100).sum())
        stops += int((targets == stop).sum())
        masked += sum(lengths)
        seen += len(lengths)
        if seen >= rows:
            break
    masked -= trained
    note(f"labels: {trained} tokens trained on, {masked} masked, over the first {seen} rows. One of them:\n{first}")
    if not trained:
        raise UserError("every token is masked: there is nothing to learn.", "Raise --max-length or check the rows.")
    # The first token of a row is never predicted.
    if masked_wanted and masked <= seen:
        raise UserError("no token is masked: the prompts would be trained on too.", "If so wanted, add --train-on all.")
    if not stops:
        hint = "Raise --max-length if most rows are cut, else try another --chat-template."
        raise UserError(f"{tokenizer.decode([stop])} is never trained on: the model would not learn to stop.", hint)
