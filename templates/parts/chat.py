"""Chats: the shapes that rows may have, and what the chat template makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parts.say import UserError

Message = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
SHAPES = [("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"),
          ("instruction", "response"), ("question", "answer")]  # fmt: skip
# Of rows to compare two answers by: there is nothing among them that says which one is to be learned.
PREFERENCES = {"chosen", "rejected"}
# Characters of a value that an error repeats.
QUOTED = 60


def find_shape(columns: Sequence[str], shapes: Sequence[tuple[str, ...]] = SHAPES) -> tuple[str, ...]:
    """Which of the shapes a row with these columns has, as the names of the columns it uses."""
    for shape in shapes:
        if set(shape) <= set(columns):
            return shape
    own = sorted({*columns} - {"row_number"})
    hint = f"Rows need {'; or '.join(' and '.join(shape) for shape in shapes)}."
    if set(columns) >= PREFERENCES:
        hint = f"These are preferences, which this does not train on: take `chosen` as the messages. {hint}"
    raise UserError(f"no usable column among {', '.join(own) or 'none'}.", hint, status=2)


def bad_row(number: int, problem: str, hint: str = "Mend or remove the row.") -> UserError:
    """The error of one row, which is the same in every attempt."""
    return UserError(f"row {number}: {problem}.", hint, status=2)


def shown(value: Any) -> str:
    """A value as an error repeats it, with what it is."""
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    if value is None:
        return "nothing"
    said = repr(value)
    return f"{kinds.get(type(value), 'of another kind')} ({said if len(said) <= QUOTED else f'{said[:QUOTED]}…'})"


def one_side(row: dict[str, Any], column: str, role: str, number: int) -> list[Any]:
    """The messages of one side of a pair, which may be a text or a list of messages already."""
    value = row[column]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if value is not None and not isinstance(value, list):
        raise bad_row(number, f"{column} is {shown(value)}, not a text")
    return list(value or [])


def turns(row: dict[str, Any], shape: tuple[str, ...], number: int) -> list[tuple[str, Any]]:
    """The row's roles and contents up to its last answer; an error names the row and what is wrong with it."""
    if len(shape) == 1:
        found = row[shape[0]]
        if not isinstance(found, list) or not found:
            raise bad_row(number, f"{shape[0]} is not a list of messages but {shown(found)}")
    else:
        found = one_side(row, shape[0], "user", number)
        if isinstance(row[shape[0]], str) and row.get("input"):
            found[0]["content"] = f"{row[shape[0]]}\n\n{row['input']}"
        found += one_side(row, shape[1], "assistant", number)
    said = []
    for turn in found:
        if not isinstance(turn, dict):
            raise bad_row(number, f"a message is not a role with a content but {shown(turn)}")
        role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
        role = ROLES.get(str(role), role)
        if role not in ("system", "user", "assistant", "tool"):
            raise bad_row(number, f"unknown role {role!r}", "Use system, user, assistant or tool.")
        if role == "system" and not content:
            continue
        if not content or (isinstance(content, str) and not content.strip()):
            raise bad_row(number, f"the {role}'s message is empty")
        if not isinstance(content, list | str):
            raise bad_row(number, f"the {role}'s message is {shown(content)}, not a text")
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or not isinstance(part.get("text"), str | None):
                raise bad_row(number, f"a part of the {role}'s message is {shown(part)}, and has no type with a text")
        said.append((role, content))
    # What follows the last answer can't be learned from.
    while said and said[-1][0] != "assistant":
        said.pop()
    if len(said) < 2:
        raise bad_row(number, "no message of the assistant answers another")
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
        raise UserError("the tokenizer has no token that ends a text.", hint, status=2)
    return int(stop)
