"""What a run would learn from its rows, or why it would be refused: before anything is paid for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from parts import chat_vision
from parts.chat import ROLES, SHAPES, find_shape
from parts.chat_text import TEXT_SHAPES, Encoder, conversation, has_target
from parts.data import drawn, held_out
from parts.labels import Tally, marked
from parts.say import UserError

from launcher import catalog
from launcher.catalog.machine import LOCAL
from launcher.errors import LauncherError, RequestError
from launcher.estimate.dataset import Sample
from launcher.hub import repos
from launcher.hub.client import Hub
from launcher.look.pictures import MOST_OPENED, PictureRows
from launcher.look.report import BadRow, Look
from launcher.look.rows import Seen, Source, open_rows
from launcher.look.tokenizer import FILES, Tokenizer
from launcher.plan.record import Plan
from launcher.spec import path_of

# Rows whose columns are looked at before anything is said of the shape.
_FIRST = 1000
# Rows that are rendered and counted, at most twice as many, spread evenly; a row's checks cost far less.
_RENDERED = 1000
# Tokens after which no further row is rendered: two seconds or three.
_MOST_TOKENS = 2_000_000
# Characters of the shown row that stand together.
_SHOWN = 400
_MOST_BAD = 20
# What of a message is read.
_MESSAGE = {"role", "from", "content", "value"}


def look(plan: Plan, hub: Hub) -> Look:
    """What the run of a plan would learn from its rows.

    Raises `RequestError` for a dataset that holds none, `ServiceError` where none can be seen from here.
    """
    try:
        return _look(plan, hub)
    except UserError as error:
        message, hint, _ = error.args
        raise RequestError(message, hint) from error


def _look(plan: Plan, hub: Hub) -> Look:
    source, notes = open_rows(plan, hub), list[str]()
    first = list(islice(source.rows, _FIRST))
    columns = list(dict.fromkeys(chain.from_iterable(seen.row for seen in first)))
    if not first:
        raise RequestError(f"--dataset {plan.decisions.dataset.value} holds no rows in this split.", "Choose another.")
    encoder = None
    try:
        encoder = _encoder(plan, hub, columns, source)
    except LauncherError as error:
        notes.append(f"no row was rendered, only their shape was looked at: {error.message}")
    if source.left_out:
        notes.append(f"{source.left_out} rows are too long for the dataset viewer, and were not looked at")
    shape = find_shape(columns, SHAPES if _sees(plan) else TEXT_SHAPES)
    found = Look(
        dataset=plan.decisions.dataset.value, split=plan.asked.dataset_split, model=plan.facts.repo,
        source=source.said, rows=0, total=source.total, whole=source.whole, shape=shape,
        columns=_uses(columns, shape, plan), unread=tuple(n for n in columns if n not in _used(columns, shape, plan)),
        max_length=plan.decisions.max_length.value, notes=tuple(notes),
    )  # fmt: skip
    return _Reading(plan, source, shape, columns, encoder).read(found, chain(first, source.rows))


def _sees(plan: Plan) -> bool:
    return plan.decisions.modality.value == "vision"


def _encoder(plan: Plan, hub: Hub, columns: list[str], source: Source) -> Encoder | PictureRows:
    """The script's own encoder over the model's tokenizer."""
    repo = plan.facts.repo
    folder = path_of(repo)
    if folder:
        files = {name: folder.expanduser() / name for name in FILES if (folder.expanduser() / name).is_file()}
    else:
        files = repos.cached(hub, repo, plan.decisions.revision.value, FILES)
    tokenizer = Tokenizer({name: path.read_bytes() for name, path in files.items()}, repo)
    if not tokenizer.chat_template and plan.decisions.chat_template.value:
        raise RequestError(f"the chat template {plan.decisions.chat_template.value} is Unsloth's, and only in the run.")
    args = plan.options.model_copy(update={"model": repo})
    if not _sees(plan):
        return Encoder(tokenizer, columns, args)
    chat_vision.require_template(tokenizer, repo)
    tower = None
    with suppress(LauncherError):  # of a repo that the catalog does not know
        tower = catalog.load().model(plan.asked.model).vision
    travels = bool(source.folder) and plan.decisions.flavor.value != LOCAL
    return PictureRows(tokenizer, columns, args, tower, source.folder, travels)


class _Reading:
    """One pass over the rows."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        shape: tuple[str, ...],
        columns: list[str],
        encoder: Encoder | PictureRows | None,
    ) -> None:
        self._plan, self._source, self._shape, self._encoder = plan, source, shape, encoder
        self._blank = dict.fromkeys(columns)
        self._bad, self._rows = list[BadRow](), 0
        self._sample, self._hashes, self._duplicates = Sample(_RENDERED), set[bytes](), 0
        self._fields, self._unanswered = dict[str, None](), 0

    def read(self, found: Look, rows: Iterator[Seen]) -> Look:
        """The look with what the rows say."""
        for seen in rows:
            self._rows += 1
            row = self._blank | seen.row | {"row_number": seen.number}
            self._fields |= dict.fromkeys(_fields(row, self._shape))
            problem = self._problem(row)
            if problem:
                self._bad.append(BadRow(seen.number, seen.place, problem))
                continue
            self._sample.add((seen, row))
            self._unanswered += _ends_unanswered(row, self._shape)
            content = json.dumps([row[name] for name in self._shape], sort_keys=True, default=str).encode()
            digest = hashlib.blake2b(content, digest_size=12).digest()
            self._duplicates += digest in self._hashes
            self._hashes.add(digest)
        unread = (*found.unread, *self._fields)
        counted = {"rows": self._rows, "duplicates": self._duplicates, "unanswered": self._unanswered}
        found = replace(found, **counted, unread=unread)  # type: ignore[arg-type]
        if self._encoder:
            found = self._render(found, self._encoder)
        return self._judge(found)

    def _problem(self, row: dict[str, Any]) -> str:
        try:
            if self._shape == ("text",):
                Encoder.text(row)
            elif self._encoder:
                self._encoder.messages(row)
            elif _sees(self._plan):
                chat_vision.conversation(row, self._shape, chat_vision.attached(row))
            else:
                conversation(row, self._shape)
        except UserError as error:
            return _of_row(error)
        return ""

    def _render(self, found: Look, encoder: Encoder | PictureRows) -> Look:
        tally, lengths, example, cut, unlearned = Tally(encoder.stop), list[int](), ("", None), 0, 0
        for seen, row in self._sample.kept:
            try:
                whole = encoder.ids(row)
                pictures = encoder.cost(row) if isinstance(encoder, PictureRows) else 0
            except UserError as error:
                self._bad.append(BadRow(seen.number, seen.place, _of_row(error)))
                continue
            made = encoder.labelled(whole)
            lengths.append(len(whole) + pictures)
            cut += lengths[-1] > found.max_length
            if not has_target(made):
                unlearned += 1
                continue
            tally.add(made["labels"])
            if example[1] is None:
                shown = marked(encoder.tokenizer, made["input_ids"], made["labels"], _SHOWN)
                example = shown, seen.number
            if sum(lengths) > _MOST_TOKENS:
                break
        found = replace(
            found, rendered=len(lengths), lengths=tuple(sorted(lengths)), cut=cut, unlearned=unlearned,
            trained=tally.trained, masked=tally.masked, example=example[0], example_row=example[1],
        )  # fmt: skip
        if isinstance(encoder, PictureRows):
            sides = tuple(sorted(encoder.sides))
            notes = (*found.notes, *(_unseen(encoder) if lengths else ()))
            found = replace(found, pictures=encoder.pictures, sides=sides, notes=notes)
        if not lengths:
            return found
        try:
            tally.require(encoder.tokenizer, encoder.mask is not None)
        except UserError as error:
            found = replace(found, refusal=error.args[0], hint=error.args[1])
        return found

    def _judge(self, found: Look) -> Look:
        """The look with the rows that are none, and the refusal where the run comes to one of them."""
        read = self._read(found) if self._bad else None
        bad = [replace(one, read=read is None or one.number in read) for one in self._bad]
        bad.sort(key=lambda one: (not one.read, one.number))
        found = replace(found, bad=tuple(bad[:_MOST_BAD]), bad_rows=len(bad))
        if bad and bad[0].read:
            first = bad[0]
            others = f"; {len(bad) - 1} more rows like that" if len(bad) > 1 else ""
            message = f"row {first.number}{f' ({first.place})' if first.place else ''}: {first.problem}{others}."
            return replace(found, refusal=message, hint="Mend or remove the row: the run would end at it.")
        return found

    def _read(self, found: Look) -> set[int] | None:
        """The numbers of the rows that the run surely reads; none where it reads them all, or the first ones."""
        args = self._plan.options
        if args.streaming or args.packing or not args.max_steps:
            return None
        total = found.rows if found.whole else found.total
        # Which rows are drawn depends on how many there are, to the row.
        if not total or "estimated" in found.source:
            return set()
        return set(drawn(args, total, 0 if args.eval_split else held_out(total, args.eval_rows)))


def _unseen(rows: PictureRows) -> Iterator[str]:
    """What could not be seen of the pictures, and why."""
    if not rows.pictures:
        yield "no row that was looked at has a picture: a column `images` or `image`, or parts of type image, hold them"
    elif not rows.opens and len(rows.sides) < rows.pictures:
        yield "pictures were counted and not opened: `pip install pillow` lets them be"
    elif rest := rows.pictures - len(rows.sides):
        yield f"{rest} pictures were not opened: they are on the web, or beyond the first {MOST_OPENED}"


def _ends_unanswered(row: dict[str, Any], shape: tuple[str, ...]) -> bool:
    """Whether a chat that holds an answer goes on after its last one."""
    turns = row[shape[-1]]
    last = turns[-1] if isinstance(turns, list) else {}
    role = last.get("role") or last.get("from")
    return bool(role) and ROLES.get(str(role), role) != "assistant"


def _of_row(error: UserError) -> str:
    """What is wrong with a row, without its number."""
    return str(error.args[0]).partition(": ")[2].rstrip(".")


def _used(columns: list[str], shape: tuple[str, ...], plan: Plan) -> tuple[str, ...]:
    """The columns that are read: of a pair also what a question is about, and where the model sees the pictures."""
    beside = ("input",) if len(shape) == 2 else ()
    pictures = ("images", "image") if _sees(plan) else ()
    return (*shape, *(name for name in (*beside, *pictures) if name in columns))


def _uses(columns: list[str], shape: tuple[str, ...], plan: Plan) -> dict[str, str]:
    """What becomes of each column that is read."""
    known = {"text": "the whole text is trained on", "input": f"put below {shape[0]}",
             "images": "the pictures, in their places", "image": "the picture, in its place"}  # fmt: skip
    if len(shape) == 2:
        known |= {shape[0]: "the question", shape[1]: "the answer"}
    return {name: known.get(name, "the messages of a chat") for name in _used(columns, shape, plan)}


def _fields(row: dict[str, Any], shape: tuple[str, ...]) -> Iterator[str]:
    """What messages of that row hold and nobody reads."""
    for column in shape:
        for turn in row[column] if isinstance(row[column], list) else ():
            if isinstance(turn, dict):
                named = (name for name, value in turn.items() if value and name not in _MESSAGE)
                yield from (f"{column}[].{name}" for name in named)
