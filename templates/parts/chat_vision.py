"""Chats with pictures: rows as messages, each picture in its place, and batches that fit the model's limit."""

from __future__ import annotations

import base64
import io
import re
from itertools import chain
from pathlib import Path
from typing import Any

from parts.chat import Message, bad_row, end_of_turn, find_shape, fold_system, takes_system, turns
from parts.say import UserError, note, reason


def said(text: str) -> list[dict[str, Any]]:
    """A message's content that is only this text."""
    return [{"type": "text", "text": text}]


def attached(row: dict[str, Any]) -> list[Any]:
    """The pictures of a row's own column, however many there are."""
    found = row.get("images") if row.get("images") is not None else row.get("image")
    return found if isinstance(found, list) else [] if found is None else [found]


def conversation(row: dict[str, Any], shape: tuple[str, ...], pictures: list[Any], fold: bool = False) -> list[Message]:
    """The row as messages made of parts, each picture in its place; `fold` puts the system's into the first user's."""
    number, messages = row["row_number"], list[Message]()
    for role, content in turns(row, shape, number):
        if isinstance(content, str):
            texts = content.split("<image>")
            content = [{"type": "text", "text": texts[0]}]
            for text in texts[1:]:
                content += [{"type": "image"}, {"type": "text", "text": text}]
        parts = [part for part in (one_part(part, role, number) for part in content) if part]
        if not parts:
            raise bad_row(number, f"the {role}'s message is empty")
        if role == "assistant" and any(part["type"] == "image" for part in parts):
            # No model here answers with pictures: the batch would fail in the forward pass.
            raise bad_row(number, "a picture stands in the assistant's message", "Put it into a user's message.")
        messages.append({"role": role, "content": parts})
    places = images_of(messages)
    if pictures and not places:
        places = [{"type": "image"} for _ in pictures]
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [*places, *first["content"]]
    waiting = [part for part in places if "image" not in part]
    if len(waiting) != len(pictures):
        hint = "Each picture needs one placeholder, in order, or none of them has any."
        raise bad_row(number, f"{len(pictures)} images for {len(waiting)} placeholders", hint)
    for part, picture in zip(waiting, pictures, strict=True):
        part["image"] = picture
    return fold_system(messages, said) if fold else messages


def one_part(part: Any, role: str, number: int) -> dict[str, Any] | None:
    """A text or an image part without the empty fields that tables fill in; nothing for an empty text."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": part["text"].strip("\n")} if (part.get("text") or "").strip() else None
    if kind in ("image", "image_url"):
        source = next((part[key] for key in ("image", "image_url", "url", "path", "bytes") if part.get(key)), None)
        if isinstance(source, dict) and source.get("url"):
            source = source["url"]
        return {"type": "image"} if source is None else {"type": "image", "image": source}
    raise bad_row(number, f"the {role}'s message holds a part of type {kind!r}", "Use text and image.")


def open_picture(source: Any, place: Path | str, longest: int, number: int) -> Any:
    """A picture as RGB, at most `longest` pixels on its longer side, from a PIL image, bytes, a path or a URL.

    `place` is the folder of a dataset of this machine, or the name of the Hub's.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = ImageOps.exif_transpose(find_picture(source, place)).convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        # A file that is broken in the middle is a SyntaxError to some of Pillow's readers.
        said = "it is no picture" if isinstance(error, UnidentifiedImageError) else reason(error)[:200]
        raise bad_row(number, f"an image can't be read ({said})") from error
    picture.thumbnail((longest, longest))
    return picture


def find_picture(source: Any, place: Path | str) -> Any:
    """The picture as Pillow opens it, wherever it is."""
    from PIL import Image

    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str) and source.startswith("data:"):
        source = base64.b64decode(source.partition(",")[2], validate=True)
    if not source:
        raise ValueError("it is empty")
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if not isinstance(source, str):
        return source
    if source.startswith(("http://", "https://")):
        from httpx import HTTPError, InvalidURL
        from transformers.image_utils import load_image

        try:
            return load_image(source)
        except (HTTPError, InvalidURL) as error:
            raise ValueError(f"{source[:100]}: {reason(error)}") from error
    if re.match(r"(hf|zip|tar|gzip)://", source):
        import fsspec

        # A file in the dataset's repo or in an archive, as streams name them: in one, and not beyond it.
        inside, _, archive = source.rpartition("::")
        if "::" in inside:
            raise ValueError(f"{source} is in an archive of an archive")
        if not archive.startswith(("https://", f"hf://datasets/{place}@")):
            own_file(place, re.sub(r"^\w+://", "", archive))
        with fsspec.open(source) as file:
            return Image.open(io.BytesIO(file.read()))
    return Image.open(own_file(place, source))


def own_file(place: Path | str, name: str) -> Path:
    """A file that a row names: beside a dataset of this machine; of a Hub's only one that was downloaded of it."""
    if isinstance(place, Path):
        return place / name
    from datasets import config
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    # Archives are unpacked into the other.
    own = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=place, repo_type="dataset"))
    path = Path(name).resolve()
    if any(path.is_relative_to(Path(cache).resolve()) for cache in (config.HF_DATASETS_CACHE, own)):
        return path
    raise ValueError(f"a Hub dataset names {name}, a file of this machine")


def images_of(messages: list[Message]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


def words(message: Message) -> str:
    return " ".join(part.get("text", "<image>") for part in message["content"])


def data_place(args: Any) -> Path | str:
    """What paths in a local dataset are relative to; the name of a dataset of the Hub."""
    path = Path(args.dataset).expanduser()
    return path.parent if path.is_file() else path if path.is_dir() else str(args.dataset)


def require_template(processor: Any, model: str) -> None:
    """Refuse a model that has no chat template."""
    if not processor.chat_template:
        raise UserError(f"{model} has no chat template.", "Add --chat-template NAME (gemma-3, llama-3.2, …).", status=2)


class Reader:
    """Makes messages of a row, by the columns that the rows have and what the chat template takes."""

    def __init__(self, processor: Any, columns: list[str], args: Any) -> None:
        self.processor, self.shape = processor, find_shape(columns)
        self.stop = end_of_turn(processor, processor.tokenizer, said)
        self.fold = not takes_system(processor, said, [{"type": "image"}, *said("Hi")])
        self.place, self.longest = data_place(args), args.image_size

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """The row as messages whose image parts hold their pictures."""
        messages = conversation(row, self.shape, attached(row), self.fold)
        for part in images_of(messages):
            part["image"] = open_picture(part["image"], self.place, self.longest, row["row_number"])
        return messages


def make_collator(model: Any, reader: Reader, args: Any, mask: Any) -> Any:
    """Rows to batches through Unsloth's collator; pictures that would be cut off in the middle are made smaller."""
    from jinja2 import TemplateError
    from unsloth_zoo.vision_utils import UnslothVisionDataCollator

    class Collator(UnslothVisionDataCollator):  # type: ignore[misc]
        def __call__(self, rows: list[dict[str, Any]]) -> Any:
            numbers, problem = ", ".join(str(row["row_number"]) for row in rows), ""
            chats = [reader.messages(row) for row in rows]
            pictures = [[part.pop("image") for part in images_of(messages)] for messages in chats]
            for longest in (args.image_size, args.image_size // 2, args.image_size // 4, args.image_size // 8):
                for picture in chain(*pictures):
                    picture.thumbnail((longest, longest))
                pairs = zip(chats, pictures, strict=True)
                examples = [{"messages": messages, "images": [*own]} for messages, own in pairs]
                try:
                    batch = super().__call__(examples)
                    check_pictures(batch, model.config, reader.processor, sum(map(len, pictures)))
                    return batch
                except TemplateError as error:
                    hint = "Mend or remove it."
                    raise UserError(f"rows {numbers}: the chat template refuses one ({error}).", hint, 2) from error
                except ValueError as error:
                    problem = reason(error)
                    note(f"rows {numbers}: at {longest} pixels they make no batch ({problem})")
            raise UserError(f"rows {numbers}: {problem}", "Raise --max-length or lower --image-size.", status=2)

    collator = Collator(model, reader.processor, max_seq_length=args.max_length, resize="max")
    collator.train_on_responses_only = mask
    return collator


def check_pictures(batch: Any, config: Any, processor: Any, pictures: int) -> None:
    """Raise `ValueError` where the length limit cut pictures off.

    transformers' processors do so, but not Gemma 3's as Unsloth replaces it when a model is loaded.
    """
    fewest = pictures * (getattr(processor, "image_seq_length", None) or 1)
    # Gemma's processor calls the mark before a picture so, its config what a picture is made of.
    found = int((batch["input_ids"] == config.image_token_id).sum())
    if found < fewest:
        raise ValueError(f"{found} of {fewest} image tokens are within the length limit")


def check_rows(rows: Any, reader: Reader) -> None:
    """Look at every row's messages before anything is trained; its pictures are counted, not opened."""
    import pyarrow.compute as pc
    from jinja2 import TemplateError

    name = next((name for name in ("images", "image") if name in rows.column_names), None)
    for table in rows.with_format("arrow").iter(256):
        counts = [0] * len(table)
        if name:
            is_list = str(table[name].type).startswith(("list", "large_list"))
            counts = (pc.list_value_length if is_list else pc.is_valid)(table[name]).to_pylist()
        for row, count in zip(table.select([*reader.shape, "row_number"]).to_pylist(), counts, strict=True):
            number = row["row_number"]
            messages = conversation(row, reader.shape, [number] * int(count or 0), reader.fold)
            try:
                reader.processor.apply_chat_template(messages, tokenize=False)
            except TemplateError as error:
                raise bad_row(number, f"the model's chat template refuses it ({error})") from error


def answer(model: Any, processor: Any, messages: list[Message], stop: int, length: int = 96) -> str:
    """What the model says next, word by word the likeliest."""
    pictures = [part["image"] for part in images_of(messages)]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    shown = {"images": [pictures]} if pictures else {}
    inputs = processor(text=[text], **shown, add_special_tokens=False, return_tensors="pt")
    ids = model.generate(
        **inputs.to(model.device, model.dtype),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=[stop],
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    told = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(told).strip()
