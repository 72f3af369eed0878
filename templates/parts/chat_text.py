"""Chats of text: rows as messages, messages as tokens with labels."""

from __future__ import annotations

from itertools import islice
from typing import Any

from parts.chat import SHAPES, Message, bad_row, end_of_turn, find_shape, fold_system, shown, takes_system, turns
from parts.labels import IGNORED, Mask, find_mask
from parts.say import UserError, note

TEXT_SHAPES = [*SHAPES, ("text",)]


def conversation(row: dict[str, Any], shape: tuple[str, ...], fold: bool = False) -> list[Message]:
    """The row as a list of messages with a role and a text; `fold` puts the system's into the first user's."""
    number, messages = row["row_number"], list[Message]()
    for role, content in turns(row, shape, number):
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                raise bad_row(number, "a message holds more than text", "Use a vision model for images.")
            content = "".join(part.get("text") or "" for part in content)
        if not content.strip():
            raise bad_row(number, f"the {role}'s message is empty")
        messages.append({"role": role, "content": content})
    return fold_system(messages, str) if fold else messages


class Encoder:
    """Makes tokens and labels of a row, by the columns that the rows have and the model's chat template."""

    def __init__(self, tokenizer: Any, columns: list[str], args: Any) -> None:
        self.tokenizer, self.shape, self.args = tokenizer, find_shape(columns, TEXT_SHAPES), args
        if tokenizer.eos_token_id is None:
            hint = "Set eos_token in its tokenizer_config.json, or use the instruct model."
            raise UserError(f"the tokenizer of {args.model} has no token that ends a text.", hint, status=2)
        self.chat, self.stop, self.fold = self.shape != ("text",), int(tokenizer.eos_token_id), False
        self.mask: Mask | None = None
        if self.chat and not tokenizer.chat_template:
            hint = "Add --chat-template NAME (chatml, llama-3.1, …), or use rows with a text column."
            raise UserError(f"{args.model} has no chat template.", hint, status=2)
        if self.chat:
            self.stop, self.fold = end_of_turn(tokenizer, tokenizer, str), not takes_system(tokenizer, str)
            self.mask = find_mask(tokenizer) if args.train_on == "assistant" else None

    def messages(self, row: dict[str, Any]) -> list[Message]:
        return conversation(row, self.shape, self.fold)

    @staticmethod
    def text(row: dict[str, Any]) -> str:
        """What a row without messages says."""
        text = row["text"]
        if not isinstance(text, str) or not text.strip():
            raise bad_row(row["row_number"], f"text is {shown(text)}, not a text" if text else "text is empty")
        return text

    def ids(self, row: dict[str, Any]) -> list[int]:
        """The row as tokens, however many."""
        from jinja2 import TemplateError

        if self.chat:
            messages = self.messages(row)
            try:
                return list(self.tokenizer.apply_chat_template(messages, return_dict=False))
            except (TemplateError, TypeError) as error:
                raise bad_row(row["row_number"], f"the model's chat template refuses it ({error})") from error
        ids = list(self.tokenizer(self.text(row)).input_ids)
        # The text may bring its own beginning-of-sequence token.
        if ids[:2] == [self.tokenizer.bos_token_id] * 2:
            ids = ids[1:]
        return ids if ids[-1:] == [self.stop] else [*ids, self.stop]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.labelled(self.ids(row))

    def labelled(self, ids: list[int]) -> dict[str, Any]:
        """Tokens and labels, cut at the length limit."""
        labels = self.mask.labels(ids) if self.mask else ids
        cut = slice(self.args.max_length)
        return {"input_ids": ids[cut], "labels": labels[cut], "was_cut": len(ids) > self.args.max_length}


def encode_rows(rows: Any, encoder: Encoder, columns: list[str], told: bool = True) -> Any:
    """The rows as tokens and labels, without those that have nothing to learn; what is `told` is how many were cut."""
    encoded = rows.map(encoder, remove_columns=columns)
    if told:
        check_encoded(encoded, encoder.args.max_length)
    kept = encoded.filter(has_target).select_columns(["input_ids", "labels"])
    if told and not encoder.args.streaming and len(kept) < len(encoded):
        note(f"nothing left to learn once they are cut: {len(encoded) - len(kept)} rows, left out")
    return kept


def check_encoded(encoded: Any, longest: int) -> None:
    """Say how many of the first rows were cut; refuse where nothing is left to learn."""
    head = list(islice(encoded, 256))
    note(f"longer than {longest} tokens, so cut: {sum(row['was_cut'] for row in head)} of {len(head)} rows")
    if not any(has_target(row) for row in head):
        hint = "Raise --max-length if the answers are cut off, else check the chat template and the rows."
        raise UserError("every token is masked, so there is nothing to learn.", hint, status=2)


def words(message: Message) -> str:
    return str(message["content"])


def has_target(row: dict[str, Any]) -> bool:
    return any(label != IGNORED for label in row["labels"][1:])


def answer(model: Any, tokenizer: Any, messages: list[Message], stop: int, length: int = 96) -> str:
    """What the model says next, word by word the likeliest."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(
        **inputs.to(model.device),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=[stop],
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
