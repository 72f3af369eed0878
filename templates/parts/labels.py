"""Which tokens are trained on: the answers, found by what the chat template puts around them, and a look at them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from parts.chat import Message
from parts.say import UserError, note

IGNORED = -100
# Rows that are looked at before anything is trained.
LOOKED_AT = 64
ASKED, ANSWERED = "QUESTIONPROBE", "ANSWERPROBE"
# What may stand beside a marker, and be merged with its first or last token.
BESIDE = ("a", "A", "1", " ", "\n", "\\", "{", "}", "(", ".", "<", ">")


@dataclass(frozen=True)
class Marker:
    """The tokens before every question, or every answer: `core` are the same whatever stands beside them."""

    left: list[int]
    core: list[int]
    right: list[int]

    def at(self, ids: list[int], place: int) -> bool:
        return ids[place] == self.core[0] and ids[place : place + len(self.core)] == self.core


def find_mask(processor: Any) -> Mask:
    """The mask of this chat template; `UserError` where nothing marks the answers in it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    question, answer = (marker_of(tokenizer, text) for text in around(processor, tokenizer))
    shared = [one for one, _ in common(question.core, answer.core)]
    if not question.core or not answer.core or shared in (question.core, answer.core):
        raise unmarked()
    special = {id: token.content.strip() for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    # A token that begins the messages of every role ends an answer too.
    opener = shared if all(special.get(id) for id in shared) else []
    return Mask(question, answer, opener, tokenizer.bos_token_id, tokenizer.eos_token_id)


@dataclass(frozen=True)
class Mask:
    """Labels of rows as tokens: an answer up to the end of its turn, and -100 for whatever else."""

    question: Marker
    answer: Marker
    opener: list[int]
    bos: int | None
    eos: int | None

    def __call__(self, batch: Any) -> dict[str, Any]:
        """`labels` for the batch's `input_ids`, which may be a tensor."""
        rows = batch["input_ids"]
        if isinstance(rows, list):
            return {"labels": [self.labels(ids) for ids in rows]}
        return {"labels": rows.new_tensor([self.labels(ids) for ids in rows.tolist()])}

    def labels(self, ids: list[int]) -> list[int]:
        labels, place = [IGNORED] * len(ids), 0
        while place < len(ids):
            if not self.answer.at(ids, place):
                place += 1
                continue
            begin = place + len(self.answer.core)
            begin += len(common(ids[begin:], self.answer.right))
            place = end = self.end(ids, begin)
            if end < len(ids) and self.question.at(ids, end):
                end -= len(common(ids[begin:end][::-1], self.question.left[::-1]))
            labels[begin:end] = ids[begin:end]
        return labels

    def end(self, ids: list[int], place: int) -> int:
        """Where the answer that begins there ends: with the end of the text's token, or before another message."""
        while place < len(ids):
            if ids[place] == self.eos:
                return place + 1
            opened = self.opener and ids[place : place + len(self.opener)] == self.opener
            if opened or ids[place] == self.bos or self.answer.at(ids, place) or self.question.at(ids, place):
                return place
            place += 1
        return place


def around(processor: Any, tokenizer: Any) -> tuple[str, str]:
    """The texts that the chat template puts before every question and before every answer."""
    from jinja2 import TemplateError

    said: list[Callable[[str], Any]] = [str, lambda text: [{"type": "text", "text": text}]]
    for ask, tell in ((said[0], said[0]), (said[1], said[1]), (said[1], said[0])):
        turn = [{"role": "user", "content": ask(ASKED)}, {"role": "assistant", "content": tell(ANSWERED)}]
        try:
            found = gaps(processor, tokenizer, turn * 3)
        except (TemplateError, TypeError, ValueError):
            continue
        if found:
            question, answer = strip(tokenizer, *found)
            return question, thoughtless(processor, answer, ask, tell)
    raise unmarked()


def thoughtless(processor: Any, answer: str, ask: Callable[[str], Any], tell: Callable[[str], Any]) -> str:
    """The marker without a place for thoughts at its end, where a row's own thoughts stand in that place."""
    empty = re.search(r"(?:<[^\s/<>]+>\s*)?</([^\s/<>]+)>\s*$", answer)
    if not empty or not empty.start():
        return answer
    header, thoughts = answer[: empty.start()], f"<{empty[1]}>THOUGHT</{empty[1]}>{ANSWERED}"
    chat = [{"role": "user", "content": ask(ASKED)}, {"role": "assistant", "content": tell(thoughts)}]
    text = processor.apply_chat_template(chat, tokenize=False)
    return answer if text.rpartition(header)[2].startswith(empty[0]) else header


def gaps(processor: Any, tokenizer: Any, chat: list[Message]) -> tuple[list[str], list[str], str] | None:
    """What stands before later questions, before answers, and where an answer is asked for; none without the probes."""
    text = processor.apply_chat_template(chat, tokenize=False)
    if text.count(ASKED) != 3 or text.count(ANSWERED) != 3:
        return None
    first, *rest = text.split(ANSWERED)
    answers = [piece.partition(ASKED)[2] for piece in (first, *rest[:-1])]
    questions = [piece.partition(ASKED)[0] for piece in rest[:-1]]
    asked, answered = (
        processor.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=wanted).rpartition(ASKED)[2]
        for wanted in (False, True)
    )
    return questions, answers, apart(tokenizer, answered, asked)[0]


def apart(tokenizer: Any, one: str, other: str) -> tuple[str, str]:
    """Both texts without what they begin with alike, in whole tokens that are no pieces of a text, and spaces."""
    added = sorted({token.content for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
    while one and other:
        begun = next((token for token in added if one.startswith(token) and other.startswith(token)), "")
        if not begun and one[0] == other[0] and one[0].isspace():
            begun = one[0]
        if not begun:
            break
        one, other = one.removeprefix(begun), other.removeprefix(begun)
    # A plain text may end a question, too.
    return (one.removeprefix(other), "") if one.startswith(other) else (one, other)


def strip(tokenizer: Any, questions: list[str], answers: list[str], header: str) -> tuple[str, str]:
    """Of what stands between a question and an answer, and between that and the next: what begins each of them."""
    question, answer = questions[0], answers[0]
    # A template may ask for thoughts where it asks for an answer, and put them before the last one only.
    while header and not (answer.endswith(header) and all(header in gap for gap in answers)):
        header = header[:-1]
    if header.strip() and header != answer:
        return question.removeprefix(answer.removesuffix(header)).strip(" \t"), header.strip(" \t")
    if header.strip():
        # What ends a question was taken for a part of it.
        answer, question = apart(tokenizer, answer, question)
    ends = [token for token in (tokenizer.eos_token, tokenizer.bos_token, " ", "\t") if token]
    while begun := next((token for token in ends if question.startswith(token)), ""):
        question = question.removeprefix(begun)
    while begun := next((token for token in ends if answer.startswith(token)), ""):
        answer = answer.removeprefix(begun)
    return question.rstrip(" \t"), answer.rstrip(" \t")


def marker_of(tokenizer: Any, text: str) -> Marker:
    """The tokens of a marker, with those at its edges apart that what stands beside it may be merged with."""
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    start, end = 0, len(ids)
    for beside in BESIDE:
        after = tokenizer(text + beside, add_special_tokens=False).input_ids
        before = tokenizer(beside + text, add_special_tokens=False).input_ids
        end = min(end, len(common(ids, after)))
        start = max(start, len(ids) - len(common(ids[::-1], before[::-1])))
    return Marker(ids[:start], ids[start:end], ids[max(start, end) :])


def common(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of equal items at the beginning of both."""
    alike = list[tuple[int, int]]()
    for pair in zip(one, other, strict=False):
        if pair[0] != pair[1]:
            break
        alike.append(pair)
    return alike


def unmarked() -> UserError:
    hint = "Use another --chat-template, or --train-on all."
    return UserError("no markers around answers were found in the chat template.", hint, status=2)


# ---- A look at them ----


def marked(tokenizer: Any, ids: list[int], labels: list[int], longest: int = 400) -> str:
    """A row as text, with ⟦ ⟧ around what is trained on."""
    pieces = []
    for trained, tokens in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([id for id, _ in tokens])
        if len(text) > longest:
            text = f"{text[: longest // 2]} … {text[-longest // 2 :]}"
        pieces.append(f"⟦{text}⟧" if trained else text)
    return "".join(pieces)


@dataclass
class Tally:
    """What rows teach, counted in tokens: `stops` are those trained on that end an answer."""

    stop: int
    rows: int = 0
    trained: int = 0
    masked: int = 0
    stops: int = 0

    def add(self, labels: Sequence[int]) -> None:
        """Count a row; its first token is never predicted."""
        targets = [label for label in labels[1:] if label != IGNORED]
        self.rows += 1
        self.trained += len(targets)
        self.masked += len(labels) - len(targets)
        self.stops += targets.count(self.stop)

    def require(self, tokenizer: Any, masked_wanted: bool) -> None:
        """Refuse to train on nothing, on prompts, or without an end."""
        if not self.trained:
            hint = "Raise --max-length if the answers are cut off, else check the chat template and the rows."
            raise UserError("every token is masked: there is nothing to learn.", hint, status=2)
        if masked_wanted and self.masked <= self.rows:
            hint = "If so wanted, add --train-on all."
            raise UserError("no token is masked: the prompts would be trained on too.", hint, status=2)
        if not self.stops:
            hint = "Raise --max-length if most rows are cut, else try another --chat-template."
            end = tokenizer.decode([self.stop])
            raise UserError(f"{end} is never trained on: the model would not learn to stop.", hint, status=2)


def check_labels(trainer: Any, tokenizer: Any, stop: int, masked_wanted: bool) -> None:
    """Show a row with its mask as the trainer gives it to the model, and refuse what teaches nothing, or the wrong."""
    tally, first = Tally(stop), ""
    for batch in trainer.get_train_dataloader():
        ids, labels = batch["input_ids"], batch["labels"]
        if "attention_mask" in batch:
            # A row's own tokens, on whichever side it was filled up.
            kept = [row.nonzero().flatten().tolist() for row in batch["attention_mask"]]
            rows = [(ids[n, kept[n]].tolist(), labels[n, kept[n]].tolist()) for n in range(len(kept))]
        else:
            # Rows laid end to end: each starts at position 0.
            starts = (batch["position_ids"].flatten() == 0).nonzero().flatten().tolist()
            flat, own = ids.flatten().tolist(), labels.flatten().tolist()
            rows = [(flat[a:b], own[a:b]) for a, b in pairwise([*starts, len(flat)])]
        first = first or marked(tokenizer, *rows[0])
        for _, row in rows:
            tally.add(row)
        if tally.rows >= LOOKED_AT:
            break
    counted = f"{tally.trained} tokens trained on, {tally.masked} masked, over the first {tally.rows} rows"
    note(f"labels: {counted}. One of them:\n{first}")
    tally.require(tokenizer, masked_wanted)
