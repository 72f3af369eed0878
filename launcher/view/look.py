"""What was seen of a run's rows, on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from launcher.text import plain
from launcher.view.tables import grid

if TYPE_CHECKING:
    from launcher.look.report import Look

_BARS, _BINS = 24, 8
_MOST_LINES, _MOST_BAD, _WIDE = 12, 5, 110


def look_view(look: Look) -> RenderableType:
    """The whole screen: what is read, what is learned, one row as it is learned, and the rows that are none."""
    view = grid("bold", "")
    for name, value in _facts(look):
        view.add_row(name, plain(value))
    parts: list[RenderableType] = [view]
    if look.example:
        told = f"row {look.example_row} as the model sees it, with ⟦what is trained on⟧"
        parts += [Text(), Text(told, style="bold"), Padding(_example(look.example), (0, 0, 0, 2))]
    parts += [Text(plain(line), style="yellow") for line in _warnings(look)]
    return Group(*parts)


def _facts(look: Look) -> Iterator[tuple[str, str]]:
    yield "dataset", f"{look.dataset}, split {look.split}"
    yield "looked at", look.source if not look.whole else f"{look.source}: {look.rows:,}"
    for name, what in look.columns.items():
        yield "reads" if name == next(iter(look.columns)) else "", f"{name}: {what}"
    if look.unread:
        shown = ", ".join(look.unread[:8]) + (f" and {len(look.unread) - 8} more" if len(look.unread) > 8 else "")
        yield "unread", shown
    yield "twice", f"{look.duplicates:,} rows are the same as an earlier one" if look.duplicates else "no row"
    if look.sides:
        middle, most = look.sides[len(look.sides) // 2], look.sides[-1]
        yield "pictures", f"{look.pictures:,}, half of them as large as a square of {middle} pixels, at most {most}"
    elif look.pictures:
        yield "pictures", f"{look.pictures:,}"
    if not look.lengths:
        return
    counted = "" if look.rendered == look.rows else f", of {look.rendered:,} rows"
    total = sum(look.lengths)
    yield "tokens", f"{total / len(look.lengths):,.0f} a row, at most {look.lengths[-1]:,}{counted}"
    for number, line in enumerate(_histogram(look)):
        yield "lengths" if not number else "", line
    share = f"{look.cut / look.rendered:.0%}" if look.cut else "none"
    yield (
        "cut",
        f"{look.cut:,} rows ({share}) at --max-length {look.max_length}"
        if look.cut
        else (f"none at --max-length {look.max_length}"),
    )
    if look.trained + look.masked:
        part = look.trained / (look.trained + look.masked)
        yield "learned", f"{look.trained:,} tokens ({part:.0%}) are trained on, {look.masked:,} masked"


def _histogram(look: Look) -> Iterator[str]:
    """How many rows there are of each length, in at most eight steps of one width."""
    longest = look.lengths[-1]
    step = next(size for n in range(40) for size in (10**n, 2 * 10**n, 5 * 10**n) if size * _BINS > longest)
    first = look.lengths[0] // step
    counts = [0] * (longest // step - first + 1)
    for length in look.lengths:
        counts[length // step - first] += 1
    wide = len(f"{longest + step:,}")
    for number, count in enumerate(counts, first):
        bar = "█" * round(_BARS * count / max(counts)) or ("▏" if count else "")
        yield f"{number * step:>{wide},} to {(number + 1) * step - 1:>{wide},}  {bar} {count:,}".rstrip()


def _example(marked: str) -> Text:
    """The row with what is trained on in another colour, as far as it fits."""
    shown, inside = Text(), False
    lines = marked.rstrip("\n").split("\n")
    if len(lines) > _MOST_LINES:
        half = _MOST_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines …", *lines[-half:]]
    for number, line in enumerate(lines):
        text = plain(line)
        text = text if len(text) <= _WIDE else f"{text[: _WIDE - 30]} … {text[-27:]}"
        for piece in _pieces(text):
            inside = True if piece.startswith("⟦") else inside
            shown.append(piece, style="green" if inside else "")
            inside = False if piece.endswith("⟧") else inside
        shown.append("\n" if number < len(lines) - 1 else "")
    return shown


def _pieces(text: str) -> list[str]:
    """The text, parted before each opening and after each closing bracket."""
    return [piece for piece in text.replace("⟦", "\0⟦").replace("⟧", "⟧\0").split("\0") if piece]


def _warnings(look: Look) -> Iterator[str]:
    if look.unanswered:
        yield f"{look.unanswered:,} rows go on after their last answer: the messages that nobody answers are left out"
    if look.unlearned:
        yield f"{look.unlearned:,} of {look.rendered:,} rows have nothing left to learn once they are cut: left out"
    for bad in look.bad[:_MOST_BAD]:
        place = f" ({bad.place})" if bad.place else ""
        yield f"row {bad.number}{place}: {bad.problem}{'' if bad.read else ' (the run does not come to it)'}"
    if look.bad_rows > _MOST_BAD:
        yield f"and {look.bad_rows - _MOST_BAD:,} more rows that are none; --json lists twenty"
    yield from look.notes
