"""Chats: the shapes that rows may have, and what the chat template makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parts.say import UserError

Message = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
SHAPES = [("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"),
          ("instruction", "response"), ("question", "answer")]  # fmt: skip


def find_shape(columns: Sequence[str], shapes: Sequence[tuple[str, ...]] = SHAPES) -> tuple[str, ...]:
    """Which of the shapes a row with these columns has, as the names of the columns it uses."""
    for shape in shapes:
        if set(shape) <= set(columns):
            return shape
    hint = f"Rows need {'; or '.join(' and '.join(shape) for shape in shapes)}."
    raise UserError(f"no usable column among {', '.join(sorted(columns))}.", hint)


def turns(row: dict[str, Any], shape: tuple[str, ...], number: int) -> list[tuple[str, Any]]:
    """The row's roles and contents up to its last answer; an error names the row and what is wrong with it."""
    if len(shape) == 1:
        found = row[shape[0]]
    else:
        # Either side of a pair may be a text or already a list of messages.
        asked, answered = row[shape[0]], row[shape[1]]
        if isinstance(asked, str) and row.get("input"):
            asked = f"{asked}\n\n{row['input']}"
        found = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked or [])
        found += [{"role": "assistant", "content": answered}] if isinstance(answered, str) else list(answered or [])
    if not isinstance(found, list) or not found:
        raise UserError(f"row {number}: {shape[-1]} is not a list of messages.", "Mend or remove the row.")
    said = []
    for turn in found:
        if not isinstance(turn, dict):
            raise UserError(f"row {number}: a message is not a role with a content.", "Mend or remove the row.")
        role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
        role = ROLES.get(str(role), role)
        if role not in ("system", "user", "assistant", "tool"):
            raise UserError(f"row {number}: unknown role {role!r}.", "Use system, user, assistant or tool.")
        if role == "system" and not content:
            continue
        if not isinstance(content, list | str) or not content or (isinstance(content, str) and not content.strip()):
            raise UserError(f"row {number}: the {role}'s message is empty.", "Mend or remove the row.")
        said.append((role, content))
    # What follows the last answer can't be learned from.
    while said and said[-1][0] != "assistant":
        said.pop()
    if len(said) < 2:
        raise UserError(f"row {number}: no message of the assistant answers another.", "Mend or remove the row.")
    return said


def fold_system(messages: list[Message], said: Callable[[str], Any]) -> list[Message]:
    """The system message at the head of the first user's, for chat templates that do not take one."""
    if messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    system, user, *rest = messages
    return [{"role": "user", "content": system["content"] + said("\n\n") + user["content"]}, *rest]


def takes_system(processor: Any, said: Callable[[str], Any], shown: Any = "Hi") -> bool:
    """Whether the chat template shows a system message: some refuse it, some drop it from a finished chat."""
    from jinja2 import TemplateError

    contents = {"system": said("PROBE"), "user": shown, "assistant": said("ANSWER")}
    probe = [{"role": role, "content": content} for role, content in contents.items()]
    try:
        return "PROBE" in processor.apply_chat_template(probe, tokenize=False)
    except TemplateError:
        return False


def end_of_turn(processor: Any, tokenizer: Any, said: Callable[[str], Any]) -> int:
    """The id of the token that ends an answer in this chat template."""
    probe = [{"role": "user", "content": said("Hi")}, {"role": "assistant", "content": said("ANSWER")}]
    tail = processor.apply_chat_template(probe, tokenize=False).rpartition("ANSWER")[2]
    ids = tokenizer(tail, add_special_tokens=False).input_ids
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    stop = next((id for id in ids if id in special), tokenizer.eos_token_id)
    if stop is None:
        hint = "Set eos_token in its tokenizer_config.json, or use the instruct model."
        raise UserError("the tokenizer has no token that ends a text.", hint)
    return int(stop)


def find_mask(processor: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Masks whatever is not between the chat template's markers around answers, which Unsloth finds."""
    from unsloth.chat_templates import train_on_responses_only

    try:
        mask: Callable[..., Any] = train_on_responses_only(None, tokenizer=processor, return_function=True)
    except ValueError as error:
        hint = "Use another --chat-template, or --train-on all."
        raise UserError("no markers around answers were found in the chat template.", hint) from error
    return mask
