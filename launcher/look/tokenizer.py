"""A model's tokenizer and chat template from the files of its repo, as the scripts' parts ask for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.errors import RequestError

if TYPE_CHECKING:
    from jinja2 import Template

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
         "chat_template.json")  # fmt: skip
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Encoded(NamedTuple):
    """A text's tokens."""

    input_ids: list[int]


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is no piece of a text."""

    content: str
    special: bool


class Tokenizer:
    """What transformers makes of the same files, as far as the scripts' parts ask for it.

    `files` are the contents of those of `FILES` that there are. Raises `RequestError` where they hold no tokenizer.
    """

    def __init__(self, files: Mapping[str, bytes], model: str) -> None:
        from tokenizers import Tokenizer as Backend

        if "tokenizer.json" not in files:
            raise RequestError(f"{model} has no tokenizer.json.", "Its rows can be looked at only in the run.")
        try:
            self._backend = Backend.from_str(files["tokenizer.json"].decode())
            config = {name: _read(files.get(name)) for name in FILES if name.endswith("json")}
            added = json.loads(files["tokenizer.json"])["added_tokens"] or []
            self.added_tokens_decoder = {int(one["id"]): Added(one["content"], bool(one["special"])) for one in added}
        except Exception as error:  # tokenizers has no narrower one
            said = str(error).splitlines()
            raise RequestError(
                f"the tokenizer of {model} can't be read ({said[0][:200] if said else type(error).__name__}).",
                "Its rows can be looked at only in the run.",
            ) from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._config = config["special_tokens_map.json"] | config["tokenizer_config.json"]
        self._special = {name: text for name in _NAMES if (text := _text(self._config.get(name))) is not None}
        template = files.get("chat_template.jinja")
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else _template(config)

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text."""
        return self._special.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self._special.get("eos_token")

    @property
    def bos_token_id(self) -> int | None:
        """The number of the token that begins a text."""
        return self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """The number of the token that ends a text."""
        return self._id(self.eos_token)

    @property
    def tokenizer(self) -> Tokenizer:
        """As a processor has one."""
        return self

    def __call__(self, text: str, add_special_tokens: bool = True) -> Encoded:
        """The tokens of a text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        if add_special_tokens and self._config.get("add_bos_token") is not None and self.bos_token_id is not None:
            begun = ids[:1] == [self.bos_token_id]
            if self._config["add_bos_token"] and not begun:
                ids = [self.bos_token_id, *ids]
            elif begun and not self._config["add_bos_token"] and not text.startswith(self.bos_token or ""):
                ids = ids[1:]
        return Encoded(ids)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_dict: bool = False,
    ) -> Any:
        """The messages as the chat template writes them, as a text or as its tokens."""
        text = self._compiled.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self._special
        )
        return self(text, add_special_tokens=False).input_ids if tokenize else text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        text: str = self._backend.decode([*ids], skip_special_tokens=False)
        return text

    def _id(self, token: str | None) -> int | None:
        found: int | None = self._backend.token_to_id(token) if token else None
        return found

    @cached_property
    def _compiled(self) -> Template:
        """The chat template in the sandbox and with the names that transformers gives it."""
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """What transformers may look for in an answer; here it is only its content."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Parser) -> list[nodes.Node]:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def to_json(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, **more)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.chat_template or "")


def _read(content: bytes | None) -> dict[str, Any]:
    found = json.loads(content) if content else {}
    return found if isinstance(found, dict) else {}


def _text(token: Any) -> str | None:
    """A token that stands in a config as a text or with what it is."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _template(config: Mapping[str, dict[str, Any]]) -> str | None:
    """The chat template of a tokenizer's config or a processor's; of several, the one for no purpose of its own."""
    found = config["chat_template.json"].get("chat_template") or config["tokenizer_config.json"].get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
