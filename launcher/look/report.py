"""What was seen of a run's rows, as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.errors import RequestError


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that ends the run; `read` where the run comes to it, and does not stop before."""

    number: int
    place: str
    problem: str
    read: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen of a run's rows. Tokens are counted over `rendered` rows, cut at `max_length`.

    `lengths` are those rows' tokens before the cut, in order; `unlearned` of them have nothing left to learn. `example`
    is one of them as the model sees it, with ⟦ ⟧ around what is trained on; of their `pictures` the `sides`, in order,
    are those of squares as large, where they could be seen. `unanswered` rows end with messages that nobody answers,
    which are left out. `refusal` is why the run would end, with what to do in `hint`. `notes` say what could not be
    looked at.
    """

    dataset: str
    split: str
    model: str
    source: str
    rows: int
    total: int | None
    whole: bool
    shape: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    max_length: int = 0
    rendered: int = 0
    lengths: tuple[int, ...] = ()
    cut: int = 0
    unlearned: int = 0
    trained: int = 0
    masked: int = 0
    example: str = ""
    example_row: int | None = None
    duplicates: int = 0
    unanswered: int = 0
    pictures: int = 0
    sides: tuple[int, ...] = ()
    bad: tuple[BadRow, ...] = ()
    bad_rows: int = 0
    refusal: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The look as JSON can hold it."""
        return asdict(self)

    def require(self) -> None:
        """Raise `RequestError` where the script would refuse these rows."""
        if self.refusal:
            raise RequestError(self.refusal, self.hint)
